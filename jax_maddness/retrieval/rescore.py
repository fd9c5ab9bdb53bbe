"""queries, vectors, positions -> exact products: the check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32


def rescore(
    queries: Float[Array, "queries features"],
    vectors: Float[Array, "vectors features"],
    positions: Int32[Array, "queries k"],
) -> Float[Array, "queries k"]:
    """`queries[q] . vectors[positions[q, i]]` in float32; -inf where a position is -1."""
    candidates = jnp.take(vectors, jnp.maximum(positions, 0), axis=0).astype(jnp.float32)
    # Not as a dot, in which equal vectors may round differently, so that of equal scores not the first would be best.
    products = (queries.astype(jnp.float32)[:, None] * candidates).sum(-1)
    return jnp.where(positions < 0, -jnp.inf, products)
