"""Ops whose tables are floats: what is trained in place of 8-bit tables. Pure JAX, no Flax.

    y[m] = sum_c values[m, c, code_c] + offset[m]

Tables have exact gradients (`look_up`). The derivative with respect to `x` is that of the exact product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_maddness.core.encode import encode
from jax_maddness.core.look_up import look_up
from jax_maddness.core.types import LookupTables, MaddnessOp
from jax_maddness.learn.tables.quantize import quantize_tables

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def is_floating(tables: LookupTables) -> bool:
    """Whether these are such tables."""
    return jnp.issubdtype(tables.values.dtype, jnp.floating)


def to_floats(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of an op (`to_arrays`), of several if stacked, with float tables that say the same.

    The entries of each codebook and output have mean zero; the means are in the offset.
    """
    values = arrays["tables_values"].astype(jnp.float32) * arrays["tables_scale"].astype(jnp.float32)[..., None, None]
    means = values.mean(-1, keepdims=True)
    return {
        **{name: array for name, array in arrays.items() if name != "tables_by_code"},
        "tables_values": values - means,
        "tables_scale": jnp.ones_like(arrays["tables_scale"], jnp.float32),
        "tables_offset": arrays["tables_offset"].astype(jnp.float32) + means.sum((-2, -1)),
    }


def to_bytes(values: Float[Array, "... outputs codebooks 16"], offset: Float[Array, "... outputs"]) -> dict[str, Array]:
    """8-bit tables, by name, of one op or of several that are stacked."""
    lead = values.shape[:-3]
    flat = jnp.moveaxis(values, -3, -1).reshape(-1, *values.shape[-2:], values.shape[-3])
    used = jnp.ones(flat.shape[1:3], bool)  # entries of codes without rows were clipped when the op was learned
    found = jax.vmap(quantize_tables, (0, None))(flat, used)
    rounded, scale, low = (a.reshape(*lead, *a.shape[1:]) for a in found)
    return {"tables_values": rounded, "tables_scale": scale, "tables_offset": offset + low}


def amm_floating(x: Float[Array, "... features"], op: MaddnessOp) -> Float[Array, "... outputs"]:
    """`amm` of an op with float tables; without `op.weights` no gradient reaches `x`."""
    y = (look_up(encode(x, op.trees), op.tables.values) + op.tables.offset).astype(x.dtype)
    return y if op.weights is None else y + _straight_through(x, op.weights)


@jax.custom_vjp
def _straight_through(x: Array, weights: Array) -> Array:
    """Zeros whose derivative with respect to `x` is that of the exact product."""
    return jnp.zeros((*x.shape[:-1], weights.shape[-1]), x.dtype)


def _forward(x: Array, weights: Array) -> tuple[Array, Array]:
    return _straight_through(x, weights), weights


def _backward(weights: Array, dy: Array) -> tuple[Array, Any]:
    return jnp.matmul(dy, lax.stop_gradient(weights).T.astype(dy.dtype)), jnp.zeros_like(weights)


_straight_through.defvjp(_forward, _backward)
