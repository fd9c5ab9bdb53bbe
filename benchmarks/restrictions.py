"""Time of the largest outputs of a wide layer: with restrictions, with the log-sum of all outputs, and of samples.

    taskset -c 1 python -m benchmarks.restrictions [--save]   # one thread; prints a table; two minutes

The layer has the size of the head of a small speech recogniser. Rows and weights are random, with correlated features.
Every call has other rows than the one before.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks import measured
from benchmarks.orientation import Call
from benchmarks.records import Record
from benchmarks.timing import interleaved, quartiles

FEATURES, OUTPUTS, CODEBOOKS, CANDIDATES, K = 384, 51_864, 64, 128, 5


def rows_and_weights() -> tuple[np.ndarray, np.ndarray]:
    """Returns rows [2000, features] and weights [features, outputs]."""
    rng = np.random.default_rng(0)
    causes = rng.standard_normal((64, FEATURES))
    rows = rng.standard_normal((2000, 64)) @ causes + 0.3 * rng.standard_normal((2000, FEATURES))
    return rows.astype(np.float32), (rng.standard_normal((FEATURES, OUTPUTS)) / 20).astype(np.float32)


def contenders(w: jax.Array, index: jax_maddness.VectorIndex, rows: int) -> dict[str, Callable[[jax.Array], Any]]:
    """Returns functions of a batch of so many rows, by their names in the table."""
    rng = np.random.default_rng(1)
    bias = jnp.asarray(rng.standard_normal((rows, OUTPUTS)), jnp.float32)
    ids = jnp.asarray(rng.choice(OUTPUTS, 90, replace=False), jnp.int32)
    few, most = (jnp.asarray(rng.random(OUTPUTS) < share) for share in (0.03, 0.95))

    def ours(**restrictions: Any) -> Callable[[jax.Array], Any]:
        return lambda x: jax_maddness.top_k(x, index, k=K, num_candidates=CANDIDATES, **restrictions)

    return {
        "XLA f32, then `lax.top_k`": lambda x: jax.lax.top_k(x @ w, K),
        "the same with a bias": lambda x: jax.lax.top_k(x @ w + bias, K),
        "`top_k`": ours(),
        "`exclude`, 90 ids": ours(exclude=ids),
        "`exclude`, a mask of 3 %": ours(exclude=few),
        "`exclude`, a mask of 95 %": ours(exclude=most),
        "`always`, 3 ids": ours(always=ids[:3]),
        "`score_bias`": ours(score_bias=bias),
        "XLA f32, `lax.top_k` and `logsumexp`": lambda x: _with_log_sum(x @ w),
        "`log_sum=True`": ours(log_sum=True),
        "XLA f32, then `jax.random.categorical`": lambda x: jax.random.categorical(_key(x), x @ w),
        "`sample`": lambda x: jax_maddness.sample(_key(x), x, index, num_candidates=CANDIDATES),
    }


def _with_log_sum(outputs: jax.Array) -> Any:
    return jax.lax.top_k(outputs, K), jax.nn.logsumexp(outputs, axis=-1)


def _key(x: jax.Array) -> jax.Array:
    return jax.random.key(jax.lax.bitcast_convert_type(x[0, 0], jnp.uint32))


def measure(functions: dict[str, Callable[[jax.Array], Any]], x: np.ndarray, rows: int, seconds: float) -> list[float]:
    """Returns median milliseconds of a call of each function with so many rows."""
    batches = [jnp.asarray(x[i : i + rows]) for i in range(0, 16 * rows, rows)]
    calls = [_in_turn(jax.jit(f), batches) for f in functions.values()]
    return [quartiles(own)[1] for own in interleaved(calls, seconds=seconds, rounds=(5, 100))]


def _in_turn(f: Callable[[jax.Array], Any], batches: Sequence[jax.Array]) -> Call:
    turns = itertools.cycle(batches)
    return Call(lambda: jax.block_until_ready(f(next(turns))))


def table(records: Sequence[Record]) -> str:
    """Returns a row for each function, and a column for each number of rows."""
    numbers = list(dict.fromkeys(r["rows"] for r in records))
    lines = [
        f"| | {' | '.join(f'{rows} row, ms' if rows == 1 else f'{rows} rows, ms' for rows in numbers)} |",
        "|---" * (len(numbers) + 1) + "|",
    ]
    for name in dict.fromkeys(r["function"] for r in records):
        own = {r["rows"]: r["ms"] for r in records if r["function"] == name}
        lines.append(f"| {name} | {' | '.join(f'{own[rows]:.2f}' for rows in numbers)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="for each number of rows")
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 8))
    measured.add_option(parser)
    args = parser.parse_args(argv)
    run, records = measured.Run("restrictions", argv), list[Record]()
    x, w = rows_and_weights()
    index = jax_maddness.build_index(w.T, CODEBOOKS, queries=x[:1500])
    for rows in args.rows:
        functions = contenders(jnp.asarray(w), index, rows)
        times = measure(functions, x[1500:], rows, args.seconds)
        records += [{"function": f, "rows": rows, "ms": ms} for f, ms in zip(functions, times, strict=True)]
    run.finish(records, table(records), save=args.save)


if __name__ == "__main__":
    main()
