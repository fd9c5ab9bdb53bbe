"""Outlier rows, which are unlike those that look-ups were learned from, and `amm` with exact products for them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jax_maddness.core.amm import amm
from jax_maddness.core.pytrees import pytree, register_with_flax
from jax_maddness.core.types import MaddnessOp
from jax_maddness.learn import validate
from jax_maddness.learn.data.modes import modes
from jax_maddness.retrieval import validate as arguments
from jax_maddness.retrieval.explicit import by_rows, replicated, taken
from jax_maddness.retrieval.top_k import exact_bias, exact_einsum, exact_weights


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class OutlierRows:
    """A rule that finds outlier rows: those far from the rows that `fit_outlier_rows` was given. A pytree.

    A row is an outlier if `sqrt(mean_d ((x[d] - center[d]) / scale[d])**2)` is greater than `threshold`.

    Attributes:
      center: mean of each training feature.
      scale: standard deviation of each training feature, in the units of the feature.
      threshold: greatest distance of a row that is no outlier, in standard deviations.

    Example:
      >>> rule = OutlierRows(center=jnp.zeros(2), scale=jnp.ones(2), threshold=jnp.float32(3))
      >>> rule(jnp.array([[0.0, 1.0], [9.0, 0.0]])).tolist()
      [False, True]
    """

    center: Float[Array, " features"]
    scale: Float[Array, " features"]
    threshold: Float[Array, ""]

    def distance(self, x: Float[Array, "... features"]) -> Float[Array, "..."]:
        """Returns the distance of each row from the center, in standard deviations; infinity for a row with NaN."""
        center, scale = (jnp.expand_dims(a, tuple(range(x.ndim - 1))) for a in (self.center, self.scale))
        deviation = jnp.abs((lax.stop_gradient(x).astype(jnp.float32) - center) / scale)
        largest = deviation.max(-1, keepdims=True)
        usable = (largest > 0) & (largest < jnp.inf)  # squares of deviations themselves could overflow
        parts = deviation / jnp.where(usable, largest, 1.0)
        distance = jnp.where(usable, largest, 1.0)[..., 0] * jnp.sqrt((parts * parts).mean(-1))
        return jnp.where(jnp.isnan(distance), jnp.inf, distance)

    def __call__(self, x: Float[Array, "... features"]) -> Bool[Array, "..."]:
        """Returns, for each row, whether it is an outlier."""
        return self.distance(x) > self.threshold

    def share(self, x: Float[Array, "... features"]) -> Float[Array, ""]:
        """Returns the share of the rows of `x` that are outliers, which determines the cost of exact rows."""
        return self(x).mean(dtype=jnp.float32)


def fit_outlier_rows(x_train: Float[ArrayLike, "... features"], share: float = 0.01) -> OutlierRows:
    """Learns a rule by which the given share of the rows of `x_train` are outliers.

    Args:
      x_train: training rows, of any real dtype, with finite values; any leading dimensions.
      share: share of these rows that are outliers, between 0 and 1.

    Returns:
      The rule, for `amm_with_exact_rows`.

    Raises:
      TypeError: `x_train` has the wrong type, or is traced.
      ValueError: `share` is not between 0 and 1, or `x_train` has no rows or values that are not finite.

    Example:
      >>> rows = np.random.default_rng(0).standard_normal((1000, 8))
      >>> rule = fit_outlier_rows(rows, share=0.05)
      >>> round(float(rule.share(jnp.float32(rows))), 2)
      0.05
    """
    register_with_flax()
    share = arguments.share(share, "share")
    if not 0 < share < 1:
        raise ValueError(f"`share` is {share}; expected a number between 0 and 1.")
    rows = validate.samples(arguments.array(x_train, "x_train"))
    deviation = rows.std(0, dtype=np.float64).astype(np.float32)
    scale = np.where(deviation > 0, deviation, max(float(deviation.max()), 1.0)).astype(np.float32)
    rule = OutlierRows(jnp.asarray(rows.mean(0, dtype=np.float64), jnp.float32), jnp.asarray(scale), jnp.float32(0))
    return dataclasses.replace(rule, threshold=_quantile(rule, rows, 1 - share))


def _quantile(rule: OutlierRows, rows: np.ndarray, share: float) -> Float[Array, ""]:
    with modes():
        return jnp.quantile(rule.distance(jnp.asarray(rows)), share)


def amm_with_exact_rows(
    x: Float[Array, "... features"],
    op: MaddnessOp,
    rows: OutlierRows | Bool[Array, "..."],
    max_exact: int,
    w: Float[Array, "features outputs"] | None = None,
    bias: Float[Array, " outputs"] | None = None,
) -> Float[Array, "... outputs"]:
    """Computes `amm(x, op)` with exact products for up to `max_exact` rows: outlier rows, or those of a mask.

    Look-ups have the largest errors on rows unlike those that they were learned from, and a few such rows can decide a
    maximum. If more than `max_exact` rows qualify, those farthest from the center are exact by a rule, and the first
    ones by a mask.

    Args:
      x: rows of float32, bfloat16 or float16; any leading dimensions.
      op: the op that `fit` returned.
      rows: the rule that `fit_outlier_rows` returned, or a mask of the shape of `x` without its last dimension.
      max_exact: number of rows, over all leading dimensions, that are multiplied exactly. It is always that many,
        because shapes are static under `jax.jit`; `rule.share(x)` tells how many are needed.
      w: the exact weights, for an op that does not keep them.
      bias: bias of the exact products. An op has its bias only as a part of its tables, so that it must be passed here
        again.

    Returns:
      The outputs, in the dtype of `x`, with its leading dimensions.

    Raises:
      TypeError: `x` is neither float32, bfloat16 nor float16.
      ValueError: the mask has another shape, `max_exact` is negative, or there are no weights.

    Example:
      >>> from jax_maddness import LookupTables, SplitTrees
      >>> trees = SplitTrees(jnp.zeros((1, 4), int), jnp.zeros((1, 15)), 1)
      >>> op = MaddnessOp(trees, LookupTables(jnp.zeros((1, 1, 16), jnp.uint8), jnp.ones(1), jnp.zeros(1)))
      >>> x, w = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[10.0]])
      >>> amm_with_exact_rows(x, op, jnp.array([False, True, False]), max_exact=1, w=w).tolist()
      [[0.0], [20.0], [0.0]]
    """
    max_exact = arguments.integer(max_exact, "max_exact")
    if max_exact < 0:
        raise ValueError(f"`max_exact` is {max_exact}; expected a number of rows.")
    x = arguments.row_array(x, "x")
    weights, bias = exact_weights(op, w, x), exact_bias(op, bias)
    if isinstance(rows, OutlierRows):
        if rows.center.shape != x.shape[-1:]:
            raise ValueError(f"`rows` was fitted to {rows.center.shape[-1]} features, but `x` has {x.shape[-1]}.")
    else:
        mask = arguments.array(rows, "rows")
        if mask.dtype != np.bool_:
            raise TypeError(f"`rows` is {mask.dtype}; expected an OutlierRows, or a mask of bool.")
        if mask.shape != x.shape[:-1]:
            raise ValueError(f"`rows` has shape {mask.shape}; expected {x.shape[:-1]}, one entry for each row of `x`.")
        rows = jnp.asarray(mask)
    return _with_exact_rows(x, op, rows, weights, bias, max_exact)


@functools.partial(jax.jit, static_argnames="max_exact", inline=True)
def _with_exact_rows(
    x: Array, op: MaddnessOp, rows: OutlierRows | Array, weights: Array, bias: Array | None, max_exact: int
) -> Array:
    if isinstance(rows, OutlierRows):
        distance = by_rows(lambda x, rule: rule.distance(x), x, x.ndim - 1, rows)
        urgency = jnp.where(distance > rows.threshold, distance, -1.0)
    else:
        urgency = jnp.where(rows, 1.0, -1.0)
    # Chosen among all rows; each device then multiplies those that it holds.
    flat = replicated(urgency).reshape(-1)
    urgent, chosen = lax.top_k(flat, min(max_exact, flat.size))
    mask = jnp.zeros(flat.shape, bool).at[chosen].set(urgent > 0, unique_indices=True).reshape(x.shape[:-1])

    def on_rows(x: Array, op: MaddnessOp, weights: Array, bias: Array | None, mask: Array) -> Array:
        y = amm(x, op)
        rows, outputs, is_chosen = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), mask.reshape(-1)
        is_exact, chosen = lax.top_k(is_chosen.astype(jnp.int32), min(max_exact, is_chosen.size))
        exact = exact_einsum("nd,dm->nm", taken(rows, chosen, 0).astype(jnp.float32), weights.astype(jnp.float32))
        exact = (exact if bias is None else exact + bias[None, :]).astype(y.dtype)
        exact = jnp.where(is_exact[:, None] > 0, exact, taken(outputs, chosen, 0))
        return outputs.at[chosen].set(exact, unique_indices=True).reshape(y.shape)

    return by_rows(on_rows, x, x.ndim - 1, op, weights, bias, by_row=mask)
