"""Rows that are unlike those that look-ups were learned from, and `amm` with exact products for them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jax_maddness.core.amm import amm
from jax_maddness.core.types import MaddnessOp
from jax_maddness.learn import validate
from jax_maddness.retrieval.top_k import exact_einsum, exact_weights


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
    y, weights = amm(x, op), exact_weights(op, w)
    if isinstance(rows, OutlierRows):
        distance = rows.distance(x)
        urgency = jnp.where(distance > rows.threshold, distance, -1.0)
    else:
        urgency = jnp.where(jnp.asarray(rows), 1.0, -1.0)
    if urgency.shape != x.shape[:-1]:
        raise ValueError(f"`rows` has shape {urgency.shape}; expected {x.shape[:-1]}, one entry for each row of `x`.")
    flat, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    urgency, chosen = lax.top_k(urgency.reshape(-1), min(max_exact, len(flat)))
    exact = exact_einsum("nd,dm->nm", flat[chosen], weights) + (0.0 if bias is None else bias)
    exact = jnp.where(urgency[:, None] > 0, exact.astype(y.dtype), flat_y[chosen])
    return flat_y.at[chosen].set(exact, unique_indices=True).reshape(y.shape)
