"""Measures what search.py prepared, in one process with a given number of threads. search.py starts it.

XLA sizes its thread pool when JAX starts. Therefore the affinity is set first, and JAX is imported inside functions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import pickle
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import timing
from benchmarks.measure import clock_ghz
from benchmarks.search_report import Result

if TYPE_CHECKING:
    from benchmarks.search_contenders import Searcher

NEIGHBORS, BEST_OUTPUTS = 10, 5
SCANNED = (40_000, 1_000_000)
"""Numbers of vectors in a scan: codes of the first fit into L2, those of the second into no cache of most machines."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prepared", type=pathlib.Path, required=True)
    parser.add_argument("--candidates", type=int, nargs="+", required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True, help="for all rounds of a table")
    parser.add_argument("--rounds", type=int, nargs=2, required=True)
    parser.add_argument("--clock", help="a program that prints the clock as JSON")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args(argv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    prepared = pickle.loads(args.prepared.read_bytes())  # noqa: S301 -- search.py has just written it
    results: dict[str, Any] = {"scans": scans(args, prepared["codebooks"]), "results": []}
    for batch in args.batches:
        results["results"] += map(dataclasses.asdict, neighbors(args, prepared, batch))
    results["results"] += map(dataclasses.asdict, head(args, prepared))
    args.output.write_text(json.dumps(results))


def scans(args: argparse.Namespace, codebooks: int) -> list[dict[str, Any]]:
    """Times the scan alone, and reads of the same bytes."""
    from benchmarks import search_contenders

    records = []
    for vectors in SCANNED:
        _report(args, f"scan of {vectors:,} vectors")
        entrants = search_contenders.scans(vectors, codebooks, kept=64)
        scan, *reads = (
            timing.quartiles(own)[1]
            for own in timing.interleaved(entrants, seconds=args.seconds, rounds=tuple(args.rounds))
        )
        size = vectors * codebooks / 2
        clock = clock_ghz(args.clock)
        records.append({"vectors": vectors, "codebooks": codebooks, "bytes": size, "scan_ms": scan,
                      "read_ms": min(reads), "threads": args.threads, "clock_ghz": clock})  # fmt: skip
    return records


def neighbors(args: argparse.Namespace, prepared: dict[str, Any], batch: int) -> list[Result]:
    """Measures recall and time of all searchers for neighbors, with `batch` queries at a time."""
    from benchmarks import search_contenders

    _report(args, f"neighbors, {batch} at a time")
    search_contenders.set_faiss_threads(args.threads)
    problem = prepared["neighbors"]
    searchers = list(
        search_contenders.neighbors(problem.database, prepared["indices"], NEIGHBORS, sorted(args.candidates))
    )
    return measured(args, "neighbors", searchers, problem.validation, problem.tests, batch, NEIGHBORS)


def head(args: argparse.Namespace, prepared: dict[str, Any]) -> list[Result]:
    """Measures agreement and time of all searchers for the greatest outputs of one row."""
    from benchmarks import search_contenders

    _report(args, "a head, one row")
    problem = prepared["head"]
    searchers = list(
        search_contenders.head(problem.w, prepared["head_index"], BEST_OUTPUTS, sorted(args.candidates), args.threads)
    )
    return measured(args, "head", searchers, problem.validation, {"held-out rows": problem.test}, 1, 1)


def measured(
    args: argparse.Namespace,
    task: str,
    searchers: Sequence[Searcher],
    validation: np.ndarray,
    tests: dict[str, np.ndarray],
    batch: int,
    k: int,
) -> list[Result]:
    """Measures the share of the first `k` of the exact answer, and times in turn; the first searcher is exact."""
    queries = {"": validation, **tests}
    exact = {name: searchers[0].ids(own, 64)[:, :k] for name, own in queries.items()}
    first = next(iter(tests.values()))
    times = timing.interleaved(
        [s.contender(first, batch) for s in searchers], seconds=args.seconds, rounds=tuple(args.rounds)
    )
    results = []
    for searcher, own in zip(searchers, times, strict=True):
        recalls = {
            name: recall(searcher.ids(rows, 64 if batch > 1 else 1)[:, :k], exact[name])
            for name, rows in queries.items()
        }
        quartiles = timing.quartiles(own)
        what, num_candidates = searcher.what, searcher.num_candidates
        results.append(Result(task, what, batch, args.threads, num_candidates, recalls.pop(""), recalls, quartiles))
    return results


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Returns the share of `exact [n, k]` that is in the same row of `found`.

    Example:
      >>> recall(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [3, 5]]))
      0.75
    """
    return float(np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]))


def _report(args: argparse.Namespace, what: str) -> None:
    print(f"{args.threads} thread(s): {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
