"""The exact term: x -> few numbers -> outputs, in plain JAX, in float32."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_maddness.core.types import ExactTerm

_UNROLLED = 8
"""Up to this rank the last product is a sum of outer products, which XLA:CPU fuses with what it is added to: one pass
over the outputs, not three. At 4096 x 384 x 1152 and rank 4 that takes half off what the term costs; at 16, little.
"""


def reduced(x: Float[Array, "... features"], term: ExactTerm) -> Float[Array, "... rank"]:
    """What the term sees of every row: the features it takes as they are, then the projections."""
    parts = []
    if term.indices is not None:
        parts.append(jnp.take(x, term.indices, axis=-1, mode="clip").astype(jnp.float32))
    if term.down is not None:
        parts.append(product(x, term.down))
    return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def product(x: Float[Array, "... inner"], w: Float[Array, "inner outer"]) -> Float[Array, "... outer"]:
    """`x @ w`, in float32 on all platforms."""
    return jnp.matmul(x.astype(jnp.float32), w.astype(jnp.float32), precision="highest")


def expanded(r: Float[Array, "... rank"], up: Float[Array, "rank outputs"]) -> Float[Array, "... outputs"]:
    """`r @ up`, of `reduced` rows."""
    if len(up) > _UNROLLED:
        return product(r, up)
    rows = up.astype(jnp.float32).reshape(len(up), *[1] * (r.ndim - 1), -1)
    return sum((r[..., i : i + 1] * row for i, row in enumerate(rows[1:], 1)), start=r[..., :1] * rows[0])
