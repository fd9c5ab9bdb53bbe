"""The exact term: a product of low rank, or of a few features, in plain JAX and float32."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_maddness.core.types import ExactTerm

_UNROLLED = 8
"""Greatest rank at which the last product is computed as a sum of outer products.

XLA:CPU fuses such a sum with the addition to the look-ups, so that the outputs are passed over once, not three times.
At 4096 x 384 x 1152 and rank 4 this halves the cost of the term; at rank 16 it saves little.
"""


def reduced(x: Float[Array, "... features"], term: ExactTerm) -> Float[Array, "... rank"]:
    """Reduces every row to the numbers that the term multiplies: its chosen features, then its projections."""
    parts = []
    if term.indices is not None:
        parts.append(jnp.take(x, term.indices, axis=-1, mode="clip").astype(jnp.float32))
    if term.down is not None:
        parts.append(product(x, term.down))
    return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def product(x: Float[Array, "... inner"], w: Float[Array, "inner outer"]) -> Float[Array, "... outer"]:
    """Computes `x @ w` in float32 on all platforms."""
    return jnp.matmul(x.astype(jnp.float32), w.astype(jnp.float32), precision="highest")


def expanded(r: Float[Array, "... rank"], up: Float[Array, "rank outputs"]) -> Float[Array, "... outputs"]:
    """Computes `r @ up` for rows `r` that `reduced` returned."""
    if len(up) > _UNROLLED:
        return product(r, up)
    rows = up.astype(jnp.float32).reshape(len(up), *[1] * (r.ndim - 1), -1)
    return sum((r[..., i : i + 1] * row for i, row in enumerate(rows[1:], 1)), start=r[..., :1] * rows[0])
