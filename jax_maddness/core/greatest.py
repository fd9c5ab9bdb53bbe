"""codes, tables -> of every output the greatest sums over rows, and where: no other sum leaves the cache."""

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
"""Sums of each output; more are found by the definition."""


def greatest(
    codes: UInt8[Array, "examples rows codebooks"],
    values: UInt8[Array, "outputs codebooks 16"],
    skipped: Bool[Array, "examples rows"],
    k: int,
) -> tuple[Int32[Array, "examples k outputs"], Int32[Array, "examples k outputs"]]:
    """`definition`, by the kernels where there are any: exactly the same."""
    return _greatest(k)(codes, values, skipped.astype(jnp.uint8))


def definition(
    codes: UInt8[Array, "examples rows codebooks"],
    values: UInt8[Array, "outputs codebooks 16"],
    skipped: UInt8[Array, "examples rows"],
    k: int,
) -> tuple[Int32[Array, "examples k outputs"], Int32[Array, "examples k outputs"]]:
    """The `k` greatest sums over the rows of each example that are not skipped, and their rows.

    Of equal ones the first row comes first. Where there are fewer rows, the lowest number and -1.
    """
    return of_scores(aggregate.definition(codes[None], values[None])[0], skipped != 0, k)


def of_scores(
    scores: Shaped[Array, "examples rows outputs"], skipped: Bool[Array, "examples rows"], k: int
) -> tuple[Shaped[Array, "examples k outputs"], Int32[Array, "examples k outputs"]]:
    """The same of scores that are there, which have gradients; no score is the lowest of its type.

    Not by an arg max, of which XLA makes a slow loop on CPUs: a maximum, and the first row that has it.
    """
    rows = jnp.arange(scores.shape[1], dtype=jnp.int32)[:, None]
    lowest = jnp.iinfo(scores.dtype).min if jnp.issubdtype(scores.dtype, jnp.integer) else -jnp.inf
    gone, best, at = skipped[..., None], [], []
    for _ in range(k):
        left = jnp.where(gone, jnp.asarray(lowest, scores.dtype), scores)
        best.append(left.max(1, keepdims=True, initial=lowest))
        there = (left == lax.stop_gradient(best[-1])) & ~gone
        first = jnp.where(there, rows, len(rows)).min(1, keepdims=True, initial=len(rows))
        at.append(jnp.where(first < len(rows), first, -1))
        gone = gone | (rows == first)
    return jnp.concatenate(best, 1), jnp.concatenate(at, 1)


@functools.cache
def _greatest(k: int) -> Callable[..., tuple[Array, Array]]:
    by_definition = functools.partial(definition, k=k)

    @custom_vmap
    def found(*args: Array) -> tuple[Array, Array]:
        if k > MOST or not ffi.enabled():
            return by_definition(*args)
        return on_platform(by_definition, "jax_maddness_greatest", *args)

    @found.def_vmap
    def batch(axis_size: int, in_batched: list[bool], *args: Array) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
        codes, values, skipped = (
            a if batched else jnp.broadcast_to(a, (axis_size, *a.shape)) if i != 1 else a
            for i, (a, batched) in enumerate(zip(args, in_batched, strict=True))
        )
        if in_batched[1]:
            return lax.map(lambda each: found(*each), (codes, values, skipped)), (True, True)
        folded = found(codes.reshape(-1, *codes.shape[2:]), values, skipped.reshape(-1, skipped.shape[2]))
        best, at = (a.reshape(*codes.shape[:2], *a.shape[1:]) for a in folded)
        return (best, at), (True, True)

    return found
