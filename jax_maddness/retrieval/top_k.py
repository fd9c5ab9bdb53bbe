"""The greatest outputs of a layer and its maximum over positions, by look-ups and exact products of candidates."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Integer

from jax_maddness.core.amm import amm
from jax_maddness.core.types import MaddnessOp
from jax_maddness.retrieval import validate
from jax_maddness.retrieval.explicit import by_rows, taken
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.products import best
from jax_maddness.retrieval.restrict import Restrictions, joined, merged, validated
from jax_maddness.retrieval.search import search, validate_counts

exact_einsum = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)
"""`jnp.einsum` in float32 on all platforms."""


def top_k(
    x: Float[Array, "... features"],
    op_or_index: MaddnessOp | VectorIndex,
    w: Float[Array, "features outputs"] | None = None,
    *,
    k: int = 5,
    bias: Float[Array, " outputs"] | None = None,
    num_candidates: int = 32,
    recall: float | None = None,
    exclude: Integer[Array, "... excluded"] | Bool[Array, "... outputs"] | None = None,
    always: Integer[Array, "... always"] | None = None,
    score_bias: Float[Array, "... outputs"] | None = None,
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
      recall: for an index, the share of the true `k` greatest outputs that is to be found, in place of
        `num_candidates`; see `search`.
      exclude: outputs that are not returned: their indices, or a mask, True for those; for each row, or the same for
        all. The result is as if they did not exist.
      always: outputs that are rescored beside the candidates, whatever the codes say, such as the end of a text; for
        each row, or the same for all. `exclude` goes first.
      score_bias: finite numbers to add to the outputs, as for penalties or another model's scores; for each row, or the
        same for all. Candidates are chosen with it.

    Returns:
      The values, float32, greatest first, and the indices of the outputs, int32. Of equal values, that of the lower
      index comes first. A row with NaN or an infinity gets the values NaN and the indices -1. If fewer than `k` outputs
      are not excluded, the remaining values are -inf and their indices -1.

    Raises:
      TypeError: `op_or_index` is neither an op nor an index, or an argument has the wrong type.
      ValueError: shapes do not match, `bias` is not finite, `k` exceeds the number of outputs, or there are no weights.

    Example:
      >>> from jax_maddness import LookupTables, SplitTrees
      >>> trees = SplitTrees(jnp.zeros((1, 4), int), jnp.zeros((1, 15)), 1)
      >>> op = MaddnessOp(trees, LookupTables(jnp.zeros((3, 1, 16), jnp.uint8), jnp.ones(3), jnp.zeros(3)))
      >>> values, outputs = top_k(jnp.array([[2.0]]), op, w=jnp.array([[1.0, 5.0, 3.0]]), k=2, num_candidates=3)
      >>> values.tolist(), outputs.tolist()
      ([[10.0, 6.0]], [[1, 2]])
    """
    if isinstance(w, int | np.integer):
        raise TypeError(f"`w` is {w}. The number of outputs is passed by its name: `top_k(x, ..., k={w})`.")
    if isinstance(op_or_index, VectorIndex):
        if w is not None or bias is not None or op_or_index.metric != "ip":
            raise ValueError(
                "An index has its own vectors and bias, and must be for 'ip'. Leave out `w` and `bias`: "
                "`build_index(w.T, bias=bias)`."
            )
        if validate.integer(k, "k") > op_or_index.count:
            raise ValueError(f"`k` is {k}, but `index` has {op_or_index.count} outputs. Ask for fewer.")
        restrictions: dict[str, Any] = {"exclude": exclude, "always": always, "score_bias": score_bias}
        return search(x, op_or_index, k, num_candidates=num_candidates, recall=recall, **restrictions)
    if not isinstance(op_or_index, MaddnessOp):
        raise TypeError(f"`op_or_index` is {type(op_or_index).__name__}; expected a MaddnessOp or a VectorIndex.")
    if recall is not None:
        raise ValueError("`recall` needs an index, which measures it: `build_index(w.T, queries=samples of x)`.")
    k, num_candidates = validate_counts(k, num_candidates)
    if always is not None and not num_candidates:
        raise ValueError(
            "`always` names outputs to rescore, but `num_candidates` is 0. Take candidates, or leave it out."
        )
    x = validate.row_array(x, "x")
    if k > op_or_index.num_outputs:
        raise ValueError(f"`k` is {k}, but `op` has {op_or_index.num_outputs} outputs. Ask for fewer.")
    weights = exact_weights(op_or_index, w, x) if num_candidates else None
    given = validated(x.shape[:-1], op_or_index.num_outputs, exclude, always, score_bias)
    return _top_k(x, op_or_index, weights, exact_bias(op_or_index, bias), k, num_candidates, given)


@functools.partial(jax.jit, static_argnames=("k", "num_candidates"), inline=True)
def _top_k(
    x: Array,
    op: MaddnessOp,
    weights: Array | None,
    bias: Array | None,
    k: int,
    num_candidates: int,
    given: Restrictions | None,
) -> tuple[Array, Array]:
    given = Restrictions() if given is None else given

    def on_rows(
        x: Array, op: MaddnessOp, weights: Array | None, bias: Array | None, shared: Restrictions, own: Restrictions
    ) -> tuple[Array, Array]:
        leading = x.shape[:-1]
        given, x = merged(shared, own).flat(leading), x.reshape(-1, x.shape[-1])
        finite = jnp.isfinite(x).all(-1, keepdims=True)
        x = jnp.where(finite, x, jnp.zeros((), x.dtype))
        given = given.positions(jnp.arange(op.num_outputs, dtype=jnp.int32), op.num_outputs)
        y = amm(x, op).astype(jnp.float32)
        y = y if given.score_bias is None else y + given.score_bias
        y = jnp.where(given.dense(*y.shape), -jnp.inf, y)
        values, outputs = lax.top_k(y, min(max(k, num_candidates), op.num_outputs))
        outputs = jnp.where(values == -jnp.inf, -1, outputs)
        if weights is not None:
            outputs = jnp.sort(joined(outputs, given), -1)
            values, outputs = best(_rescored(x, weights, bias, outputs, given), outputs, k)
        values, outputs = jnp.where(finite, values, jnp.nan), jnp.where(finite, outputs, -1)
        return values.reshape(*leading, k), outputs.reshape(*leading, k)

    return by_rows(on_rows, x, x.ndim - 1, op, weights, bias, given.shared(), by_row=given.own())


def _rescored(
    x: Array, weights: Array, bias: Array | None, outputs: Int32[Array, "rows candidates"], given: Restrictions
) -> Float[Array, "rows candidates"]:
    """Returns the exact values of candidates; -inf at index -1."""
    known = jnp.maximum(outputs, 0)
    columns = taken(weights.astype(jnp.float32), known, 1)
    values = exact_einsum("nd,dnk->nk", x.astype(jnp.float32), columns)
    for added in (None if bias is None else taken(bias, known, 0), given.bias_at(outputs)):
        values = values if added is None else values + added
    return jnp.where(outputs < 0, -jnp.inf, values)


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


def exact_weights(op: MaddnessOp, w: Array | None, x: Array) -> Array:
    """Returns the weights to rescore with: `w`, or those that `op` keeps.

    Raises:
      TypeError: `w` is no array of floating-point numbers, or `op` is no op.
      ValueError: there are neither, or their shape does not match `op` and `x`.
    """
    if not isinstance(op, MaddnessOp):
        raise TypeError(f"`op` is {type(op).__name__}; expected a MaddnessOp.")
    if w is None and op.weights is None:
        raise ValueError("`op` does not keep `w`, which rescoring needs. Pass `w`, or `fit(..., keep_weights=True)`.")
    weights = op.weights if w is None else validate.row_array(w, "w")
    assert weights is not None
    if weights.shape != (x.shape[-1], op.num_outputs):
        raise ValueError(
            f"`w` has shape {weights.shape}; expected [{x.shape[-1]}, {op.num_outputs}], the features of `x` and the "
            "outputs of `op`."
        )
    return weights


def exact_bias(op: MaddnessOp, bias: Array | None) -> Array | None:
    """Returns the bias of exact products in float32.

    Raises:
      TypeError: `bias` is no array of floating-point numbers.
      ValueError: it does not have one number for each output of `op`, or one that is not finite.
    """
    if bias is None:
        return None
    bias = validate.row_array(bias, "bias").astype(jnp.float32)
    if bias.shape != (op.num_outputs,):
        raise ValueError(f"`bias` has shape {bias.shape}; expected ({op.num_outputs},), one number for each output.")
    if not isinstance(bias, jax.core.Tracer) and not np.isfinite(np.asarray(bias)).all():
        raise ValueError("`bias` has NaN or infinite values. To mask outputs, pass a finite number such as -1e9.")
    return bias
