"""Time of depthwise convolutions as XLA computes them, and rewritten as sums of shifted inputs times weights.

    taskset -c 1 python -m benchmarks.depthwise [--save]   # one thread; prints a table; half a minute

The shapes are those of layers of MobileNet and EfficientNet, and of a long convolution over one dimension.
`Rule(product="rewritten")` replaces such layers. Contents are random: they do not change the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from benchmarks import measured
from benchmarks.orientation import call
from benchmarks.records import Record
from benchmarks.timing import interleaved, quartiles
from jax_maddness.nn.layers.convolution import Convolution

LAYERS = (
    ((1, 112, 112, 32), (3, 3), 1),
    ((1, 112, 112, 96), (3, 3), 2),
    ((1, 56, 56, 144), (3, 3), 1),
    ((1, 28, 28, 240), (5, 5), 1),
    ((1, 14, 14, 480), (5, 5), 1),
    ((1, 7, 7, 1152), (3, 3), 1),
    ((8, 200, 256), (31,), 1),
)
"""Shapes of inputs, kernel sizes, strides."""


def measure(shape: tuple[int, ...], size: tuple[int, ...], stride: int, seconds: float) -> tuple[float, float]:
    """Returns median milliseconds of XLA's convolution, and of the same rewritten."""
    rng = np.random.default_rng(0)
    dims, channels = len(size), shape[-1]
    form = Convolution(size, (stride,) * dims, (1,) * dims, "SAME", channels)
    x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    w = jnp.asarray(rng.standard_normal((channels, form.taps, 1)), jnp.float32)
    calls = [call(form.exact_product, x, w), call(form.rewritten_product, x, w)]
    times = interleaved(calls, seconds=seconds, rounds=(5, 100))
    exact, rewritten = (quartiles(own)[1] for own in times)
    return exact, rewritten


def table(records: Sequence[Record]) -> str:
    """Returns a row for each layer."""
    lines = ["| input | kernel | stride | XLA, ms | rewritten, ms | times as fast |", "|---|---|---|---|---|---|"]
    for r in records:
        shape, size = (" x ".join(map(str, r[key])) for key in ("input", "kernel"))
        exact, rewritten = r["xla_ms"], r["rewritten_ms"]
        lines.append(f"| {shape} | {size} | {r['stride']} | {exact:.2f} | {rewritten:.2f} | {exact / rewritten:.1f}x |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="for each layer")
    measured.add_option(parser)
    args = parser.parse_args(argv)
    run, records = measured.Run("depthwise", argv), list[Record]()
    for shape, size, stride in LAYERS:
        exact, rewritten = measure(shape, size, stride, args.seconds)
        records.append({"input": shape, "kernel": size, "stride": stride, "xla_ms": exact, "rewritten_ms": rewritten})
    run.finish(records, table(records), save=args.save)


if __name__ == "__main__":
    main()
