"""Look-ups propose, exact products decide: the greatest outputs of a layer, and its maximum over positions."""

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


def top_k(
    x: Float[Array, "... features"],
    op_or_index: MaddnessOp | VectorIndex,
    w: Float[Array, "features outputs"] | None = None,
    k: int = 5,
    *,
    bias: Float[Array, " outputs"] | None = None,
    num_candidates: int = 32,
) -> tuple[Float[Array, "... k"], Int32[Array, "... k"]]:
    """The `k` greatest outputs of `x @ w + bias`, exact if they are among the `num_candidates` that look-ups propose.

    Args:
      x: rows.
      op_or_index: an index over the columns of `w`, `build_index(w.T, bias=bias, queries=samples of x)`, with `w` and
        `bias` in it. Or what `fit` learned for `w`: slower (`benchmarks/orientation.py`), where there is one anyway.
      w: the weights, for an op that does not keep them. With `fit(..., keep_weights=True)` they are in the op.
      k: how many; fewer outputs than that are an error.
      bias: what is added to the products; an op has it in its tables only, so that it is needed here again.
      num_candidates: how many candidates are multiplied exactly, at least `k`. 0: none.

    Returns:
      Values in float32, greatest first, and which outputs they are. Of equal values the lower output comes first.

    Raises:
      TypeError: `op_or_index` is neither.
      ValueError: sizes do not fit, or there are no weights.
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
    values, at = lax.top_k(values, k)
    return values, jnp.take_along_axis(candidates, at, -1)


def max_over_positions(
    x: Float[Array, "... positions features"],
    op: MaddnessOp,
    w: Float[Array, "features outputs"] | None = None,
    bias: Float[Array, " outputs"] | None = None,
    *,
    num_candidates: int = 1,
) -> Float[Array, "... outputs"]:
    """The maximum over positions of `x @ w + bias`: look-ups choose `num_candidates` positions for each output, exact
    products
    decide among them. What a convolution with global max pooling after it needs.

    Never above the true maximum, up to rounding, as every candidate is exact. Costs `num_candidates` products of D
    per output.

    Raises:
      ValueError: there is no position, `num_candidates` is not positive, or there are no weights.
    """
    if x.ndim < 2 or not x.shape[-2] or num_candidates < 1:
        raise ValueError(
            f"`x` has shape {x.shape} and `num_candidates` is {num_candidates}; expected [..., positions, "
            f"features], at least one "
            "position, and `num_candidates >= 1`."
        )
    weights = exact_weights(op, w)
    y = jnp.moveaxis(amm(x, op), -2, -1)  # [..., outputs, positions]
    chosen = y.argmax(-1)[..., None] if num_candidates == 1 else lax.top_k(y, min(num_candidates, y.shape[-1]))[1]
    rows = jnp.take_along_axis(x[..., None, :, :], chosen[..., None], -2)  # [..., outputs, candidates, features]
    greatest = exact_einsum("...mkd,dm->...mk", rows, weights).max(-1)
    return (greatest + (0.0 if bias is None else bias)).astype(x.dtype)


def exact_weights(op: MaddnessOp, w: Array | None) -> Array:
    """The weights to rescore with: `w`, or those that `op` keeps."""
    weights = op.weights if w is None else w
    if weights is None:
        raise ValueError("`op` does not keep `w`, which rescoring needs. Pass `w`, or `fit(..., keep_weights=True)`.")
    if weights.ndim != 2 or weights.shape[1] != op.num_outputs:
        raise ValueError(f"`w` has shape {weights.shape}; expected [features, {op.num_outputs}], as `op` has.")
    return weights
