"""Look-ups propose, exact products decide: the greatest outputs of a layer, its maximum, and its abnormal rows."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_maddness.core.amm import amm
from jax_maddness.core.types import MaddnessOp
from jax_maddness.learn import validate
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.search import search, validate_counts

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Bool, Float, Int32

_einsum = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)


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
    columns = jnp.take(_weights(op_or_index, w), candidates, axis=1)
    values = _einsum("...d,d...k->...k", x, columns)
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
    weights = _weights(op, w)
    y = jnp.moveaxis(amm(x, op), -2, -1)  # [..., outputs, positions]
    chosen = y.argmax(-1)[..., None] if num_candidates == 1 else lax.top_k(y, min(num_candidates, y.shape[-1]))[1]
    rows = jnp.take_along_axis(x[..., None, :, :], chosen[..., None], -2)  # [..., outputs, candidates, features]
    greatest = _einsum("...mkd,dm->...mk", rows, weights).max(-1)
    return (greatest + (0.0 if bias is None else bias)).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class OutlierRows:
    """Says which rows are abnormal: those far from the rows that `fit_outlier_rows` saw.

    Attributes:
      center, scale: mean and standard deviation of each feature.
      threshold: a row is abnormal if its root mean squared distance, in standard deviations, is greater.
    """

    center: Float[Array, " features"]
    scale: Float[Array, " features"]
    threshold: Float[Array, ""]

    def distance(self, x: Float[Array, "... features"]) -> Float[Array, "..."]:
        """In standard deviations; infinite for a row with NaN."""
        distance = jnp.sqrt((((x.astype(jnp.float32) - self.center) / self.scale) ** 2).mean(-1))
        return jnp.where(jnp.isnan(distance), jnp.inf, distance)

    def __call__(self, x: Float[Array, "... features"]) -> Bool[Array, "..."]:
        """Which rows are abnormal."""
        return self.distance(x) > self.threshold

    def share(self, x: Float[Array, "... features"]) -> Float[Array, ""]:
        """The share of the rows of `x` that are abnormal: what exact rows will cost."""
        return self(x).mean(dtype=jnp.float32)


def fit_outlier_rows(x_train: Float[ArrayLike, "... features"], share: float = 0.01) -> OutlierRows:
    """A rule by which the given share of the rows of `x_train` is abnormal.

    Raises:
      ValueError: `share` is not between 0 and 1, or `x_train` is as `fit` would not take it.
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` is {share}; expected a number between 0 and 1.")
    rows = validate.samples(x_train)
    deviation = rows.std(0, dtype=np.float64).astype(np.float32)
    scale = np.where(deviation > 0, deviation, max(float(deviation.max()), 1.0)).astype(np.float32)
    rule = OutlierRows(jnp.asarray(rows.mean(0, dtype=np.float64), jnp.float32), jnp.asarray(scale), jnp.float32(0))
    return dataclasses.replace(rule, threshold=jnp.quantile(rule.distance(jnp.asarray(rows)), 1 - share))


def amm_with_exact_rows(
    x: Float[Array, "... features"],
    op: MaddnessOp,
    rows: OutlierRows | Bool[Array, "..."],
    max_exact: int,
    w: Float[Array, "features outputs"] | None = None,
    bias: Float[Array, " outputs"] | None = None,
) -> Float[Array, "... outputs"]:
    """`amm(x, op)` with up to `max_exact` of its rows exact: those that a rule calls abnormal, or that a mask names.

    Look-ups are worst on rows unlike those that they were learned from, and a few of these can decide a maximum. Where
    more than `max_exact` rows qualify, the farthest are exact by a rule, the first by a mask.

    Args:
      x: rows.
      op: what `fit` learned.
      rows: what `fit_outlier_rows` learned, or a mask of the shape of `x` without its last dimension.
      max_exact: how many rows, over all leading dimensions, are multiplied exactly: always that many, as shapes are
        static under `jax.jit`. `rule.share(x)` tells how many it takes.
      w: the weights, for an op that does not keep them.
      bias: what is added to the products; an op has it in its tables only, so that it is needed here again.

    Raises:
      ValueError: the mask has another shape, `max_exact` is negative, or there are no weights.
    """
    if max_exact < 0:
        raise ValueError(f"`max_exact` is {max_exact}; expected a number of rows.")
    y, weights = amm(x, op), _weights(op, w)
    if isinstance(rows, OutlierRows):
        distance = rows.distance(x)
        urgency = jnp.where(distance > rows.threshold, distance, -1.0)
    else:
        urgency = jnp.where(jnp.asarray(rows), 1.0, -1.0)
    if urgency.shape != x.shape[:-1]:
        raise ValueError(f"`rows` has shape {urgency.shape}; expected {x.shape[:-1]}, one entry for each row of `x`.")
    flat, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    urgency, chosen = lax.top_k(urgency.reshape(-1), min(max_exact, len(flat)))
    exact = _einsum("nd,dm->nm", flat[chosen], weights) + (0.0 if bias is None else bias)
    exact = jnp.where(urgency[:, None] > 0, exact.astype(y.dtype), flat_y[chosen])
    return flat_y.at[chosen].set(exact, unique_indices=True).reshape(y.shape)


def _weights(op: MaddnessOp, w: Array | None) -> Array:
    weights = op.weights if w is None else w
    if weights is None:
        raise ValueError("`op` does not keep `w`, which rescoring needs. Pass `w`, or `fit(..., keep_weights=True)`.")
    if weights.ndim != 2 or weights.shape[1] != op.num_outputs:
        raise ValueError(f"`w` has shape {weights.shape}; expected [features, {op.num_outputs}], as `op` has.")
    return weights
