"""Aggregation: turns codes and lookup tables into integer sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt8

from jax_maddness.core import validate
from jax_maddness.core.stack import Stacked
from jax_maddness.core.types import LEAVES, LookupTables


def aggregate(codes: UInt8[Array, "... codebooks"], tables: LookupTables) -> Int32[Array, "... outputs"]:
    """Sums the table entries that the codes select: `sums[..., m] = sum_c values[m, c, codes[..., c]]`.

    The sums are exact 32-bit integers, never averages (Blalock & Guttag 2021, section 4.4, averages instead). Only
    the low four bits of a code count.

    Args:
      codes: uint8, one code per codebook, as `encode` returns them; any leading dimensions.
      tables: the lookup tables, whose `values` are summed. `scale` and `offset` are not used.

    Returns:
      The sums, int32, in `[0, 255 * codebooks]`, with the leading dimensions of `codes`.

    Raises:
      TypeError: `codes` is not uint8.
      ValueError: `codes` and `tables` differ in the number of codebooks.

    Example:
      >>> values = jnp.arange(32, dtype=jnp.uint8).reshape(1, 2, 16)  # one output, two codebooks
      >>> tables = LookupTables(values, scale=jnp.ones(1), offset=jnp.zeros(1))
      >>> aggregate(jnp.array([[3, 0], [0, 15]], jnp.uint8), tables).tolist()
      [[19], [31]]
    """
    codes = validate.codes(codes, tables)
    return _aggregate(codes, tables.values)


def definition(
    codes: UInt8[Array, "ops ... codebooks"], values: UInt8[Array, "ops outputs codebooks 16"]
) -> Int32[Array, "ops ... outputs"]:
    """Aggregates the codes of a batch of ops, in pure JAX: the answer that every tier must give.

    The sums are an integer product of one-hot codes and tables, not a gather, because matrix units compute products
    and because a product is partitioned like any other dot, where a gather fails on explicit meshes.
    """
    leaves = jnp.arange(LEAVES, dtype=jnp.uint8).reshape((1,) * codes.ndim + (-1,))
    one_hot = ((codes[..., None] & (LEAVES - 1)) == leaves).astype(jnp.uint8)
    return jnp.einsum("b...ck,bmck->b...m", one_hot, values, preferred_element_type=jnp.int32)


def rescaled(
    sums: Int32[Array, "ops ... outputs"],
    scale: Float[Array, "ops outputs"],
    offset: Float[Array, "ops outputs"],
    dtype: jax.typing.DTypeLike,
) -> Float[Array, "ops ... outputs"]:
    """Computes `scale * sums + offset` in float32, the last step of every op, rounded to `dtype`."""
    lead = (slice(None), *[None] * (sums.ndim - 2))
    return (scale[lead] * sums.astype(jnp.float32) + offset[lead]).astype(dtype)


_aggregate = Stacked(definition, "jax_maddness_aggregate", "b {rows} c, b m c k -> b {rows} m")
