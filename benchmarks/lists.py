"""Search in a million vectors by lists, beside faiss with as many lists and as many bytes a vector.

    taskset -c 1 python -m benchmarks.lists [--save]   # one thread; ten minutes, of which most is building
    python -m benchmarks.lists --quick                 # 50,000 vectors

The vectors are made up, but have the structure of SIFT descriptors: a mixture on a curved surface of 24 dimensions and
noise in all 128, non-negative, of length 512, rounded to 8 bits. faiss is measured if it is installed (pip install
faiss-cpu): IVF, codes of 4 bits of residuals (fast scan), and refinement by the exact vectors. Recall is the share of
the 10 nearest vectors; for each searcher and batch, the fastest setting that reaches 0.99 on half of the queries is
marked, and recall is that of the other half. Building is timed in seconds of the processors.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

import jax_maddness
from benchmarks import measured, timing
from benchmarks.records import Record
from benchmarks.search_contenders import Searcher, has_faiss, set_faiss_threads
from benchmarks.search_measure import recall

LOOK_UPS = "lists of look-ups, then rescore"
FAISS = "faiss IVF fast scan + refine"
RECALL, NEIGHBORS, FEATURES, LATENT, PARTS = 0.99, 10, 128, 24, 1000
PROBES, CANDIDATES = (24, 32, 48, 64, 96), (48, 64, 96, 128, 256)


def descriptors(count: int, seed: int) -> np.ndarray:
    """Returns vectors [count, 128] of integers from 0 to 255, as float32."""
    world, rng = np.random.default_rng(1), np.random.default_rng(seed)
    means = 0.9 * world.standard_normal((PARTS, LATENT))
    scales = world.gamma(2.0, 0.3, (PARTS, LATENT))
    bend = world.standard_normal((LATENT, 96)) / np.sqrt(LATENT)
    spread = world.standard_normal((96, FEATURES)) / np.sqrt(96)
    weights = world.dirichlet(np.ones(PARTS))
    result = np.empty((count, FEATURES), np.float32)
    for at in range(0, count, 50_000):
        rows = result[at : at + 50_000]
        part = rng.choice(PARTS, len(rows), p=weights)
        latent = means[part] + scales[part] * rng.standard_normal((len(rows), LATENT))
        x = np.tanh(1.5 * latent @ bend) @ spread + 0.12 * rng.standard_normal(rows.shape) - 0.2
        x = np.maximum(x, 0.0)
        rows[:] = np.clip(np.round(512 * x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)), 0, 255)
    return result


def look_ups(index: jax_maddness.VectorIndex, probe: int, num_candidates: int) -> Searcher:
    """Returns a search by `jax_maddness.search`."""
    run = jax.jit(
        lambda queries, index: jax_maddness.search(
            queries, index, NEIGHBORS, num_candidates=num_candidates, probe=probe
        )[1]
    )
    return Searcher(LOOK_UPS, lambda queries: run(queries, index), num_candidates)


def faiss_index(database: np.ndarray, num_lists: int, codebooks: int) -> Any:
    """Builds the index of faiss."""
    faiss: Any = importlib.import_module("faiss")
    index = faiss.index_factory(database.shape[1], f"IVF{num_lists},PQ{codebooks}x4fs,RFlat")
    index.train(database)
    index.add(database)
    return index


def faiss_search(index: Any, probe: int, num_candidates: int) -> Searcher:
    """Returns a search by faiss."""
    faiss: Any = importlib.import_module("faiss")
    params = faiss.IndexRefineSearchParameters(
        k_factor=num_candidates / NEIGHBORS, base_index_params=faiss.IVFSearchParameters(nprobe=probe)
    )
    return Searcher(
        FAISS, lambda queries: index.search(queries, NEIGHBORS, params=params)[1], num_candidates, np.ascontiguousarray
    )


def nearest(database: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Returns the ids of the exact nearest vectors; integers of 8 bits have exact distances in float32."""
    squares = np.einsum("vd,vd->v", database, database)
    found = []
    for at in range(0, len(queries), 50):
        distances = squares - 2 * queries[at : at + 50] @ database.T
        found.append(np.argpartition(distances, NEIGHBORS, axis=1)[:, :NEIGHBORS])
    return np.concatenate(found)


def built(build: Callable[[], Any]) -> tuple[Any, float]:
    """Returns the result of `build()`, and its seconds of the processors."""
    start = time.process_time()
    return jax.block_until_ready(build()), time.process_time() - start


def searchers(database: np.ndarray, num_lists: int, codebooks: int) -> Iterator[tuple[int, float, Searcher]]:
    """Yields numbers of lists, the seconds of building and searchers."""
    index, seconds = built(
        lambda: jax_maddness.build_index(database, codebooks, metric="l2", num_lists=num_lists, progress=False)
    )
    other, other_seconds = None, 0.0
    if has_faiss():
        other, other_seconds = built(functools.partial(faiss_index, database, num_lists, codebooks))
    for probe in PROBES:
        for num_candidates in CANDIDATES:
            yield probe, seconds, look_ups(index, probe, num_candidates)
            if other is not None:
                yield probe, other_seconds, faiss_search(other, probe, num_candidates)


def measure(args: argparse.Namespace, database: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> list[Record]:
    """Measures recall of all settings, and times those near the recall that is asked for in turn."""
    records: list[Record] = []
    half = len(queries) // 2
    settings = list(searchers(database, args.lists, args.codebooks))
    shares = [recall(s.ids(queries[:half], 50), truth[:half]) for _, _, s in settings]
    near = [i for i, share in enumerate(shares) if share >= RECALL or args.quick]
    fewest = {(settings[i][0], settings[i][2].what): i for i in reversed(near)}  # of candidates, for each probe
    for batch in args.batches:
        chosen = [settings[i] for i in sorted(fewest.values())]
        entrants = [s.contender(queries[half:], batch) for _, _, s in chosen]
        times = timing.interleaved(entrants, seconds=args.seconds, rounds=(5, 60))
        for (probe, seconds, s), own in zip(chosen, times, strict=True):
            share = recall(s.ids(queries[half:], batch), truth[half:])
            low, median, high = (1000 * ms / batch for ms in timing.quartiles(own))
            records.append(
                {"what": s.what, "batch": batch, "vectors": len(database), "lists": args.lists, "probe": probe,
                 "num_candidates": s.num_candidates, "recall": share, "us": median, "us_low": low, "us_high": high,
                 "build_seconds": seconds}
            )  # fmt: skip
    return records


def table(records: Sequence[Record]) -> str:
    """Returns a row for each searcher and batch: that of the least time."""
    lines = [
        "| vectors | at a time | searcher | lists scanned | candidates | recall | us a query (quartiles) | built, s |",
        "|---" * 8 + "|",
    ]
    for batch, what in dict.fromkeys((r["batch"], r["what"]) for r in records):
        r = min((r for r in records if (r["batch"], r["what"]) == (batch, what)), key=lambda r: r["us"])
        cells = [f"{r['vectors']:,}", str(batch), what, f"{r['probe']} of {r['lists']:,}", str(r["num_candidates"])]
        cells += [f"{r['recall']:.4f}", f"{r['us']:.0f} ({r['us_low']:.0f}-{r['us_high']:.0f})"]
        cells.append(f"{r['build_seconds']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 vectors in 128 lists, whatever the recall")
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--lists", type=int, default=1024)
    parser.add_argument("--codebooks", type=int, default=32, help="half a byte each, of every vector")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64], help="queries at a time")
    parser.add_argument("--seconds", type=float, default=60, help="for each number of queries at a time")
    measured.add_option(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.vectors, args.lists, args.seconds = min(args.vectors, 50_000), min(args.lists, 128), 3
    run = measured.Run("lists", argv)
    set_faiss_threads(len(os.sched_getaffinity(0)))
    database, queries = descriptors(args.vectors, 0), descriptors(1000 if args.quick else 2000, 7)
    records = measure(args, database, queries, nearest(database, queries))
    run.finish(records, table(records), save=args.save)


if __name__ == "__main__":
    main()
