"""x -> codes: which leaf of each codebook's split tree a row reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from jax_maddness.core import checks
from jax_maddness.core.stack import Stacked
from jax_maddness.core.types import LEVELS, SplitTrees

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32, UInt8

_NEVER_RIGHT = jnp.iinfo(jnp.int32).min
_ALWAYS_LEFT = jnp.iinfo(jnp.int32).max


def encode(x: Float[Array, "... features"], trees: SplitTrees) -> UInt8[Array, "... codebooks"]:
    """Encodes every row of `x` as one 4-bit code per codebook.

    Codebook `c` walks a balanced tree of depth 4. At level `l` a row goes right when
    `x[..., indices[c, l]] > threshold` of the node it stands on; the leaf it reaches is its code
    (Blalock & Guttag 2021, Algorithm 1). The comparison is IEEE f32's on every backend: bfloat16 and float16 are
    widened first, ties and NaN go left, -0 equals +0, denormals count.

    Codes are not differentiable: gradients stop here.

    Args:
      x: rows of float32, bfloat16 or float16; any leading dimensions, also none, also empty ones.
      trees: one split tree per codebook.

    Raises:
      TypeError: `x` is of another dtype.
      ValueError: `x` does not have the number of features that `trees` was learned from.

    Example:
      >>> trees = SplitTrees(indices=jnp.zeros((1, 4), int), thresholds=jnp.zeros((1, 15)))
      >>> encode(jnp.array([[-1.0], [1.0]]), trees).tolist()
      [[0], [15]]
    """
    x = checks.rows(x, trees)
    return _encode(*lax.stop_gradient((x, trees.indices.astype(jnp.int32), trees.thresholds.astype(jnp.float32))))


def definition(
    x: Float[Array, "ops ... features"],
    indices: Int32[Array, "ops codebooks 4"],
    thresholds: Float[Array, "ops codebooks 15"],
) -> UInt8[Array, "ops ... codebooks"]:
    """`encode` for a batch of ops, in pure JAX: the answer that every tier must give."""
    values = jax.vmap(_features)(_ordered(x, nan=_NEVER_RIGHT), indices)
    lead = (slice(None), *[None] * (x.ndim - 2))
    nodes = _ordered(thresholds, nan=_ALWAYS_LEFT)[lead]  # [ops, 1..., codebooks, 15]
    code = jnp.zeros(values.shape[:-1], jnp.int32)
    for level in range(LEVELS):
        width = 2**level
        here = code[..., None] == jnp.arange(width, dtype=jnp.int32).reshape((1,) * code.ndim + (-1,))
        threshold = jnp.where(here, nodes[..., width - 1 : 2 * width - 1], 0).sum(-1, dtype=jnp.int32)
        code = 2 * code + (values[..., level] > threshold).astype(jnp.int32)
    return code.astype(jnp.uint8)


def _ordered(x: Float[Array, "..."], nan: int) -> Int32[Array, "..."]:
    """Integers in the order of the floats `x`, NaN replaced by `nan`.

    Comparing these instead of the floats is what makes denormals count: XLA runs its CPU threads with denormals
    flushed to zero, TPUs have none, and NumPy and the C++ tiers must agree with both.
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    magnitude = bits & 0x7FFFFFFF
    keys = jnp.where(bits < 0, -magnitude, magnitude)
    return jnp.where(magnitude > 0x7F800000, nan, keys)


def _features(x: Int32[Array, "... features"], indices: Int32[Array, "codebooks 4"]) -> Int32[Array, "... codebooks 4"]:
    """The four features that each codebook compares."""
    return jnp.take(x, indices, axis=-1, mode="clip")


_encode = Stacked(definition, "jax_maddness_encode", "b {rows} d, b c l, b c t -> b {rows} c")
