"""Method "oblique": trained integer trees on projections of each codebook's features.

    x, w --round--> Data --groups, directions, splits--> starts --train--> the best model --integers--> ObliqueTrees

Every choice (which features form a group, when training stops, the weight of the penalty) is made on held-out rows.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from jax_maddness.core.types import LEAVES, LEVELS, MAX_WIDTH, NODES, ObliqueTrees
from jax_maddness.learn.config import HELD_OUT_SHARE, INTERVAL, STEPS, FitConfig
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.methods import compare, groups, projections, train
from jax_maddness.learn.methods.learned import Learned
from jax_maddness.learn.methods.objective import Objective
from jax_maddness.learn.methods.projections import STEP, FloatTrees
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.tables.ridge import Solution

_log = logging.getLogger(__name__)

ROWS = 2**15
"""Largest number of rows that trees are learned from: a random sample. The caller solves tables from all rows."""
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Weights of the penalty that are tried, in rows."""
GROUPINGS = ("contiguous", "similar", "exchanged")
"""Names of the groupings of features that are tried, as `begin` makes them."""
_FIRST_RIDGE = 2  # the place in `RIDGES` where the search for the best penalty begins
_EXCHANGED = 2048  # largest number of features for grouping "exchanged": with more, the assignment takes minutes


class Trained(NamedTuple):
    """The result of `train_trees`.

    Attributes:
      trees: integer trees, as `encode` takes them.
      own: features in which the tables shrink toward each codebook's bucket means.
      ridge: weight of that penalty, in rows.
      error: error on held-out rows: NMSE, or the user's loss.
      tables: float tables that were trained on a loss of the user's, without `intercept`; None: they are still to be
        solved.
      intercept: constant of each output of `x @ w`, beside the trained tables; None without these.
    """

    trees: ObliqueTrees
    own: Bool[np.ndarray, "codebooks features"]
    ridge: float
    error: float
    tables: Float[Array, "codes outputs"] | None = None
    intercept: Float[np.ndarray, " outputs"] | None = None


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


def learn(
    rows: Rows,
    w: Float[np.ndarray, "features outputs"],
    num_codebooks: int,
    config: FitConfig,
    bar: Progress,
    objective: Objective | None = None,
) -> Learned:
    """Learns integer trees on projections of each codebook's features, by training."""
    # Each call of `done` below stands for `INTERVAL` training steps.
    bar.stage("oblique trees")
    bar.expect(config.steps // INTERVAL)
    trained = train_trees(
        rows.sample,
        w,
        num_codebooks,
        width=config.width,
        steps=config.steps,
        seed=config.seed,
        done=bar.step,
        objective=objective,
        extra=rows.extra,
    )
    return Learned(trained.trees, trained.own, trained.ridge, _scaled_tables(trained, rows, w))


def _scaled_tables(trained: Trained, rows: Rows, w: Float[np.ndarray, "features outputs"]) -> Solution | None:
    """Returns the tables that were trained on a loss, in the form in which `solve` returns tables; None for none."""
    # `tables_for` scales by `rows.factor` and adds the product of the mean row, so both are taken out here.
    if trained.tables is None or trained.intercept is None:
        return None
    constant = np.ldexp(rows.mean, -rows.exponent) @ w.astype(np.float64)
    codes = shapes.rounded(trained.trees.num_codebooks, shapes.CODEBOOKS) * LEAVES
    weights = shapes.pad(np.asarray(trained.tables) * rows.factor, codes, w.shape[1])
    return Solution(jnp.asarray(weights), jnp.asarray(trained.intercept * rows.factor - constant), jnp.float32(1))


def train_trees(
    x: Float[np.ndarray, "rows features"],
    w: Float[np.ndarray, "features outputs"],
    num_codebooks: int,
    *,
    width: int | None = None,
    steps: int = STEPS,
    seed: int = 0,
    done: Callable[[], None] = lambda: None,
    objective: Objective | None = None,
    extra: tuple[np.ndarray, ...] = (),
) -> Trained:
    """Trains integer oblique trees for `x @ w`, and chooses how their tables are solved.

    Args:
      x: training rows, finite.
      w: weights.
      num_codebooks: number of codebooks, C, from 1 to the number of features.
      width: number of features that each codebook projects, at least that of its own group, `ceil(D / C)`: the default.
        Wider codebooks also project neighbors. Encoding takes `4 * C * width` multiply-adds per row.
      steps: number of training steps; 0 leaves the trees as they start.
      seed: seed of the choice of held-out rows, and of training.
      done: function that is called after every `INTERVAL` steps.
      objective: loss that training minimizes, a function of outputs [rows, M], exact outputs, and the rows' parts of
        `extra`; tables are trained with it and returned. None stands for the squared error of `x @ w`; then the caller
        solves the tables.
      extra: arrays with a leading dimension of rows, for `objective`.

    Raises:
      ValueError: `width` does not fit.
    """
    _validate_width(x.shape[1], num_codebooks, width)
    order = np.random.default_rng(seed).permutation(len(x))[:ROWS]
    x, extra = x[order], tuple(e[order] for e in extra)
    center, scale = projections.rounding(x)
    # The squared error is nearly all in the principal outputs; another loss may depend on any of them.
    data = prepare(x, w, center, scale, extra, principal=objective is None)
    groupings = GROUPINGS if x.shape[1] <= _EXCHANGED else GROUPINGS[:-1]
    starts = [begin(data, num_codebooks, width, grouping) for grouping in groupings]
    # Training takes far longer than solving tables, so only the start with the least error is trained.
    chosen = [best_ridge(data, start, start.trees, _FIRST_RIDGE) for start in starts]
    for grouping, (_, error, ridge) in zip(groupings, chosen, strict=True):
        _log.info("start from %s groups: NMSE %.4f with ridge %g", grouping, error, RIDGES[ridge])
    start, best = min(zip(starts, chosen, strict=True), key=lambda pair: pair[1].error)
    if objective is not None:
        in_units = objective.of(data.unit, data.mean.astype(np.float32))
        best = _trained_on(in_units, data, start, best, steps, seed, done)
    elif steps:
        best = _trained(data, start, best, steps, seed, done)
    # Arrays were padded so that problems of similar sizes share compiled functions; the op does not need the padding.
    features = start.features[:num_codebooks, : max(width or 0, -(-x.shape[1] // num_codebooks))]
    int_projections, thresholds = (np.asarray(a)[:num_codebooks] for a in projections.integers(best.model.trees))
    arrays = np.maximum(features, 0), int_projections[..., : features.shape[1]], thresholds, center, scale
    trees = ObliqueTrees(*jax.device_put(arrays), x.shape[1])  # asarray would compile

    learned = Trained(trees, groups.owned(start.own[:num_codebooks], x.shape[1]), RIDGES[best.ridge], best.error)
    if objective is None:
        return learned
    tables, intercept = best.model.tables * data.unit, np.asarray(best.model.intercept) * data.unit + data.mean
    return learned._replace(tables=tables[: num_codebooks * LEAVES], intercept=intercept)


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
    q = projections.rounded(x, center, scale)
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
    # Neighboring penalties have similar errors, so a local search finds a good one without solving for all of them.
    tried: dict[int, tuple[train.Model, float]] = {}
    best = first
    while True:
        current = best
        for i in (current - 1, current, current + 1):
            if 0 <= i < len(RIDGES) and i not in tried:
                tried[i] = solved(data, start, i, trees)
        best = min(tried, key=lambda i: tried[i][1])
        if best == current:
            return Chosen(*tried[current], current)


def _trained(data: Data, start: Start, best: Chosen, steps: int, seed: int, done: Callable[[], None]) -> Chosen:
    """Trains on the squared error; tables are solved anew wherever the model is judged.

    The result is taken only if it is surely better than the start: among the many states of training, one may have a
    small error on few held-out rows by luck. With 15 held-out rows, trained trees had up to 2.4 times the error of
    those they started from, on other rows.
    """
    judged = functools.partial(solved, data, start, best.ridge)
    model, error = train.train(
        best.model,
        start.features,
        data.rows,
        lambda m: judged(m.trees),
        steps=steps,
        mixing=train.MIXING,
        seed=seed,
        done=done,
    )
    _log.info("trained: NMSE %.4f after %.4f", error, best.error)
    # Trained trees fit the training rows more closely, and may need another penalty than those they started from.
    after = best_ridge(data, start, model.trees, best.ridge)
    errors = [np.asarray(train.squared_errors(c.model, start.features, data.held_out)) for c in (best, after)]
    return after if compare.surely_less(errors[1], errors[0]) else best


def _trained_on(
    loss: Objective,
    data: Data,
    start: Start,
    best: Chosen,
    steps: int,
    seed: int,
    done: Callable[[], None],
) -> Chosen:
    """Trains trees and tables on a loss of the user's; rows are mixed only if there are no `extra` arrays."""

    def judged(model: train.Model) -> tuple[train.Model, float]:
        return model, float(train.judge(model, start.features, data.held_out, loss))

    # A mixture of two rows has a mixture of their outputs, but labels, for example, cannot be mixed.
    mixing = 0.0 if data.rows.extra else train.MIXING
    model, error = train.train(
        best.model, start.features, data.rows, judged, steps=steps, mixing=mixing, seed=seed, loss=loss, done=done
    )
    return Chosen(model, error, best.ridge)


def _validate_width(features: int, num_codebooks: int, width: int | None) -> None:
    """Raises `ValueError` unless every codebook can project its own features, and no more than there are."""
    least = -(-features // num_codebooks)
    if width is not None and not least <= width <= min(features, MAX_WIDTH):
        raise ValueError(
            f"`width` is {width}; expected {least} (features by codebooks) to {min(features, MAX_WIDTH)}. A codebook "
            "projects its own features and, if it is wider, their neighbors."
        )
