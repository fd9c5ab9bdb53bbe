"""Ops whose tables are floats, which training updates in place of 8-bit tables. Pure JAX, no Flax.

    y[m] = sum_c values[m, c, code_c] + offset[m] + what the op's term adds

Tables have exact gradients (`look_up`). The derivative with respect to `x` is that of the exact product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_maddness.core.encode import encode
from jax_maddness.core.look_up import look_up
from jax_maddness.core.types import LookupTables, MaddnessOp
from jax_maddness.learn.tables.quantize import quantize_tables

SHIFT = "factors_shift"
"""Name of the array that relates the steps of tables to those of factors beside them."""


def is_floating(tables: LookupTables) -> bool:
    """Whether the entries of the tables are floats."""
    return jnp.issubdtype(tables.values.dtype, jnp.floating)


def to_floats(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Converts the tables of an op to floats; the results of look-ups are unchanged but for rounding.

    Args:
      arrays: an op's arrays by name (`approximate.to_arrays`), of several ops if they are stacked.

    Returns:
      The arrays with float32 tables. The entries of each codebook and output have mean zero; the means are in the
      offset, so that training may move either without the other.
    """
    scale = arrays["tables_scale"].astype(jnp.float32)
    if SHIFT in arrays:
        scale = scale * jnp.exp2(arrays[SHIFT].astype(jnp.float32))
    values = arrays["tables_values"].astype(jnp.float32) * scale[..., None, None]
    means = values.mean(-1, keepdims=True)
    return {
        **{name: array for name, array in arrays.items() if name != "tables_by_code"},
        "tables_values": values - means,
        "tables_offset": arrays["tables_offset"].astype(jnp.float32) + means.sum((-2, -1)),
    }


def to_bytes(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Rounds float tables to 8 bits.

    Args:
      arrays: arrays of one op by name, or of several that are stacked, with float tables. The scale of an op with
        factors stays as it is, since the factors share it.

    Returns:
      The arrays of the 8-bit tables by name, and the shift of factors, if there are any.
    """
    values, lead = arrays["tables_values"], arrays["tables_values"].shape[:-3]
    count = math.prod(lead)
    flat = jnp.moveaxis(values, -3, -1).reshape(count, *values.shape[-2:], values.shape[-3])
    used = jnp.ones(flat.shape[1:3], bool)  # entries of codes without rows were clipped when the op was learned
    finest = arrays["tables_scale"].astype(jnp.float32).reshape(count, values.shape[-3]) if SHIFT in arrays else None
    tables = jax.vmap(quantize_tables, (0, None, None if finest is None else 0))(flat, used, finest)
    rounded, scale, low = (a.reshape(*lead, *a.shape[1:]) for a in tables)
    bytes_ = {"tables_values": rounded, "tables_offset": arrays["tables_offset"] + low}
    if finest is None:
        return {**bytes_, "tables_scale": scale if values.shape[-2] else arrays["tables_scale"]}
    bits = jnp.log2(jnp.where(finest > 0, scale.reshape(finest.shape) / finest, 1.0)).reshape(*lead, values.shape[-3])
    return {**bytes_, SHIFT: jnp.rint(bits).astype(jnp.uint8)}


def amm_floating(x: Float[Array, "... features"], op: MaddnessOp) -> Float[Array, "... outputs"]:
    """Computes `amm` for an op with float tables; without `op.weights` no gradient reaches `x`."""
    y = op.tables.offset
    if op.num_codebooks:
        y = look_up(encode(x, op.trees), op.tables.values) + y
    if op.term is not None:
        y = op.term.product(lax.stop_gradient(x), op.tables) + y
    y = y.astype(x.dtype)
    return y if op.weights is None else y + _straight_through(x, op.weights)


@jax.custom_vjp
def _straight_through(x: Array, weights: Array) -> Array:
    """Returns zeros whose derivative with respect to `x` is that of the exact product."""
    return jnp.zeros((*x.shape[:-1], weights.shape[-1]), x.dtype)


def _forward(x: Array, weights: Array) -> tuple[Array, Array]:
    return _straight_through(x, weights), weights


def _backward(weights: Array, dy: Array) -> tuple[Array, Any]:
    return jnp.matmul(dy, lax.stop_gradient(weights).T.astype(dy.dtype)), jnp.zeros_like(weights)


_straight_through.defvjp(_forward, _backward)
