"""Encoding: finds the leaf of each codebook's split tree that a row reaches."""

from __future__ import annotations

from jax import lax
from jaxtyping import Array, Float, UInt8

from jax_maddness.core import validate
from jax_maddness.core.stack import Stacked
from jax_maddness.core.types import KINDS, Trees


def encode(x: Float[Array, "... features"], trees: Trees) -> UInt8[Array, "... codebooks"]:
    """Encodes every row of `x` as one 4-bit code per codebook.

    Codebook `c` walks a balanced tree of depth 4. At level `l` a row goes right when
    `x[..., indices[c, l]] > threshold` of the node that it has reached; the leaf that it reaches is its code
    (Blalock & Guttag 2021, Algorithm 1). The comparison follows IEEE 754 float32 on every backend: bfloat16 and
    float16 are widened first, ties and NaN go left, -0 equals +0, and denormals count. `ObliqueTrees` compare integer
    projections of rounded features in place of single features.

    Codes are not differentiable: the derivative with respect to `x` and `trees` is zero.

    Args:
      x: rows of float32, bfloat16 or float16, with any leading dimensions, including none and empty ones.
      trees: one split tree per codebook, `SplitTrees` or `ObliqueTrees`.

    Returns:
      The codes, uint8 in 0..15, with the leading dimensions of `x`.

    Raises:
      TypeError: `x` is neither float32, bfloat16 nor float16.
      ValueError: `x` does not have the number of features that `trees` was learned from.

    Example:
      >>> from jax_maddness import SplitTrees
      >>> import jax.numpy as jnp
      >>> trees = SplitTrees(indices=jnp.zeros((1, 4), int), thresholds=jnp.zeros((1, 15)))
      >>> encode(jnp.array([[-1.0], [1.0]]), trees).tolist()
      [[0], [15]]
    """
    validate.trees(trees)
    x = validate.rows(x, trees)
    return _stacked[type(trees)](*lax.stop_gradient((x, *trees.arrays())))


_stacked = {
    kind: Stacked(
        kind.definition, f"jax_maddness_encode{kind.target_suffix}", f"b {{rows}} d, {kind.dimensions} -> b {{rows}} c"
    )
    for kind in KINDS
}
