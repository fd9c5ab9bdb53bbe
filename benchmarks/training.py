"""Time of look-ups in float tables, forward and backward, by kernels, one-hot products and gathers.

    taskset -c 1 python -m benchmarks.training               # one thread; prints a table; a minute
    python -m benchmarks.training --shapes 8128x80x512       # rows x codebooks x outputs

dy is dense, or sparse as before a maximum over rows: zero except for one row per output. Milliseconds are medians of
interleaved rounds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.orientation import Call
from benchmarks.timing import interleaved, quartiles
from jax_maddness import testing
from jax_maddness.core.look_up import look_up

SHAPES = ("8128x80x512", "4096x24x384")
"""Magika's convolution of 16 files, whose five taps share codes; a layer of a transformer."""
POSITIONS = 508
"""Number of rows that a maximum is taken over."""

LookUp = Callable[[jax.Array, jax.Array], jax.Array]


def gathers(codes: jax.Array, values: jax.Array) -> jax.Array:
    """Computes `look_up` by XLA's gathers, one codebook at a time, so that the entries of all are never in memory."""
    entries = jnp.transpose(values, (1, 2, 0))

    def step(sums: jax.Array, of_codebook: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        codes, entries = of_codebook
        return sums + jnp.take(entries, codes, 0), None

    return jax.lax.scan(step, jnp.zeros((len(codes), len(values))), (codes.T, entries))[0]


CONTENDERS: dict[str, tuple[str, LookUp]] = {
    "kernels": ("ffi", look_up),
    "one-hot": ("jax", look_up),
    "gathers": ("jax", gathers),
}
"""Backend and function by name."""


def problem(rows: int, codebooks: int, outputs: int, sparse: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns random codes, values and dy."""
    rng = np.random.default_rng(0)
    dy = rng.standard_normal((rows, outputs), np.float32)
    if sparse:
        greatest = np.zeros_like(dy, bool)
        for start in range(0, rows, POSITIONS):
            greatest[start + dy[start : start + POSITIONS].argmax(0), np.arange(outputs)] = True
        dy = np.where(greatest, dy, 0)
    values = rng.standard_normal((outputs, codebooks, 16), np.float32)
    codes = rng.integers(0, 16, (rows, codebooks), np.uint8)
    return jnp.asarray(codes), jnp.asarray(values), jnp.asarray(dy)


def call(backend: str, function: LookUp, backward: bool, args: tuple[jax.Array, ...]) -> Call:
    """Returns a compiled call of the outputs or, with `backward`, of the gradient alone."""

    def run(codes: jax.Array, values: jax.Array, dy: jax.Array) -> jax.Array:
        if not backward:
            return function(codes, values)
        return jax.vjp(lambda values: function(codes, values), values)[1](dy)[0]

    with testing.force_backend(backend):
        compiled = jax.jit(run).lower(*args).compile()
    return Call(lambda: jax.block_until_ready(compiled(*args)))


def measure(shape: str, seconds: float) -> list[tuple[str, list[float]]]:
    """Returns the median milliseconds of each contender, forward, backward, and backward with a sparse dy."""
    sizes = [int(n) for n in shape.split("x")]
    results = []
    for direction, backward, sparse in (
        ("forward", False, False),
        ("backward", True, False),
        ("backward, sparse", True, True),
    ):
        args = problem(sizes[0], sizes[1], sizes[2], sparse)
        calls = [call(backend, function, backward, args) for backend, function in CONTENDERS.values()]
        times = interleaved(calls, seconds=seconds, rounds=(5, 15))
        results.append((direction, [quartiles(t)[1] for t in times]))
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x codebooks x outputs")
    parser.add_argument("--seconds", type=float, default=10.0, help="per line of the table")
    args = parser.parse_args(argv)
    print(f"{len(os.sched_getaffinity(0))} threads, ms\n\n| rows x C x M | | " + " | ".join(CONTENDERS) + " |")
    print("|---|" + "---|" * (1 + len(CONTENDERS)))
    for shape in args.shapes:
        for direction, times in measure(shape, args.seconds):
            print(f"| {shape} | {direction} | " + " | ".join(f"{t:.3g}" for t in times) + " |", flush=True)


if __name__ == "__main__":
    main()
