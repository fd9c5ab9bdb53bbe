"""The start of method "oblique": rounded rows, groups of features, and the trees on them from which training begins.

x, w --round--> Data --groups, directions, splits--> Start --solve--> the best penalty
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jax_maddness.core.types import LEVELS, NODES
from jax_maddness.learn.config import HELD_OUT_SHARE
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.rounding import rounded
from jax_maddness.learn.methods import groups, projections, train
from jax_maddness.learn.methods.projections import STEP, FloatTrees
from jax_maddness.learn.tables.solve import RIDGES, nearest_minimum

GROUPINGS = ("contiguous", "similar", "exchanged")
"""Names of the groupings of features that are tried, as `begin` makes them."""


class Data(NamedTuple):
    """The rows and outputs that all steps of the method share.

    Attributes:
      rows: rows to learn from; their targets have mean 0, and squares that sum to about 1 in every row.
      held_out: held-out rows, on which choices are made.
      covariance: covariance of the standardized `rows`.
      v: weights from standardized rows to all outputs, in the units of the targets.
      target_v: weights from standardized rows to the targets; features and targets are padded.
      unit: size of a unit of the targets, in units of the outputs.
      mean: mean of the exact outputs of `rows` in the directions of the targets, without the bias.
    """

    rows: train.Samples
    held_out: train.Samples
    covariance: Float[np.ndarray, "features features"]
    v: Float[np.ndarray, "features outputs"]
    target_v: Float[Array, "features kept"]
    unit: float
    mean: Float[np.ndarray, " kept"]


class Start(NamedTuple):
    """Groups of features with trees on them, from which training starts; codebooks and features are padded.

    Attributes:
      own: features of each codebook's group, padded with -1; a partition of all features.
      features: features that each codebook projects: those of `own` and, behind them, their neighbors if `width` is
        larger; padded with -1.
      trees: trees on `features`.
    """

    own: Int32[np.ndarray, "codebooks own"]
    features: Int32[np.ndarray, "codebooks width"]
    trees: FloatTrees


class Chosen(NamedTuple):
    """A model with its error on held-out rows, and with the weight of its penalty as a place in `RIDGES`."""

    model: train.Model
    error: float
    ridge: int


def prepare(
    x: np.ndarray, w: np.ndarray, center: np.ndarray, scale: np.ndarray, extra: tuple[np.ndarray, ...], principal: bool
) -> Data:
    """Rounds rows, holds the first ones out, and computes the exact outputs that are the targets of training.

    Args:
      x: training rows in random order.
      w: weights.
      center: mean of each feature, as `ObliqueTrees` subtract it.
      scale: steps per unit of each feature.
      extra: arrays with a leading dimension of rows.
      principal: whether the targets are the principal outputs only, and arrays are padded to sizes that many problems
        share. A loss of the user's needs all outputs, and would take padding for rows.
    """
    # A single row has to serve for both learning and choosing.
    num_held_out = round(HELD_OUT_SHARE * len(x)) or 1
    learned, held_out = (slice(num_held_out, None), slice(num_held_out)) if len(x) > 1 else (slice(None), slice(None))
    q = rounded(x, center, scale)
    z = q[learned] * STEP
    covariance = (z.T @ z / len(z)).astype(np.float64)
    v = projections.standardized_weights(w, scale)
    # In this unit the squares of the targets sum to 1 per row on average, whatever the scale of `w`.
    unit = max(float(np.sqrt(np.sum(v * (covariance @ v)))), 1e-30)
    basis = projections.principal_outputs(covariance, v) if principal else np.eye(w.shape[1])
    # Targets are the outputs of the rows before rounding, so that errors include those that rounding causes.
    targets = (x - center) @ (w @ basis / unit).astype(np.float32)
    mean = targets[learned].mean(0)

    def padded(size: int, least: int) -> int:
        return shapes.rounded(size, least) if principal else size

    features, outputs = padded(x.shape[1], shapes.FEATURES), padded(targets.shape[1], shapes.OUTPUTS)

    def samples(rows: slice) -> train.Samples:
        count = len(q[rows])
        size = padded(count, shapes.ROWS)
        rounded = jnp.asarray(shapes.pad(q[rows], size, features))
        exact = jnp.asarray(shapes.pad(targets[rows] - mean, size, outputs))
        return train.Samples(rounded, exact, count, tuple(jnp.asarray(e[rows]) for e in extra))

    mean_output = center.astype(np.float64) @ w @ basis + mean * unit
    target_v = jnp.asarray(shapes.pad((v @ basis / unit).astype(np.float32), features, outputs))
    return Data(samples(learned), samples(held_out), covariance, v / unit, target_v, unit, mean_output)


def begin(data: Data, num_codebooks: int, width: int | None, grouping: str) -> Start:
    """Groups the features, and grows trees on the principal directions of each group.

    Args:
      data: rows and outputs.
      num_codebooks: number of codebooks, C.
      width: number of features that each codebook projects; None for those of its group. The projections of neighbors
        start from 0.
      grouping: one of `GROUPINGS`: "contiguous" groups, groups of features with "similar" contributions to the outputs,
        or such groups "exchanged" until the similarity inside of them no longer increases.
    """
    products = data.v @ data.v.T
    similar = groups.contributions(data.covariance, products)
    if grouping == "contiguous":
        own = groups.contiguous(len(products), num_codebooks)
    else:
        own = groups.similar(similar, np.diag(data.covariance * products), num_codebooks)
        own = groups.exchanged(own, similar) if grouping == "exchanged" else own
    directions = projections.directions(data.covariance, data.v, own)
    z = np.asarray(data.rows.q)[: min(data.rows.number, projections.GROWN_ROWS), : len(products)] * STEP
    trees = projections.grow(z, own, directions)
    features = own if width is None or width <= own.shape[1] else groups.widened(own, similar, width)
    size, padded_width = (
        shapes.rounded(num_codebooks, shapes.CODEBOOKS),
        shapes.rounded(features.shape[1], shapes.WIDTH),
    )
    weights, thresholds = (np.asarray(a) for a in trees)
    weights, thresholds = shapes.pad(weights, size, LEVELS, padded_width), shapes.pad(thresholds, size, NODES)
    trees = FloatTrees(jnp.asarray(weights), jnp.asarray(thresholds))
    return Start(_padded(own, size, padded_width), _padded(features, size, padded_width), trees)


def _padded(features: Int32[np.ndarray, "codebooks width"], *sizes: int) -> Int32[np.ndarray, "padded most"]:
    """Pads `features` to the given sizes with -1, which stands for no feature."""
    return shapes.pad(features + 1, *sizes) - 1


def solved(data: Data, start: Start, ridge: int, trees: FloatTrees) -> tuple[train.Model, float]:
    """Solves tables for `trees` with a penalty, and returns the model and its NMSE on held-out rows.

    The NMSE is infinite where f32 cannot solve the system. `ridge` is a place in `RIDGES`.
    """
    model = train.solve(trees, start.features, start.own, data.rows, data.target_v, RIDGES[ridge])
    errors = np.asarray(train.squared_errors(model, start.features, data.held_out), np.float64).sum()
    error = float(errors / max(np.square(np.asarray(data.held_out.targets), dtype=np.float64).sum(), 1e-30))
    return model, error if np.isfinite(error) else np.inf


def best_ridge(data: Data, start: Start, trees: FloatTrees, first: int) -> Chosen:
    """Searches `RIDGES` from place `first` on, always toward the smaller error on held-out rows, to a local minimum."""
    tried: dict[int, tuple[train.Model, float]] = {}

    def error(ridge: int) -> float:
        tried[ridge] = solved(data, start, ridge, trees)
        return tried[ridge][1]

    best = nearest_minimum(error, first, len(RIDGES))
    return Chosen(*tried[best], best)
