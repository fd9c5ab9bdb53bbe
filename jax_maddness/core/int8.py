"""Integer arithmetic that every backend and tier repeats exactly: rounding to int8, and int8 products.

The matrices of int8 products are stored in groups of four: `[groups, outer, 4]`, where the innermost four are
consecutive inner indices. One such group is what an instruction of today's processors multiplies and adds at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int8, Int32

GROUP = 4
"""Inner indices that stand side by side in a matrix of an int8 product."""
LIMIT = 127
"""Greatest magnitude of an int8 value; -128 is not used."""
MAX_INNER = 100_000
"""The most products that a sum may have, so that it cannot overflow: 127 * 127 * MAX_INNER < 2**31."""
LEAST_SCALE, GREATEST_SCALE = np.float32(2.0**-100), np.float32(2.0**100)
"""The range of a scale that multiplies before rounding, unless it is 0; denormals then never matter."""


def steps(x: Float[Array, "..."], center: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes `(x - center) * scale` in float32, with the denormals of `x` replaced by zero."""
    return (without_denormals(x) - center) * scale


def rounded(steps: Float[Array, "..."]) -> Int8[Array, "..."]:
    """Rounds float32 to the nearest integer, half to even, clipped to [-127, 127]; NaN becomes -127."""
    return jnp.where(steps > -LIMIT, jnp.minimum(jnp.rint(steps), LIMIT), -LIMIT).astype(jnp.int8)


def rounded_rows(
    x: Float[Array, "ops ... features"], center: Float[Array, "ops features"], scale: Float[Array, "ops features"]
) -> Int8[Array, "ops ... features"]:
    """Rounds rows to `int8(clip(rint((x - center) * scale), -127, 127))`, for a batch of ops."""
    lead = (slice(None), *[None] * (x.ndim - 2))
    return rounded(steps(x, center[lead], scale[lead]))


def without_denormals(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `x` as float32 with denormals, which no permitted scale makes significant, replaced by zero.

    The bits are masked as integers, so that no compiler contracts a multiplication that produced `x` with the
    subtraction that follows.
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return lax.bitcast_convert_type(jnp.where(bits & 0x7F800000 == 0, 0, bits), jnp.float32)


def product(
    q: Int8[Array, "ops ... inner"], matrix: Int8[Array, "ops groups outer 4"]
) -> Int32[Array, "ops ... outer"]:
    """Multiplies rows with a matrix in groups of four, for a batch of ops; sums wrap around at 32 bits."""
    missing = matrix.shape[1] * GROUP - q.shape[-1]
    q = jnp.pad(q, [(0, 0)] * (q.ndim - 1) + [(0, missing)])
    q = q.reshape(*q.shape[:-1], matrix.shape[1], GROUP)
    return jnp.einsum("b...gi,bgoi->b...o", q, matrix, preferred_element_type=jnp.int32)


def grouped(matrix: Int8[np.ndarray, "inner outer"]) -> Int8[Array, "groups outer 4"]:
    """Stores a matrix in groups of four inner indices, zeros standing in for missing ones."""
    matrix = np.pad(matrix, [(0, -len(matrix) % GROUP), (0, 0)])
    return jax.device_put(np.ascontiguousarray(matrix.reshape(-1, GROUP, matrix.shape[1]).swapaxes(1, 2)))


def ungrouped(groups: Int8[np.ndarray, "groups outer 4"], inner: int) -> Int8[np.ndarray, "inner outer"]:
    """Returns the matrix that `grouped` stored."""
    return np.asarray(groups).swapaxes(1, 2).reshape(-1, groups.shape[1])[:inner]
