"""One process with so many threads: what search.py prepared in, measurements out. It is of no use by itself.

XLA's thread pool gets its size when JAX starts: so affinity comes first, and JAX is imported inside the functions.
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

NEIGHBOURS, BEST_OUTPUTS = 10, 5
SCANNED = (40_000, 1_000_000)
"""Vectors whose codes fit L2; and that do not, nor any cache of most machines."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes JSON."""
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
    found: dict[str, Any] = {"scans": scans(args, prepared["codebooks"]), "results": []}
    for batch in args.batches:
        found["results"] += map(dataclasses.asdict, neighbours(args, prepared, batch))
    found["results"] += map(dataclasses.asdict, head(args, prepared))
    args.output.write_text(json.dumps(found))


def scans(args: argparse.Namespace, codebooks: int) -> list[dict[str, Any]]:
    """The scan alone, and reads of the same bytes."""
    from benchmarks import search_contenders

    found = []
    for vectors in SCANNED:
        _say(args, f"scan of {vectors:,} vectors")
        entrants = search_contenders.scans(vectors, codebooks, kept=64)
        scan, *reads = (
            timing.quartiles(own)[1]
            for own in timing.interleaved(entrants, seconds=args.seconds, rounds=tuple(args.rounds))
        )
        size = vectors * codebooks / 2
        clock = clock_ghz(args.clock)
        found.append({"vectors": vectors, "codebooks": codebooks, "bytes": size, "scan_ms": scan,
                      "read_ms": min(reads), "threads": args.threads, "clock_ghz": clock})  # fmt: skip
    return found


def neighbours(args: argparse.Namespace, prepared: dict[str, Any], batch: int) -> list[Result]:
    """Recall and time of everyone who finds neighbours, so many queries at a time."""
    from benchmarks import search_contenders

    _say(args, f"neighbours, {batch} at a time")
    search_contenders.set_faiss_threads(args.threads)
    problem = prepared["neighbours"]
    searchers = list(
        search_contenders.neighbours(problem.database, prepared["indices"], NEIGHBOURS, sorted(args.candidates))
    )
    return measured(args, "neighbours", searchers, problem.validation, problem.tests, batch, NEIGHBOURS)


def head(args: argparse.Namespace, prepared: dict[str, Any]) -> list[Result]:
    """Agreement and time of everyone who finds the greatest outputs, for one row."""
    from benchmarks import search_contenders

    _say(args, "a head, one row")
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
    """What share of the exact answer's first `k` each finds, and the times of all in turn; the first one is exact."""
    queries = {"": validation, **tests}
    exact = {name: searchers[0].ids(own, 64)[:, :k] for name, own in queries.items()}
    first = next(iter(tests.values()))
    times = timing.interleaved(
        [s.contender(first, batch) for s in searchers], seconds=args.seconds, rounds=tuple(args.rounds)
    )
    results = []
    for searcher, own in zip(searchers, times, strict=True):
        found = {
            name: recall(searcher.ids(rows, 64 if batch > 1 else 1)[:, :k], exact[name])
            for name, rows in queries.items()
        }
        quartiles = timing.quartiles(own)
        what, num_candidates = searcher.what, searcher.num_candidates
        results.append(Result(task, what, batch, args.threads, num_candidates, found.pop(""), found, quartiles))
    return results


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """The share of `exact [n, k]` that is in the same row of `found`.

    Example:
      >>> recall(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [3, 5]]))
      0.75
    """
    return float(np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]))


def _say(args: argparse.Namespace, what: str) -> None:
    print(f"{args.threads} thread(s): {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
