"""The greatest outputs of a layer, by look-ups and exact products of candidates."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Integer

from jax_maddness.core import arguments
from jax_maddness.core.amm import amm
from jax_maddness.core.types import MaddnessOp
from jax_maddness.retrieval import validate
from jax_maddness.retrieval.explicit import by_rows, taken
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.log_sum import LogSum, combined, terms_of
from jax_maddness.retrieval.products import best
from jax_maddness.retrieval.restrict import Restrictions, joined, merged, validated
from jax_maddness.retrieval.search import search, search_with_log_sum, validate_counts

exact_einsum = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)
"""`jnp.einsum` in float32 on all platforms."""


class _Options(TypedDict, total=False):
    k: int
    bias: Float[Array, " outputs"] | None
    num_candidates: int
    recall: float | None
    exclude: Integer[Array, "... excluded"] | Bool[Array, "... outputs"] | None
    always: Integer[Array, "... always"] | None
    score_bias: Float[Array, "... outputs"] | None


@overload
def top_k(
    x: Float[Array, "... features"],
    op_or_index: MaddnessOp | VectorIndex,
    w: Float[Array, "features outputs"] | None = None,
    *,
    log_sum: Literal[False] = False,
    **options: Unpack[_Options],
) -> tuple[Float[Array, "... k"], Int32[Array, "... k"]]: ...


@overload
def top_k(
    x: Float[Array, "... features"],
    op_or_index: MaddnessOp | VectorIndex,
    w: Float[Array, "features outputs"] | None = None,
    *,
    log_sum: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Float[Array, "... k"], Int32[Array, "... k"], LogSum]: ...


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
    log_sum: bool = False,
) -> Any:
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
      log_sum: whether to return, too, an estimate of the logarithm of the sum of the exponentials of all outputs that
        are not excluded, so that `values - log_sum.value` are log-probabilities. Candidates count exactly; the
        others are estimated from their codes and 64 samples (`log_sum.py`). Derivatives are those of the candidates'
        terms alone. Needs `num_candidates`; the more, the closer.

    Returns:
      The values, float32, greatest first, and the indices of the outputs, int32. Of equal values, that of the lower
      index comes first. A row with NaN or an infinity gets the values NaN and the indices -1. If fewer than `k` outputs
      are not excluded, the remaining values are -inf and their indices -1. With `log_sum=True` a `LogSum` is the third
      result: the estimate and its standard error, one of each for each row.

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
        if validate.integer(k, "k") > op_or_index.capacity:
            raise ValueError(f"`k` is {k}, but `index` has {op_or_index.capacity} outputs. Ask for fewer.")
        restrictions: dict[str, Any] = {"exclude": exclude, "always": always, "score_bias": score_bias}
        if not arguments.flag(log_sum, "log_sum"):
            return search(x, op_or_index, k, num_candidates=num_candidates, recall=recall, **restrictions)
        return search_with_log_sum(x, op_or_index, k, num_candidates, recall, restrictions)
    if not isinstance(op_or_index, MaddnessOp):
        raise TypeError(f"`op_or_index` is {type(op_or_index).__name__}; expected a MaddnessOp or a VectorIndex.")
    if recall is not None:
        raise ValueError("`recall` needs an index, which measures it: `build_index(w.T, queries=samples of x)`.")
    k, num_candidates = validate_counts(k, num_candidates)
    if always is not None and not num_candidates:
        raise ValueError(
            "`always` names outputs to rescore, but `num_candidates` is 0. Take candidates, or leave it out."
        )
    if arguments.flag(log_sum, "log_sum") and not num_candidates:
        raise ValueError("`log_sum` needs candidates, but `num_candidates` is 0. Take 32, or leave it out.")
    x = validate.row_array(x, "x")
    if k > op_or_index.num_outputs:
        raise ValueError(f"`k` is {k}, but `op` has {op_or_index.num_outputs} outputs. Ask for fewer.")
    weights = exact_weights(op_or_index, w, x) if num_candidates else None
    given = validated(x.shape[:-1], op_or_index.num_outputs, exclude, always, score_bias)
    return _top_k(x, op_or_index, weights, exact_bias(op_or_index, bias), k, num_candidates, given, log_sum)


@functools.partial(jax.jit, static_argnames=("k", "num_candidates", "log_sum"), inline=True)
def _top_k(
    x: Array,
    op: MaddnessOp,
    weights: Array | None,
    bias: Array | None,
    k: int,
    num_candidates: int,
    given: Restrictions | None,
    log_sum: bool,
) -> tuple[Any, ...]:
    given = Restrictions() if given is None else given

    def on_rows(
        x: Array, op: MaddnessOp, weights: Array | None, bias: Array | None, shared: Restrictions, own: Restrictions
    ) -> tuple[Any, ...]:
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
        terms = None
        if weights is not None:
            outputs = jnp.sort(joined(outputs, given), -1)
            exact = _rescored(x, weights, bias, outputs, given)
            if log_sum:
                terms = terms_of(y, outputs, exact, lambda drawn: _rescored(x, weights, bias, drawn, given))
            values, outputs = best(exact, outputs, k)
        values, outputs = jnp.where(finite, values, jnp.nan), jnp.where(finite, outputs, -1)
        results = values.reshape(*leading, k), outputs.reshape(*leading, k)
        if terms is None:
            return results
        sums = (jnp.where(finite[:, 0], a, jnp.nan).reshape(leading) for a in combined(terms))
        return (*results, LogSum(*sums))

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
