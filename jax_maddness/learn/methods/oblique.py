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
from jaxtyping import Array, Bool, Float

from jax_maddness.core.types import LEAVES, MAX_WIDTH, ObliqueTrees
from jax_maddness.learn.config import INTERVAL, STEPS, FitConfig
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.compare import surely_less
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.methods import groups, projections, train
from jax_maddness.learn.methods.learned import Learned
from jax_maddness.learn.methods.objective import Objective
from jax_maddness.learn.methods.oblique_starts import (
    GROUPINGS,
    Chosen,
    Data,
    Start,
    begin,
    best_ridge,
    prepare,
    solved,
)
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.tables.ridge import Solution
from jax_maddness.learn.tables.solve import RIDGES

_log = logging.getLogger(__name__)

ROWS = 2**15
"""Largest number of rows that trees are learned from: a random sample. The caller solves tables from all rows."""
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
    named = dict(zip(ObliqueTrees.array_names(), jax.device_put(arrays), strict=True))  # asarray would compile
    trees = ObliqueTrees.of_arrays(named, x.shape[1])

    learned = Trained(trees, groups.owned(start.own[:num_codebooks], x.shape[1]), RIDGES[best.ridge], best.error)
    if objective is None:
        return learned
    tables, intercept = best.model.tables * data.unit, np.asarray(best.model.intercept) * data.unit + data.mean
    return learned._replace(tables=tables[: num_codebooks * LEAVES], intercept=intercept)


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
    return after if surely_less(errors[1], errors[0]) else best


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
