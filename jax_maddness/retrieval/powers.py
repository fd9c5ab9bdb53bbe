"""Multiplication by powers of two, which is exact, so that no norm, square or product leaves the range of float32.

Rows are scaled before they are squared or multiplied, and the results are scaled back at the end. Exponents are read
from the bits of a number, because XLA's threads on CPUs compute with subnormal numbers as if they were zero.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32

LEAST = -149
"""The exponent of the least subnormal float32."""
_BITS_OF_FRACTION, _BIAS = 23, 127
_LEAST_NORMAL = 1 << _BITS_OF_FRACTION  # as bits


def exponents(x: Float[Array, "rows features"]) -> Int32[Array, " rows"]:
    """Returns the exponent `e` of the largest magnitude of each row, which is in `[2**e, 2**(e + 1))`; 0 for zeros.

    Args:
      x: float32, finite.

    Example:
      >>> exponents(jnp.array([[0.75, -5.0], [0.0, 0.0], [1e-40, 0.0]])).tolist()
      [2, 0, -133]
    """
    magnitudes = lax.bitcast_convert_type(lax.stop_gradient(x), jnp.int32) & jnp.int32(0x7FFFFFFF)
    largest = magnitudes.max(-1, initial=0)
    normal = (largest >> _BITS_OF_FRACTION) - _BIAS
    subnormal = 31 - lax.clz(largest) + LEAST
    return jnp.where(largest >= _LEAST_NORMAL, normal, jnp.where(largest > 0, subnormal, 0))


def times_power(x: Float[Array, "rows features"], exponent: Int32[Array, " rows"]) -> Float[Array, "rows features"]:
    """Computes `x * 2**exponent` in float32, with one exponent for each row; infinities stay infinities.

    The result is exact unless it is subnormal, also if `x` is.

    Args:
      x: float32.
      exponent: int32; those beyond 252 count as 252.

    Example:
      >>> times_power(jnp.array([[1.5, 0.0], [1e-40, -1e-40]]), jnp.array([2, 133])).tolist()
      [[6.0, 0.0], [1.088897705078125, -1.088897705078125]]
    """
    one, other = two_powers(exponent)
    product = x * one[:, None] * other[:, None]
    bits = lax.bitcast_convert_type(lax.stop_gradient(x), jnp.int32)
    magnitude = bits & jnp.int32(0x7FFFFFFF)
    one, other = two_powers(exponent + LEAST)
    exact = magnitude.astype(jnp.float32) * jnp.where(bits < 0, -one[:, None], one[:, None]) * other[:, None]
    # The gradient is that of the product, which is zero or equal to `exact` where `x` is subnormal.
    exact = exact + (product - lax.stop_gradient(product))
    return jnp.where((magnitude > 0) & (magnitude < _LEAST_NORMAL), exact, product)


def two_powers(exponent: Int32[Array, " rows"]) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
    """Returns two normal numbers whose product is `2**exponent`, which may itself be out of range.

    Exponents are clipped to [-252, 252].

    Example:
      >>> [power.tolist() for power in two_powers(jnp.array([3, -200]))]
      [[2.0, 7.888609052210118e-31], [4.0, 7.888609052210118e-31]]
    """
    exponent = jnp.clip(exponent, -252, 252)
    half = exponent >> 1
    one, other = (((e + _BIAS) << _BITS_OF_FRACTION).astype(jnp.int32) for e in (half, exponent - half))
    return lax.bitcast_convert_type(one, jnp.float32), lax.bitcast_convert_type(other, jnp.float32)


def exponent_of(x: np.ndarray) -> int:
    """Returns the exponent of the largest magnitude of an array on the host, as `exponents` does; 0 for zeros."""
    largest = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
    return int(np.frexp(largest)[1]) - 1 if largest else 0
