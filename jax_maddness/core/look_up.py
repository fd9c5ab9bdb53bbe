"""Aggregation with float tables, for training: looks up and adds, with the gradient of the tables."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jax_maddness.core import ffi
from jax_maddness.core.stack import Stacked
from jax_maddness.core.types import LEAVES


def look_up(
    codes: UInt8[Array, "... codebooks"], values: Float[Array, "outputs codebooks 16"]
) -> Float[Array, "... outputs"]:
    """Sums the float entries that the codes select: `y[..., m] = sum_c values[m, c, codes[..., c]]`.

    It is `aggregate` for tables that are being trained. Only the low four bits of a code count. The kernels take
    float32. They add in the order of codebooks and of rows, so that sums and gradients are the same on every tier and
    with any number of threads; the products that replace them elsewhere may round differently. The kernels have no
    forward-mode derivatives.

    Args:
      codes: uint8, one code per codebook, as `encode` returns them; any leading dimensions.
      values: the entries of the tables, of any floating dtype.

    Returns:
      The sums, in the dtype of `values`, with the leading dimensions of `codes`.

    Example:
      >>> values = jnp.arange(32.0).reshape(1, 2, 16)  # one output, two codebooks
      >>> codes = jnp.array([[3, 0], [0, 15]], jnp.uint8)
      >>> look_up(codes, values).tolist()
      [[19.0], [31.0]]
      >>> jax.grad(lambda values: look_up(codes, values).sum())(values)[0, 0, :4].tolist()
      [1.0, 0.0, 0.0, 1.0]
    """
    mesh = jax.sharding.get_abstract_mesh()
    if values.dtype != jnp.float32 or mesh.explicit_axes or not ffi.enabled():
        return definition(codes[None], values[None])[0]
    if mesh.manual_axes:  # inside shard_map: a zero that varies over shards makes JAX sum the gradients of all shards
        values = values + codes[..., :0].sum(dtype=values.dtype)
    return _look_up(codes, values)


def definition(
    codes: UInt8[Array, "ops ... codebooks"], values: Float[Array, "ops outputs codebooks 16"]
) -> Float[Array, "ops ... outputs"]:
    """Computes `look_up` for a batch of ops, in pure JAX: one-hot codes times tables."""
    return jnp.einsum("b...ck,bmck->b...m", _one_hot(codes, values.dtype), values)


def gradient_definition(
    codes: UInt8[Array, "ops ... codebooks"], dy: Float[Array, "ops ... outputs"]
) -> Float[Array, "ops outputs codebooks 16"]:
    """Computes the gradient of the tables: entry `[m, c, k]` sums `dy[n, m]` over the rows `n` with code `k`."""
    codes, dy = (a.reshape(a.shape[0], math.prod(a.shape[1:-1]), a.shape[-1]) for a in (codes, dy))
    return jnp.einsum("bnck,bnm->bmck", _one_hot(codes, dy.dtype), dy)


def _one_hot(codes: Array, dtype: jnp.dtype) -> Array:
    return jax.nn.one_hot(codes & (LEAVES - 1), LEAVES, dtype=dtype)


_forward = Stacked(definition, "jax_maddness_look_up", "b {rows} c, b m c k -> b {rows} m")
_backward = Stacked(
    gradient_definition, "jax_maddness_look_up_gradient", "b {rows} c, b {rows} m -> b m c k", sums_rows=True
)


@jax.custom_vjp
def _look_up(codes: Array, values: Array) -> Array:
    return _forward(codes, values)


@jax.custom_vjp
def _gradient(codes: Array, dy: Array) -> Array:
    return _backward(codes, dy)


def _no_gradient(codes: Array) -> np.ndarray:
    return np.zeros(codes.shape, jax.dtypes.float0)


# Both are linear, and each is the other's transpose.
_look_up.defvjp(
    lambda codes, values: (_look_up(codes, values), codes),
    lambda codes, dy: (_no_gradient(codes), _gradient(codes, dy)),
)
_gradient.defvjp(
    lambda codes, dy: (_gradient(codes, dy), codes),
    lambda codes, change: (_no_gradient(codes), _look_up(codes, change)),
)
