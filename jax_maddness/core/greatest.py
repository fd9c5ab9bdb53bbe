"""For each output, the `k` greatest sums over rows and their row numbers.

The kernels keep the running maxima while they look up, so that no other sum is written to memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Int32, Shaped, UInt8

from jax_maddness.core import aggregate, ffi
from jax_maddness.core.stack import on_platform

MOST = 16
"""Greatest `k` that the kernels support; a greater one is left to the definition."""


def greatest(
    codes: UInt8[Array, "examples rows codebooks"],
    values: UInt8[Array, "outputs codebooks 16"],
    skipped: Bool[Array, "examples rows"],
    k: int,
) -> tuple[Int32[Array, "examples k outputs"], Int32[Array, "examples k outputs"]]:
    """Returns the results of `definition`, computed by the kernels if they are available; the results are the same.

    Args:
      codes: one code per codebook, as `encode` returns them; an example is a batch of rows with maxima of its own.
      values: the entries of lookup tables.
      skipped: the rows that take no part.
      k: number of sums for each output, at least 1.
    """
    return _greatest(k)(codes, values, skipped.astype(jnp.uint8))


def definition(
    codes: UInt8[Array, "examples rows codebooks"],
    values: UInt8[Array, "outputs codebooks 16"],
    skipped: UInt8[Array, "examples rows"],
    k: int,
) -> tuple[Int32[Array, "examples k outputs"], Int32[Array, "examples k outputs"]]:
    """Finds the `k` greatest sums over the rows of each example that are not skipped, and their row numbers.

    The greatest comes first; of equal sums, that of the first row. If there are fewer rows than `k`, the remaining
    sums are the lowest int32 and their row numbers -1.
    """
    return of_scores(aggregate.definition(codes[None], values[None])[0], skipped != 0, k)


def of_scores(
    scores: Shaped[Array, "examples rows outputs"], skipped: Bool[Array, "examples rows"], k: int
) -> tuple[Shaped[Array, "examples k outputs"], Int32[Array, "examples k outputs"]]:
    """Finds the `k` greatest of given scores and their row numbers as `definition` does, with gradients.

    No score may be the lowest value of its dtype, which stands for a missing one. Each round computes a maximum and
    the first row that has it, not an arg max, which XLA compiles to a slow loop on CPUs.
    """
    num_rows = scores.shape[1]
    rows = jnp.arange(num_rows, dtype=jnp.int32)[None, :, None]
    lowest = jnp.iinfo(scores.dtype).min if jnp.issubdtype(scores.dtype, jnp.integer) else -jnp.inf
    taken, best, positions = skipped[..., None], [], []
    for _ in range(k):
        remaining = jnp.where(taken, jnp.asarray(lowest, scores.dtype), scores)
        best.append(remaining.max(1, keepdims=True, initial=lowest))
        is_best = (remaining == lax.stop_gradient(best[-1])) & ~taken
        first = jnp.where(is_best, rows, num_rows).min(1, keepdims=True, initial=num_rows)
        positions.append(jnp.where(first < num_rows, first, -1))
        taken = taken | (rows == first)
    return jnp.concatenate(best, 1), jnp.concatenate(positions, 1)


@functools.cache
def _greatest(k: int) -> Callable[..., tuple[Array, Array]]:
    by_definition = functools.partial(definition, k=k)

    @custom_vmap
    def greatest_sums(*args: Array) -> tuple[Array, Array]:
        if k > MOST or not ffi.enabled():
            return by_definition(*args)
        return on_platform(by_definition, "jax_maddness_greatest", *args)

    @greatest_sums.def_vmap
    def batch(axis_size: int, in_batched: list[bool], *args: Array) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
        codes, values, skipped = (
            a if batched else jnp.broadcast_to(a, (axis_size, *a.shape)) if i != 1 else a
            for i, (a, batched) in enumerate(zip(args, in_batched, strict=True))
        )
        if in_batched[1]:
            return lax.map(lambda each: greatest_sums(*each), (codes, values, skipped)), (True, True)
        folded = greatest_sums(codes.reshape(-1, *codes.shape[2:]), values, skipped.reshape(-1, skipped.shape[2]))
        best, positions = (a.reshape(*codes.shape[:2], *a.shape[1:]) for a in folded)
        return (best, positions), (True, True)

    return greatest_sums
