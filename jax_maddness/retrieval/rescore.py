"""Rescoring: exact products of queries with the candidates that look-ups proposed.

Candidates are scattered, and their positions are known only after the scan, so that the kernels read the vectors in
place and copy none.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int32

from jax_maddness.core import ffi
from jax_maddness.core.stack import on_platform

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)
"""The dtypes that queries and vectors may have."""


def definition(
    queries: Float[Array, "queries run*features"],
    vectors: Float[Array, "vectors features"],
    positions: Int32[Array, "queries k"],
) -> Float[Array, "queries k"]:
    """Computes `scores[q, i] = sum_d queries[q, d] * vectors[positions[q, i], d]` in float32, in any order.

    The score is -inf if there is no such vector, as at position -1. A query that is as long as several vectors is
    multiplied with that many consecutive vectors, the first of which is at the position.
    """
    run = queries.shape[1] // vectors.shape[1] if vectors.shape[1] else 1
    count = vectors.shape[0]  # symbolic where a program is exported for any number of vectors, which is then enough
    known = (positions >= 0) & (positions <= count - run)
    if isinstance(count, int) and count < run:
        return jnp.full(positions.shape, -jnp.inf, jnp.float32)
    # A dot may round equal vectors differently, so that the first of equal vectors would not always be the best.
    products = (queries.astype(jnp.float32)[:, None] * _rows(vectors, positions, known, run)).sum(-1)
    return jnp.where(known, products, -jnp.inf)


def _rows(vectors: Array, positions: Array, known: Array, run: int) -> Float[Array, "queries k run*features"]:
    """Returns the `run` vectors from each position on, in float32; the first ones where it is not known."""
    within = jnp.where(known, positions, 0)[..., None] + jnp.arange(run, dtype=jnp.int32)[None, None, :]
    return vectors[within].reshape(*positions.shape, run * vectors.shape[1]).astype(jnp.float32)


def rescore(
    queries: Float[Array, "queries run*features"],
    vectors: Float[Array, "vectors features"],
    positions: Int32[Array, "queries k"],
) -> Float[Array, "queries k"]:
    """Computes `definition` by the kernels if they are available; results are equal up to the order of additions.

    Gradients are those of the definition. A batch of queries (`jax.vmap`) becomes one call with more queries.

    Args:
      queries: float32, bfloat16 or float16; a multiple of the features of a vector.
      vectors: float32, bfloat16 or float16, not necessarily the dtype of `queries`.
      positions: int32 row numbers of candidates in `vectors`.

    Returns:
      The scores, float32; -inf where a position is not in `[0, vectors)`.

    Raises:
      TypeError: an argument has another dtype.
      ValueError: shapes do not match.

    Example:
      >>> rescore(jnp.ones((1, 2)), jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1, 0, -1]])).tolist()
      [[7.0, 3.0, -inf]]
    """
    queries, vectors, positions = jnp.asarray(queries), jnp.asarray(vectors), jnp.asarray(positions)
    if queries.dtype not in FLOATS or vectors.dtype not in FLOATS or positions.dtype != jnp.int32:
        raise TypeError(
            f"`queries` are {queries.dtype}, `vectors` {vectors.dtype} and `positions` {positions.dtype}; expected "
            "float32, bfloat16 or float16, and positions of int32."
        )
    shapes = queries.shape, vectors.shape, positions.shape
    features, step = queries.shape[-1], vectors.shape[-1]
    fits = features > 0 and features % step == 0 if step else features == 0
    if {len(s) for s in shapes} != {2} or not fits or shapes[0][0] != shapes[2][0]:
        raise ValueError(
            f"`queries`, `vectors` and `positions` have the shapes {shapes[0]}, {shapes[1]} and {shapes[2]}; expected "
            "[queries, features], [vectors, features] and [queries, k]; queries may be as long as several vectors."
        )
    return _rescore(queries, vectors, positions)


@jax.custom_jvp
def _with_gradient(queries: Array, vectors: Array, positions: Array) -> Array:
    return _vmapped(queries, vectors, positions)


@functools.partial(_with_gradient.defjvp, symbolic_zeros=True)
def _tangent(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    """Differentiates `definition`, which is linear in queries and in vectors, and leaves out what has no tangent."""
    queries, vectors, positions = primals
    scores, tangent = _with_gradient(*primals), jnp.zeros(positions.shape, jnp.float32)
    zero = jax.custom_derivatives.SymbolicZero
    for q, v in ((tangents[0], vectors), (queries, tangents[1])):
        if not isinstance(q, zero) and not isinstance(v, zero):
            tangent = tangent + definition(q, v, positions)
    return scores, jnp.where(scores == -jnp.inf, 0.0, tangent)


# Outside of any `jit`, a call is compiled as one function; inside of one, it becomes a part of the caller.
_rescore = jax.jit(_with_gradient, inline=True)


@custom_vmap
def _vmapped(queries: Array, vectors: Array, positions: Array) -> Array:
    args = queries, vectors, positions
    return on_platform(definition, "jax_maddness_rescore", *args) if ffi.enabled() else definition(*args)


@_vmapped.def_vmap
def _batch(axis_size: int, in_batched: list[bool], *args: Array) -> tuple[Array, bool]:
    def repeated(i: int) -> Array:
        return args[i] if in_batched[i] else jnp.broadcast_to(args[i], (axis_size, *args[i].shape))

    queries, vectors, positions = repeated(0), args[1], repeated(2)
    if in_batched[1]:
        return lax.map(lambda each: _vmapped(*each), (queries, vectors, positions)), True
    rows, k = axis_size * positions.shape[1], positions.shape[2]
    folded = _vmapped(queries.reshape(rows, queries.shape[2]), vectors, positions.reshape(rows, k))
    return folded.reshape(positions.shape), True
