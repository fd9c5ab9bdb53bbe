"""The maximum of a layer's outputs over positions, by look-ups and exact products of candidates."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_maddness.core.amm import amm
from jax_maddness.core.types import MaddnessOp
from jax_maddness.retrieval import validate
from jax_maddness.retrieval.explicit import by_rows
from jax_maddness.retrieval.top_k import exact_bias, exact_einsum, exact_weights


def max_over_positions(
    x: Float[Array, "... positions features"],
    op: MaddnessOp,
    w: Float[Array, "features outputs"] | None = None,
    bias: Float[Array, " outputs"] | None = None,
    *,
    num_candidates: int = 1,
) -> Float[Array, "... outputs"]:
    """Computes the maximum of `x @ w + bias` over positions, as a convolution before global max pooling needs it.

    Look-ups choose `num_candidates` positions for each output, and their exact products decide. As every candidate is
    exact, the result is never above the true maximum, up to rounding. Rescoring takes `num_candidates * D`
    multiply-adds per output.

    Args:
      x: rows of float32, bfloat16 or float16, one for each position; any leading dimensions before the positions.
      op: the op that `fit` returned for `w`.
      w: the exact weights, for an op that does not keep them (`fit(..., keep_weights=True)` does).
      bias: bias of the exact products. An op has its bias only as a part of its tables, so that it must be passed here
        again.
      num_candidates: number of positions that are rescored for each output, at least 1.

    Returns:
      The maximum of each output, in the dtype of `x`, without the dimension of positions. If a position has NaN, every
      output is NaN, as the exact maximum is.

    Raises:
      TypeError: `x` is neither float32, bfloat16 nor float16, or another argument has the wrong type.
      ValueError: there is no position, `num_candidates` is not positive, or there are no weights.

    Example:
      >>> from jax_maddness import LookupTables, SplitTrees
      >>> trees = SplitTrees(jnp.zeros((1, 4), int), jnp.zeros((1, 15)), 1)
      >>> values = jnp.arange(16, dtype=jnp.uint8).reshape(1, 1, 16)
      >>> op = MaddnessOp(trees, LookupTables(values, jnp.ones(1), jnp.zeros(1)))
      >>> max_over_positions(jnp.array([[-1.0], [3.0], [-2.0]]), op, w=jnp.array([[2.0]])).tolist()
      [6.0]
    """
    num_candidates = validate.integer(num_candidates, "num_candidates")
    x = validate.row_array(x, "x")
    if x.ndim < 2 or not x.shape[-2] or num_candidates < 1:
        raise ValueError(
            f"`x` has shape {x.shape} and `num_candidates` is {num_candidates}; expected [..., positions, features], "
            "at least one position, and `num_candidates >= 1`."
        )
    return _max_over_positions(x, op, exact_weights(op, w, x), exact_bias(op, bias), num_candidates)


@functools.partial(jax.jit, static_argnames="num_candidates", inline=True)
def _max_over_positions(x: Array, op: MaddnessOp, weights: Array, bias: Array | None, num_candidates: int) -> Array:
    def on_examples(x: Array, op: MaddnessOp, weights: Array, bias: Array | None) -> Array:
        y = jnp.moveaxis(amm(x, op), -2, -1)  # [..., outputs, positions]
        chosen = y.argmax(-1)[..., None] if num_candidates == 1 else lax.top_k(y, min(num_candidates, y.shape[-1]))[1]
        rows = jnp.take_along_axis(x[..., None, :, :], chosen[..., None], -2)  # [..., outputs, candidates, features]
        greatest = exact_einsum("...mkd,dm->...mk", rows.astype(jnp.float32), weights.astype(jnp.float32)).max(-1)
        if bias is not None:
            greatest = greatest + jnp.expand_dims(bias, tuple(range(greatest.ndim - 1)))
        has_nan = jnp.isnan(x).any((-2, -1))[..., None]
        return jnp.where(has_nan, jnp.nan, greatest).astype(x.dtype)

    return by_rows(on_examples, x, x.ndim - 2, op, weights, bias)
