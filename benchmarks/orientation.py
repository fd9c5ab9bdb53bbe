"""Time of finding the greatest outputs of a layer, by an index over them or by an op, for several numbers of rows.

    taskset -c 0 python -m benchmarks.orientation [--save]   # one thread; prints a table; a minute

An index makes tables for each row and scans half a byte per codebook and output; an op encodes the row and looks up a
byte. Both rescore the same number of candidates. The data is random: times do not depend on it, but recall does and is
therefore not shown.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks import measured
from benchmarks.records import Record
from benchmarks.timing import interleaved, quartiles

ROWS = (1, 4, 16, 64, 256)
NUM_CANDIDATES = 32


@dataclasses.dataclass(frozen=True)
class Call:
    """A call to time, as `timing.interleaved` takes it."""

    call: Callable[[], Any]
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def call(f: Callable[..., Any], *args: Any) -> Call:
    """Returns a call of the jitted `f` that waits for the result."""
    compiled = jax.jit(f)
    return Call(lambda: jax.block_until_ready(compiled(*args)))


def measure(features: int, outputs: int, codebooks: int, seconds: float) -> list[tuple[int, list[float]]]:
    """Returns, for each number of rows, the median milliseconds of index, op and exact product."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((features, outputs), np.float32)
    index = jax_maddness.build_index(w.T, codebooks)
    config = jax_maddness.FitConfig("paper")
    op = jax_maddness.fit(rng.standard_normal((512, features)), w, num_codebooks=codebooks, config=config)
    op = jax_maddness.with_small_batch_tables(op)
    results, weights = [], jnp.asarray(w)
    for rows in ROWS:
        x = jnp.asarray(rng.standard_normal((rows, features)), jnp.float32)
        calls = [
            call(lambda x, index: jax_maddness.top_k(x, index, k=5, num_candidates=NUM_CANDIDATES), x, index),
            call(lambda x, op, w: jax_maddness.top_k(x, op, w, k=5, num_candidates=NUM_CANDIDATES), x, op, weights),
            call(lambda x, w: jax.lax.top_k(x @ w, 5), x, weights),
        ]
        times = interleaved(calls, seconds=seconds, rounds=(5, 15))
        results.append((rows, [quartiles(t)[1] for t in times]))
    return results


def table(records: Sequence[Record]) -> str:
    """Returns a row for each number of rows."""
    lines = ["| rows | index, ms | op, ms | XLA's exact product, ms |", "|---|---|---|---|"]
    lines += [f"| {r['rows']} | {r['index_ms']:.2f} | {r['op_ms']:.2f} | {r['exact_ms']:.2f} |" for r in records]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=lambda s: tuple(map(int, s.split("x"))), default=(768, 50_000), help="D x M")
    parser.add_argument("--codebooks", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=4, help="for each number of rows")
    measured.add_option(parser)
    args = parser.parse_args(argv)
    run = measured.Run("orientation", argv)
    jax_maddness.retain_freed_memory()
    features, outputs = args.shape
    records = [
        {"rows": rows, "index_ms": index, "op_ms": op, "exact_ms": exact}
        for rows, (index, op, exact) in measure(features, outputs, args.codebooks, args.seconds)
    ]
    run.finish(records, table(records), save=args.save)


if __name__ == "__main__":
    main()
