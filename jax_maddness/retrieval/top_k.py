"""The greatest outputs of a layer and its maximum over positions, by look-ups and exact products of candidates."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from jax_maddness.core.amm import amm
from jax_maddness.core.types import MaddnessOp
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.search import search, validate_counts

exact_einsum = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)
"""`jnp.einsum` in float32 on all platforms."""


def top_k(
    x: Float[Array, "... features"],
    op_or_index: MaddnessOp | VectorIndex,
    w: Float[Array, "features outputs"] | None = None,
    k: int = 5,
    *,
    bias: Float[Array, " outputs"] | None = None,
    num_candidates: int = 32,
) -> tuple[Float[Array, "... k"], Int32[Array, "... k"]]:
    """Finds the `k` greatest outputs of `x @ w + bias` for each row.

    Look-ups propose `num_candidates` outputs for each row, and their exact products decide. The results are exact if
    the true `k` greatest outputs are among the candidates.

    Args:
      x: rows of float32, bfloat16 or float16; any leading dimensions.
      op_or_index: an index over the columns of `w`, `build_index(w.T, bias=bias, queries=samples of x)`, which
        contains `w` and `bias`; or an op that `fit` returned for `w`, which is slower (`benchmarks/orientation.py`)
        but needs no index.
      w: the exact weights, for an op that does not keep them (`fit(..., keep_weights=True)` does).
      k: number of outputs for each row, at most M.
      bias: bias of the exact products. An op has its bias only as a part of its tables, so that it must be passed here
        again.
      num_candidates: number of candidates that are rescored, at least `k`. 0: no output is rescored, and the values are
        approximate.

    Returns:
      The values, float32, greatest first, and the indices of the outputs, int32. Of equal values, that of the lower
      index comes first.

    Raises:
      TypeError: `op_or_index` is neither an op nor an index.
      ValueError: shapes do not match, `k` exceeds the number of outputs, or there are no weights.

    Example:
      >>> from jax_maddness import LookupTables, SplitTrees
      >>> trees = SplitTrees(jnp.zeros((1, 4), int), jnp.zeros((1, 15)), 1)
      >>> op = MaddnessOp(trees, LookupTables(jnp.zeros((3, 1, 16), jnp.uint8), jnp.ones(3), jnp.zeros(3)))
      >>> values, outputs = top_k(jnp.array([[2.0]]), op, w=jnp.array([[1.0, 5.0, 3.0]]), k=2, num_candidates=3)
      >>> values.tolist(), outputs.tolist()
      ([[10.0, 6.0]], [[1, 2]])
    """
    if isinstance(op_or_index, VectorIndex):
        if w is not None or bias is not None or op_or_index.metric != "ip":
            raise ValueError(
                "An index has its own vectors and bias, and must be for 'ip'. Leave out `w` and `bias`: "
                "`build_index(w.T, bias=bias)`."
            )
        if k > op_or_index.count:
            raise ValueError(f"`k` is {k}, but `index` has {op_or_index.count} outputs. Ask for fewer.")
        return search(x, op_or_index, k, num_candidates=num_candidates)
    if not isinstance(op_or_index, MaddnessOp):
        raise TypeError(f"`op_or_index` is {type(op_or_index).__name__}; expected a MaddnessOp or a VectorIndex.")
    validate_counts(k, num_candidates)
    y = amm(x, op_or_index).astype(jnp.float32)
    if k > y.shape[-1]:
        raise ValueError(f"`k` is {k}, but `op` has {y.shape[-1]} outputs. Ask for fewer.")
    if not num_candidates:
        return lax.top_k(y, k)
    candidates = jnp.sort(lax.top_k(y, min(num_candidates, y.shape[-1]))[1], -1)
    columns = jnp.take(exact_weights(op_or_index, w), candidates, axis=1)
    values = exact_einsum("...d,d...k->...k", x, columns)
    if bias is not None:
        values += bias[candidates]
    values, order = lax.top_k(values, k)
    return values, jnp.take_along_axis(candidates, order, -1)


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
      The maximum of each output, in the dtype of `x`, without the dimension of positions.

    Raises:
      TypeError: `x` is neither float32, bfloat16 nor float16.
      ValueError: there is no position, `num_candidates` is not positive, or there are no weights.

    Example:
      >>> from jax_maddness import LookupTables, SplitTrees
      >>> trees = SplitTrees(jnp.zeros((1, 4), int), jnp.zeros((1, 15)), 1)
      >>> values = jnp.arange(16, dtype=jnp.uint8).reshape(1, 1, 16)
      >>> op = MaddnessOp(trees, LookupTables(values, jnp.ones(1), jnp.zeros(1)))
      >>> max_over_positions(jnp.array([[-1.0], [3.0], [-2.0]]), op, w=jnp.array([[2.0]])).tolist()
      [6.0]
    """
    if x.ndim < 2 or not x.shape[-2] or num_candidates < 1:
        raise ValueError(
            f"`x` has shape {x.shape} and `num_candidates` is {num_candidates}; expected [..., positions, features], "
            "at least one position, and `num_candidates >= 1`."
        )
    weights = exact_weights(op, w)
    y = jnp.moveaxis(amm(x, op), -2, -1)  # [..., outputs, positions]
    chosen = y.argmax(-1)[..., None] if num_candidates == 1 else lax.top_k(y, min(num_candidates, y.shape[-1]))[1]
    rows = jnp.take_along_axis(x[..., None, :, :], chosen[..., None], -2)  # [..., outputs, candidates, features]
    greatest = exact_einsum("...mkd,dm->...mk", rows, weights).max(-1)
    return (greatest + (0.0 if bias is None else bias)).astype(x.dtype)


def exact_weights(op: MaddnessOp, w: Array | None) -> Array:
    """Returns the weights to rescore with: `w`, or those that `op` keeps.

    Raises:
      ValueError: there are neither, or their shape does not match `op`.
    """
    weights = op.weights if w is None else w
    if weights is None:
        raise ValueError("`op` does not keep `w`, which rescoring needs. Pass `w`, or `fit(..., keep_weights=True)`.")
    if weights.ndim != 2 or weights.shape[1] != op.num_outputs:
        raise ValueError(f"`w` has shape {weights.shape}; expected [features, {op.num_outputs}], as `op` has.")
    return weights
