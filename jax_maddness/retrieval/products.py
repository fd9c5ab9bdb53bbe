"""Products of queries with the vectors of an index: tables for approximate ones, exact ones, and the best of them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, UInt8

from jax_maddness.retrieval import scan
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.powers import times_power

_dot = functools.partial(jnp.matmul, precision="highest")


class Tables(NamedTuple):
    """Lookup tables of queries: the score of a vector is approximately `scale * sum of entries + offset`."""

    entries: UInt8[Array, "queries codebooks 16"]
    scale: Float[Array, " queries"]
    offset: Float[Array, " queries"]


def tables_of(
    queries: Float[Array, "queries features"],
    index: VectorIndex,
    exponents: Int32[Array, " queries"] | None = None,
) -> Tables:
    """Makes the lookup tables of queries: their products with all prototypes, as 7-bit entries.

    The least product of each codebook is subtracted first. A step of an entry, `scale`, is a 127th of the largest range
    that a codebook of the query has. Entries are rounded to nearest, so that each is off by at most half of `scale`.

    Args:
      queries: queries in the frame of the index, divided by `2**exponents`.
      index: the index.
      exponents: by which what is added to products is divided too; None: zeros.
    """
    prototypes, constants, _, center = index.quantizer
    added = jnp.broadcast_to(
        jnp.append(constants.reshape(-1), center[-1:])[None, :], (queries.shape[0], constants.size + 1)
    )
    if exponents is not None:
        added = times_power(added, -exponents)
    # The default precision suffices for entries of 7 bits, and on CPUs it halves the time of a single query.
    products = queries @ prototypes.reshape(-1, prototypes.shape[-1]).T + added[:, :-1]
    products = products.reshape(queries.shape[0], *constants.shape)
    low = products.min(-1, keepdims=True)
    scale = (products - low).max((1, 2)) / scan.MAX_ENTRY
    tiny = jnp.finfo(jnp.float32).tiny
    steps = (products - low) * jnp.where(scale > tiny, 1 / jnp.where(scale > tiny, scale, 1.0), 0.0)[:, None, None]
    entries = jnp.clip(jnp.round(steps), 0, scan.MAX_ENTRY).astype(jnp.uint8)
    return Tables(entries, scale, low.sum((1, 2)) + _dot(queries, center[:-1]) + added[:, -1])


def exact_products(
    queries: Float[Array, "queries features"], vectors: Float[Array, "vectors features"]
) -> Float[Array, "queries vectors"]:
    """Computes the products of queries with all vectors in float32."""
    return _dot(queries, vectors.astype(jnp.float32).T)


def best(
    scores: Float[Array, "queries candidates"], names: Int32[Array, "queries candidates"], k: int
) -> tuple[Float[Array, "queries k"], Int32[Array, "queries k"]]:
    """Returns the `k` greatest scores and their names; of equal scores the first is taken first.

    If there are fewer than `k`, the remaining scores are -inf and their names -1.
    """
    missing = ((0, 0), (0, max(k - scores.shape[1], 0)))
    scores, at = lax.top_k(jnp.pad(scores, missing, constant_values=-jnp.inf), k)
    names = jnp.take_along_axis(jnp.pad(names, missing, constant_values=-1), at, 1)
    return scores, jnp.where(scores == -jnp.inf, -1, names)
