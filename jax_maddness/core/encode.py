"""x -> codes: which leaf of each codebook's split tree a row reaches."""

from __future__ import annotations

from jax import lax
from jaxtyping import Array, Float, UInt8

from jax_maddness.core import validate
from jax_maddness.core.stack import Stacked
from jax_maddness.core.types import KINDS, Trees


def encode(x: Float[Array, "... features"], trees: Trees) -> UInt8[Array, "... codebooks"]:
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
      >>> from jax_maddness import SplitTrees
      >>> import jax.numpy as jnp
      >>> trees = SplitTrees(indices=jnp.zeros((1, 4), int), thresholds=jnp.zeros((1, 15)))
      >>> encode(jnp.array([[-1.0], [1.0]]), trees).tolist()
      [[0], [15]]
    """
    x = validate.rows(x, trees)
    return _stacked[type(trees)](*lax.stop_gradient((x, *trees.arrays())))


_stacked = {
    kind: Stacked(
        kind.definition, f"jax_maddness_encode{kind.target_suffix}", f"b {{rows}} d, {kind.dimensions} -> b {{rows}} c"
    )
    for kind in KINDS
}
