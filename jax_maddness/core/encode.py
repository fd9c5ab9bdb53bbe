"""x -> codes: which leaf of each codebook's split tree a row reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_maddness.core import validate
from jax_maddness.core.stack import Stacked
from jax_maddness.core.types import LEVELS, ObliqueTrees, SplitTrees

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int8, Int32, UInt8

_NEVER_RIGHT = jnp.iinfo(jnp.int32).min
_ALWAYS_LEFT = jnp.iinfo(jnp.int32).max
_LIMIT = 127.0


def encode(x: Float[Array, "... features"], trees: SplitTrees | ObliqueTrees) -> UInt8[Array, "... codebooks"]:
    """Encodes every row of `x` as one 4-bit code per codebook.

    Codebook `c` walks a balanced tree of depth 4. At level `l` a row goes right when
    `x[..., indices[c, l]] > threshold` of the node it stands on; the leaf it reaches is its code
    (Blalock & Guttag 2021, Algorithm 1). The comparison is IEEE f32's on every backend: bfloat16 and float16 are
    widened first, ties and NaN go left, -0 equals +0, denormals count. `ObliqueTrees` compare integer projections of
    rounded features in place of the features.

    Codes are not differentiable: gradients stop here.

    Args:
      x: rows of float32, bfloat16 or float16; any leading dimensions, also none, also empty ones.
      trees: one split tree per codebook, of either kind.

    Raises:
      TypeError: `x` is of another dtype.
      ValueError: `x` does not have the number of features that `trees` was learned from.

    Example:
      >>> trees = SplitTrees(indices=jnp.zeros((1, 4), int), thresholds=jnp.zeros((1, 15)))
      >>> encode(jnp.array([[-1.0], [1.0]]), trees).tolist()
      [[0], [15]]
    """
    x = validate.rows(x, trees)
    return _stacked[type(trees)](*lax.stop_gradient((x, *arrays(trees))))


def arrays(trees: SplitTrees | ObliqueTrees) -> tuple[Array, ...]:
    """The arrays of `trees` in the types that its definition and its kernels take."""
    dtypes = KINDS[type(trees)].dtypes
    return tuple(a.astype(dtype) for a, dtype in zip(jax.tree.leaves(trees), dtypes, strict=True))


# ---- Trees that compare features ----


def definition(
    x: Float[Array, "ops ... features"],
    indices: Int32[Array, "ops codebooks 4"],
    thresholds: Float[Array, "ops codebooks 15"],
) -> UInt8[Array, "ops ... codebooks"]:
    """`encode` for a batch of ops, in pure JAX: the answer that every tier must give."""
    values = jax.vmap(_features)(_ordered(x, nan=_NEVER_RIGHT), indices)
    return _walk(values, _ordered(thresholds, nan=_ALWAYS_LEFT))


def _walk(
    values: Int32[Array, "ops ... codebooks 4"], thresholds: Int32[Array, "ops codebooks 15"]
) -> UInt8[Array, "ops ... codebooks"]:
    """The leaf that is reached by going right where the level's value is greater than the node's threshold."""
    lead = (slice(None), *[None] * (values.ndim - 3))
    nodes = thresholds[lead]  # [ops, 1..., codebooks, 15]
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


def _features(x: Array, indices: Int32[Array, "codebooks width"]) -> Array:
    """The features `x [..., features]` that each codebook wants: `[..., codebooks, width]`."""
    return jnp.take(x, indices, axis=-1, mode="clip")


# ---- Trees that compare projections ----


def definition_oblique(
    x: Float[Array, "ops ... features"],
    features: Int32[Array, "ops codebooks width"],
    projections: Int8[Array, "ops codebooks 4 width"],
    thresholds: Int32[Array, "ops codebooks 15"],
    center: Float[Array, "ops features"],
    scale: Float[Array, "ops features"],
) -> UInt8[Array, "ops ... codebooks"]:
    """`encode` with `ObliqueTrees` for a batch of ops, in pure JAX: an int8 product, as matrix units have it."""
    lead = (slice(None), *[None] * (x.ndim - 2))
    q = jax.vmap(_features)(_rounded(x, center[lead], scale[lead]), features)
    values = jnp.einsum("b...cw,bclw->b...cl", q, projections, preferred_element_type=jnp.int32)
    return _walk(values, thresholds)


def _rounded(x: Float[Array, "..."], center: Float[Array, "..."], scale: Float[Array, "..."]) -> Int8[Array, "..."]:
    """`rint((x - center) * scale)` in [-127, 127]; NaN becomes -127."""
    steps = (_without_denormals(x) - center) * scale
    return jnp.where(steps > -_LIMIT, jnp.minimum(jnp.rint(steps), _LIMIT), -_LIMIT).astype(jnp.int8)


def _without_denormals(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` as float32, denormals, which the scale is too small to make matter, being zero.

    By way of integers, so that no compiler contracts a multiplication that made `x` with what follows.
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return lax.bitcast_convert_type(jnp.where(bits & 0x7F800000 == 0, 0, bits), jnp.float32)


# ---- Both kinds ----


class Kind(NamedTuple):
    """A kind of split tree, as the functions that encode need it."""

    definition: Callable[..., Any]
    dtypes: tuple[Any, ...]
    """Of its arrays, in the order of its fields."""
    rule: str
    """Their dimensions, for `Stacked`."""
    suffix: str
    """Of its targets' names."""


KINDS: dict[type, Kind] = {
    SplitTrees: Kind(definition, (jnp.int32, jnp.float32), "b c l, b c t", ""),
    ObliqueTrees: Kind(
        definition_oblique,
        (jnp.int32, jnp.int8, jnp.int32, jnp.float32, jnp.float32),
        "b c w, b c l w, b c t, b d, b d",
        "_oblique",
    ),
}
_stacked = {
    trees: Stacked(kind.definition, f"jax_maddness_encode{kind.suffix}", f"b {{rows}} d, {kind.rule} -> b {{rows}} c")
    for trees, kind in KINDS.items()
}
