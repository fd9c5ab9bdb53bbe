"""Time of a layer with an activation or a residual, computed by XLA after the product or by the product's own kernel.

    taskset -c 1 python -m benchmarks.epilogue [--save]   # one thread; prints a table; a minute

All calls are jitted, in turns, of rows that change from call to call. The product is of int8 factors; its own time
stands beside, and so does that of XLA's float32 product with the same epilogue.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import jax_maddness
from benchmarks import measured
from benchmarks.orientation import Call
from benchmarks.records import Record
from benchmarks.timing import interleaved, quartiles
from jax_maddness import FitConfig, MaddnessOp

SHAPES = (
    (64, 384, 1536, 32),
    (512, 384, 1536, 32),
    (1000, 768, 3072, 48),
    (5000, 384, 1536, 32),
    (8192, 1024, 1024, 64),
)
"""Rows, features, outputs, rank."""
EPILOGUES = ("relu", "gelu", "gelu_erf", "silu", "residual")
_COPIES = 4
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "gelu_erf": lambda z: jax.nn.gelu(z, approximate=False),
    "silu": jax.nn.silu,
}


def apart(name: str, z: Array, residual: Array) -> Array:
    """Computes an epilogue as a user writes it, in XLA."""
    return z + residual if name == "residual" else _ACTIVATIONS[name](z)


def fused(name: str, x: Array, op: MaddnessOp, residual: Array) -> Array:
    """Computes a product with its epilogue in one call."""
    if name == "residual":
        return jax_maddness.amm(x, op, residual=residual)
    return jax_maddness.amm(x, op, activation=name)


def measure(rows: int, features: int, outputs: int, rank: int, seconds: float) -> list[Record]:
    """Returns a record for each epilogue."""
    rng = np.random.default_rng(0)
    copies = [jnp.asarray(rng.standard_normal((rows, features), np.float32)) for _ in range(_COPIES)]
    w = jnp.asarray(rng.standard_normal((features, outputs), np.float32))
    sample = np.asarray(copies[0][:2000])
    op = jax_maddness.fit(sample, w, num_codebooks=0, config=FitConfig("paper", rank=rank), progress=False)
    residual = jnp.asarray(rng.standard_normal((rows, outputs), np.float32))

    def call(f: Callable[..., Any], *others: Any) -> Call:
        compiled, turns = jax.jit(f), itertools.cycle(copies)
        return Call(lambda: jax.block_until_ready(compiled(next(turns), *others)))

    records = []
    for name in EPILOGUES:
        calls = [
            call(jax_maddness.amm, op),
            call(lambda x, op, r, name=name: apart(name, jax_maddness.amm(x, op), r), op, residual),
            call(lambda x, op, r, name=name: fused(name, x, op, r), op, residual),
            call(lambda x, w, r, name=name: apart(name, x @ w, r), w, residual),
        ]
        times = [quartiles(t)[1] for t in interleaved(calls, seconds=seconds, rounds=(5, 25))]
        sizes = {"rows": rows, "features": features, "outputs": outputs, "rank": rank}
        keys = ("product_ms", "apart_ms", "fused_ms", "xla_ms")
        records.append({**sizes, "epilogue": name, **dict(zip(keys, times, strict=True))})
    return records


def table(records: Sequence[Record]) -> str:
    """Returns a row for each shape and epilogue."""
    lines = [
        "| rows x D x M, rank | epilogue | product alone, ms | then by XLA | in the kernel | gain | XLA f32 with it |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        shape = f"{r['rows']} x {r['features']} x {r['outputs']}, {r['rank']}"
        times = " | ".join(f"{r[key]:.3g}" for key in ("product_ms", "apart_ms", "fused_ms"))
        gain = r["apart_ms"] / r["fused_ms"]
        lines.append(f"| {shape} | {r['epilogue']} | {times} | {gain:.1f}x | {r['xla_ms']:.3g} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="for each epilogue of each shape")
    measured.add_option(parser)
    args = parser.parse_args(argv)
    run = measured.Run("epilogue", argv)
    records = [record for shape in SHAPES for record in measure(*shape, args.seconds)]
    run.finish(records, table(records), save=args.save)


if __name__ == "__main__":
    main()
