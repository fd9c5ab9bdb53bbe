"""Quantization of float tables to 8 bits (section 4.3, but with a scale and an offset per output, for exact sums)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

STEPS = 255
"""Number of steps between the smallest and the largest value of an 8-bit entry."""


@jax.jit
def quantize_tables(
    tables: Float[Array, "codebooks 16 outputs"],
    used: Bool[Array, "codebooks 16"],
    finest: Float[Array, " outputs"] | None = None,
) -> tuple[UInt8[Array, "outputs codebooks 16"], Float[Array, " outputs"], Float[Array, " outputs"]]:
    """Rounds float tables to `values`, `scale` and `offset` (Blalock & Guttag 2021, section 4.3).

    `tables[c, k, m]` is about `scale[m] * values[m, c, k]` plus a minimum per output and codebook, and `offset` is the
    sum of those minima over codebooks. `scale[m]` is the largest range of any codebook's entries divided by 255.
    Rounding is to nearest, so the error of each used entry is at most `scale[m] / 2`. Entries of codes without rows
    are left out of the range, and are clipped into it. An output whose tables are constant gets scale 0 and values 0; a
    codebook without rows has range and minimum 0.

    Args:
      tables: float tables.
      used: False for codes without training rows.
      finest: the scale of factors beside the tables, per output: then `scale` is rounded up to a power of two times it.

    Returns:
      `values`, `scale` and `offset`.
    """
    by_output = tables.transpose(2, 0, 1)
    has_rows = used.any(-1)
    # No training row reads the entries of unused codes, so these must not make the steps of the others coarser.
    low = jnp.where(has_rows, jnp.where(used, by_output, jnp.inf).min(-1), 0.0)
    high = jnp.where(has_rows, jnp.where(used, by_output, -jnp.inf).max(-1), 0.0)
    largest_range = (high - low).max(-1, initial=0)
    # A step below the smallest normal float32 would be flushed to zero, and so would the differences it measures.
    largest_range = jnp.where(largest_range >= jnp.finfo(jnp.float32).tiny * STEPS, largest_range, 0.0)
    if finest is not None:
        steps = jnp.where(finest > 0, largest_range / jnp.where(finest > 0, STEPS * finest, 1.0), 1.0)
        bits = jnp.ceil(jnp.log2(jnp.maximum(steps, 1.0)))
        largest_range = jnp.where(finest > 0, STEPS * finest * jnp.exp2(bits), largest_range)
    steps_per_unit = jnp.where(largest_range > 0, STEPS / jnp.where(largest_range > 0, largest_range, 1.0), 0.0)
    values = jnp.round((by_output - low[..., None]) * steps_per_unit[:, None, None])
    return jnp.clip(values, 0, STEPS).astype(jnp.uint8), largest_range / STEPS, low.sum(-1)
