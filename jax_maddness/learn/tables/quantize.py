"""Float tables -> 8-bit lookup tables (section 4.3, with a scale and an offset per output and exact sums)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

STEPS = 255
"""Steps of an 8-bit entry."""


@jax.jit
def quantize_tables(
    tables: Float[Array, "codebooks 16 outputs"],
    used: Bool[Array, "codebooks 16"],
) -> tuple[UInt8[Array, "outputs codebooks 16"], Float[Array, " outputs"], Float[Array, " outputs"]]:
    """Rounds float tables to `values`, `scale`, `offset`: `tables[c, k, m]` is about `scale[m] * values[m, c, k]` plus
    a minimum per output and codebook, and `offset` is the sum of those minima over codebooks.

    `scale[m]` is the largest range of any codebook's entries over 255; rounding is to nearest, so each used entry is
    off by at most `scale[m] / 2`. Entries of codes without rows do not count for the range, and are clipped into it.
    An output whose tables are constant gets scale 0 and values 0; a codebook without rows counts for nothing.
    """
    by_output = tables.transpose(2, 0, 1)
    seen = used.any(-1)
    low = jnp.where(seen, jnp.where(used, by_output, jnp.inf).min(-1), 0.0)
    high = jnp.where(seen, jnp.where(used, by_output, -jnp.inf).max(-1), 0.0)
    width = (high - low).max(-1)
    width = jnp.where(width >= jnp.finfo(jnp.float32).tiny * STEPS, width, 0.0)
    steps_per_unit = jnp.where(width > 0, STEPS / jnp.where(width > 0, width, 1.0), 0.0)
    values = jnp.round((by_output - low[..., None]) * steps_per_unit[:, None, None])
    return jnp.clip(values, 0, STEPS).astype(jnp.uint8), width / STEPS, low.sum(-1)
