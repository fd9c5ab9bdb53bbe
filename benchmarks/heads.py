"""The greatest output of output layers of real models, by an index and by its rivals.

    taskset -c 1 python -m benchmarks.heads [--save]     # one thread; some ten minutes
    python -m benchmarks.heads --only ddddocr --rows 1   # one of them

Every searcher finds the greatest output of each row of `x @ w + b`, for 1, 8 and 64 rows at a time, which change from
call to call: XLA's product in float32 and in int8, torch's int8 and faiss where they are installed, and `top_k`. The
number of candidates is the least that finds 99.9 % of the greatest outputs of validation rows, or the most that is
tried; the table has the share on other rows.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks import contenders, measured, timing
from benchmarks.head_problems import Problem, load
from benchmarks.records import INT8_DYNAMIC, TORCH, Record
from benchmarks.search_contenders import Searcher, faiss_indices, faiss_search, greatest, has_faiss, set_faiss_threads
from benchmarks.search_report import EXACT, FAISS, LOOK_UPS

ROWS, CANDIDATES, SHARE = (1, 8, 64), (8, 16, 32, 64, 128, 256), 0.999
_FEATURES_A_CODEBOOK, _MOST_CODEBOOKS = 4, 128


def searchers(problem: Problem, truth: np.ndarray) -> Iterator[Searcher]:
    """Yields the searchers of a problem, the exact one first.

    Args:
      problem: the problem.
      truth: the greatest outputs of its validation rows.
    """
    w = jnp.asarray(problem.w)
    b = jnp.zeros(w.shape[1]) if problem.b is None else jnp.asarray(problem.b)
    yield Searcher(EXACT, _jitted(_exact, w, b))
    yield Searcher(INT8_DYNAMIC, _jitted(_int8, *contenders.int8_columns(w), b))
    if (linear := contenders.torch_linear(problem.w, 1)) is not None:
        yield _torch(linear, np.asarray(b))
    codebooks = min(problem.w.shape[0] // _FEATURES_A_CODEBOOK, _MOST_CODEBOOKS)
    index = jax_maddness.build_index(problem.w.T, codebooks, bias=problem.b, queries=problem.train, progress=False)
    ours = [Searcher(LOOK_UPS, greatest(index, 1, count), count) for count in CANDIDATES]
    yield fewest(ours, problem.validation, truth)
    if has_faiss():
        yield fewest(_faiss(problem, codebooks), problem.validation, truth)


def _jitted(product: Any, *operands: jax.Array) -> Any:
    run = jax.jit(lambda x, *operands: jnp.argmax(product(x, *operands), -1, keepdims=True))
    return lambda x: run(x, *operands)


def _exact(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    return x @ w + b


def _int8(x: jax.Array, w8: jax.Array, step: jax.Array, b: jax.Array) -> jax.Array:
    # XLA takes ten times as long for a single row as for several, so that rows of zeros make up four.
    rows = jnp.pad(x, ((0, max(0, 4 - len(x))), (0, 0)))
    return contenders.int8_dynamic(rows, w8, step)[: len(x)] + b


def _torch(linear: Any, b: np.ndarray) -> Searcher:
    import torch

    bias = torch.from_numpy(b.copy())

    def answer(x: Any) -> Any:
        with torch.inference_mode():
            return torch.argmax(linear(x) + bias, -1, keepdim=True)

    return Searcher(TORCH, answer, native=torch.from_numpy)


def _faiss(problem: Problem, codebooks: int) -> list[Searcher]:
    """Returns faiss with each number of candidates; the bias is a feature more, and zeros fill up the codebooks."""
    set_faiss_threads(1)
    bias = np.zeros(problem.w.shape[1], np.float32) if problem.b is None else problem.b
    vectors = np.concatenate([problem.w.T, bias[:, None]], 1) if problem.b is not None else problem.w.T
    missing = -vectors.shape[1] % codebooks
    database = np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, missing))))
    index = _deserialized(faiss_indices(database, codebooks)[FAISS]())

    def native(x: np.ndarray) -> np.ndarray:
        x = np.pad(x, ((0, 0), (0, 1)), constant_values=1.0) if problem.b is not None else x
        return np.ascontiguousarray(np.pad(x, ((0, 0), (0, missing))))

    return [Searcher(FAISS, faiss_search(index, 1, count), count, native) for count in CANDIDATES]


def _deserialized(index: np.ndarray) -> Any:
    import faiss

    return faiss.deserialize_index(index)


def fewest(candidates: Sequence[Searcher], rows: np.ndarray, truth: np.ndarray) -> Searcher:
    """Returns the first searcher that finds enough of the greatest outputs of some rows, or the last one."""
    return next((s for s in candidates if np.mean(s.ids(rows, 64) == truth) >= SHARE), candidates[-1])


def measure(problem: Problem, batches: Sequence[int], seconds: float) -> list[Record]:
    """Measures the share of greatest outputs that each searcher finds, and its time, all in turns."""
    exact = _jitted(_exact, jnp.asarray(problem.w), jnp.asarray(0.0 if problem.b is None else problem.b))
    answer = functools.partial(Searcher(EXACT, exact).ids, batch=64)
    truth = answer(problem.test)
    entrants = list(searchers(problem, answer(problem.validation)))
    records: list[Record] = []
    for batch in batches:
        times = timing.interleaved(
            [s.contender(problem.test, batch) for s in entrants], seconds=seconds, rounds=(5, 60)
        )
        base = timing.quartiles(times[0])[1]
        for searcher, own in zip(entrants, times, strict=True):
            ms = timing.quartiles(own)[1]
            share = float(np.mean(searcher.ids(problem.test, batch) == truth))
            records.append(
                {"problem": problem.title, "rows": batch, "what": searcher.what, "ms": ms, "speedup": base / ms,
                 "share": share, "num_candidates": searcher.num_candidates, "tested": len(truth)}
            )  # fmt: skip
    return records


def table(records: Sequence[Record]) -> str:
    """Returns a row for each layer and searcher: the share found, and milliseconds for each number of rows."""
    batches = list(dict.fromkeys(r["rows"] for r in records))
    names = [f"{n} row{'s' * (n > 1)}, ms" for n in batches]
    lines = [f"| output layer | searcher | candidates | found | {' | '.join(names)} |", "|---" * (4 + len(names)) + "|"]
    for problem, what in dict.fromkeys((r["problem"], r["what"]) for r in records):
        own = {r["rows"]: r for r in records if (r["problem"], r["what"]) == (problem, what)}
        first = own[batches[0]]
        cells = [problem, what, str(first["num_candidates"] or "all"), f"{first['share']:.4f}"]
        cells += [f"{own[n]['ms']:.3f} ({own[n]['speedup']:.1f}x)" for n in batches]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the name of a layer")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="at a time")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each layer and number of rows")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path("build/heads"))
    measured.add_option(parser)
    args = parser.parse_args(argv)
    run, records = measured.Run("heads", argv), list[Record]()
    for problem in load(args.cache):
        if args.only in problem.name:
            records += measure(problem, args.rows, args.seconds)
    run.finish(records, table(records), save=args.save)


if __name__ == "__main__":
    main()
