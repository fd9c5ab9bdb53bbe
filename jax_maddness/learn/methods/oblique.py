"""Method "oblique": integer trees on projections of each codebook's features, trained.

    x, w --round--> Data --groups, directions, splits--> starts --train--> the best model --integers--> ObliqueTrees

Every choice (which features go together, when training stops, how strong the ridge is) is made on rows held out.
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
"""Rows that trees are learned from, at most: a random sample. Tables, which the caller solves, may see all."""
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Weights of the penalty that are tried, in rows."""
GROUPINGS = ("contiguous", "similar", "exchanged")
"""How features may be grouped."""
_FIRST_RIDGE = 2
_EXCHANGED = 2048  # features: with more, the assignment takes minutes


class Trained(NamedTuple):
    """The result of `train_trees`.

    Attributes:
      trees: for `encode`.
      own: features in which the tables shrink toward each codebook's bucket means.
      ridge: weight of that penalty, in rows.
      error: on the rows held out: NMSE, or the user's loss.
      tables: [codes, outputs] about `intercept`, where a loss of the user's has trained them; else None: solve them.
      intercept: of `x @ w`.
    """

    trees: ObliqueTrees
    own: Bool[np.ndarray, "codebooks features"]
    ridge: float
    error: float
    tables: Float[Array, "codes outputs"] | None = None
    intercept: Float[np.ndarray, " outputs"] | None = None


class Data(NamedTuple):
    """The rows and outputs that all steps share.

    Attributes:
      rows: to learn from; targets are about their mean, and their squares sum to about 1 in every row.
      held_out: to choose by.
      covariance: of the standardised `rows`.
      v: outputs of standardised rows, in the targets' units: all of them.
      seen: outputs of standardised rows that are targets.
      unit: of the targets.
      mean: of the exact outputs of `rows`, without the bias.
    """

    rows: train.Samples
    held_out: train.Samples
    covariance: Float[np.ndarray, "features features"]
    v: Float[np.ndarray, "features outputs"]
    seen: Float[Array, "features kept"]
    unit: float
    mean: Float[np.ndarray, " kept"]


class Start(NamedTuple):
    """Groups of features with trees on them: `features` are those of `own` and, behind them, perhaps neighbours."""

    own: Int32[np.ndarray, "codebooks own"]
    features: Int32[np.ndarray, "codebooks width"]
    trees: FloatTrees


class Chosen(NamedTuple):
    """A model, its error on the rows held out, and its ridge as a place in `RIDGES`."""

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
    """The tables that were trained on a loss, for scaled rows about their mean, as `solve` returns them."""
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
    """Integer block-oblique trees for `x @ w`, and how to solve their tables.

    Args:
      x: training rows, finite.
      w: weights.
      num_codebooks: C, from 1 to the number of features.
      width: features that each codebook projects, at least those that it owns, `ceil(D / C)`: the default. Wider ones
        also see their neighbours. Encoding takes `4 * C * width` multiply-adds per row.
      steps: of training; 0 leaves the trees as they start.
      seed: of the rows held out and of training.
      done: called after every `INTERVAL` steps.
      objective: what training minimises, of outputs [rows, M], exact outputs, and the rows' parts of `extra`. Tables
        are trained with it and returned. None: the squared error of `x @ w`; tables are left to the caller to solve.
      extra: arrays with a leading dimension of rows, for `objective`.

    Raises:
      ValueError: `width` does not fit.
    """
    _validate_width(x.shape[1], num_codebooks, width)
    order = np.random.default_rng(seed).permutation(len(x))[:ROWS]
    x, extra = x[order], tuple(e[order] for e in extra)
    center, scale = projections.rounding(x)
    data = prepare(x, w, center, scale, extra, principal=objective is None)
    groupings = GROUPINGS if x.shape[1] <= _EXCHANGED else GROUPINGS[:-1]
    starts = [begin(data, num_codebooks, width, grouping) for grouping in groupings]
    chosen = [best_ridge(data, start, start.trees, _FIRST_RIDGE) for start in starts]
    for grouping, (_, error, ridge) in zip(groupings, chosen, strict=True):
        _log.info("start from %s groups: NMSE %.4f with ridge %g", grouping, error, RIDGES[ridge])
    start, best = min(zip(starts, chosen, strict=True), key=lambda pair: pair[1].error)
    if objective is not None:
        in_units = objective.of(data.unit, data.mean.astype(np.float32))
        best = _trained_on(in_units, data, start, best, steps, seed, done)
    elif steps:
        best = _trained(data, start, best, steps, seed, done)
    features = start.features[:num_codebooks, : max(width or 0, -(-x.shape[1] // num_codebooks))]
    whole, thresholds = (np.asarray(a)[:num_codebooks] for a in projections.integers(best.model.trees))
    arrays = np.maximum(features, 0), whole[..., : features.shape[1]], thresholds, center, scale
    seen, whole, nodes, middle, steps_per_unit = jax.device_put(arrays)  # asarray would compile
    trees = ObliqueTrees(seen, whole, nodes, middle, steps_per_unit, x.shape[1])
    learned = Trained(trees, groups.owned(start.own[:num_codebooks], x.shape[1]), RIDGES[best.ridge], best.error)
    if objective is None:
        return learned
    tables, intercept = best.model.tables * data.unit, np.asarray(best.model.intercept) * data.unit + data.mean
    return learned._replace(tables=tables[: num_codebooks * LEAVES], intercept=intercept)


def prepare(
    x: np.ndarray, w: np.ndarray, center: np.ndarray, scale: np.ndarray, extra: tuple[np.ndarray, ...], principal: bool
) -> Data:
    """Rounds rows, holds the first ones out, and finds their exact outputs: all, or the principal ones, then padded."""
    held = round(HELD_OUT_SHARE * len(x)) or 1
    learned, held_out = (slice(held, None), slice(held)) if len(x) > 1 else (slice(None), slice(None))
    q = projections.rounded(x, center, scale)
    z = q[learned] * STEP
    covariance = (z.T @ z / len(z)).astype(np.float64)
    v = projections.standardised_weights(w, scale)
    unit = max(float(np.sqrt(np.sum(v * (covariance @ v)))), 1e-30)
    basis = projections.principal_outputs(covariance, v) if principal else np.eye(w.shape[1])
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
    seen = jnp.asarray(shapes.pad((v @ basis / unit).astype(np.float32), features, outputs))
    return Data(samples(learned), samples(held_out), covariance, v / unit, seen, unit, mean_output)


def begin(data: Data, num_codebooks: int, width: int | None, grouping: str) -> Start:
    """Trees on principal directions of groups of features; projections of neighbours start from 0."""
    products = data.v @ data.v.T
    similar = groups.contributions(data.covariance, products)
    if grouping == "contiguous":
        own = groups.contiguous(len(products), num_codebooks)
    else:
        own = groups.similar(similar, np.diag(data.covariance * products), num_codebooks)
        own = groups.exchanged(own, similar) if grouping == "exchanged" else own
    candidates = projections.directions(data.covariance, data.v, own)
    z = np.asarray(data.rows.q)[: min(data.rows.number, projections.GROWN_ROWS), : len(products)] * STEP
    trees = projections.grow(z, own, candidates)
    features = own if width is None or width <= own.shape[1] else groups.widened(own, similar, width)
    size, most = shapes.rounded(num_codebooks, shapes.CODEBOOKS), shapes.rounded(features.shape[1], shapes.WIDTH)
    wide, nodes = (np.asarray(a) for a in trees)
    trees = FloatTrees(jnp.asarray(shapes.pad(wide, size, LEVELS, most)), jnp.asarray(shapes.pad(nodes, size, NODES)))
    return Start(_padded(own, size, most), _padded(features, size, most), trees)


def _padded(features: Int32[np.ndarray, "codebooks width"], *sizes: int) -> Int32[np.ndarray, "padded most"]:
    """With more codebooks and a larger width, all of them -1, for none."""
    return shapes.pad(features + 1, *sizes) - 1


def solved(data: Data, start: Start, ridge: int, trees: FloatTrees) -> tuple[train.Model, float]:
    """The trees with tables solved for them, and their NMSE on the rows held out: infinite where f32 cannot."""
    model = train.solve(trees, start.features, start.own, data.rows, data.seen, RIDGES[ridge])
    errors = np.asarray(train.squared_errors(model, start.features, data.held_out), np.float64).sum()
    error = float(errors / max(np.square(np.asarray(data.held_out.targets), dtype=np.float64).sum(), 1e-30))
    return model, error if np.isfinite(error) else np.inf


def best_ridge(data: Data, start: Start, trees: FloatTrees, first: int) -> Chosen:
    """Climbs down `RIDGES` from `first` to the least error on the rows held out."""
    tried: dict[int, tuple[train.Model, float]] = {}
    best = first
    while True:
        at = best
        for i in (at - 1, at, at + 1):
            if 0 <= i < len(RIDGES) and i not in tried:
                tried[i] = solved(data, start, i, trees)
        best = min(tried, key=lambda i: tried[i][1])
        if best == at:
            return Chosen(*tried[at], at)


def _trained(data: Data, start: Start, best: Chosen, steps: int, seed: int, done: Callable[[], None]) -> Chosen:
    """Training on the squared error; its tables are solved anew wherever it is judged.

    It counts where it surely serves better: of its many states one does on a few rows by luck (with 15 rows held out,
    trained trees had up to 2.4 times the error of those they started from, on other rows).
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
    found = best_ridge(data, start, model.trees, best.ridge)
    before, after = (np.asarray(train.squared_errors(c.model, start.features, data.held_out)) for c in (best, found))
    return found if compare.surely_less(after, before) else best


def _trained_on(
    loss: Objective,
    data: Data,
    start: Start,
    best: Chosen,
    steps: int,
    seed: int,
    done: Callable[[], None],
) -> Chosen:
    """Training on a loss of the user's, tables included. Rows are mixed only where there is nothing else to mix."""

    def judged(model: train.Model) -> tuple[train.Model, float]:
        return model, float(train.judge(model, start.features, data.held_out, loss))

    mixing = 0.0 if data.rows.extra else train.MIXING
    model, error = train.train(
        best.model, start.features, data.rows, judged, steps=steps, mixing=mixing, seed=seed, loss=loss, done=done
    )
    return Chosen(model, error, best.ridge)


def _validate_width(features: int, num_codebooks: int, width: int | None) -> None:
    least = -(-features // num_codebooks)
    if width is not None and not least <= width <= min(features, MAX_WIDTH):
        raise ValueError(
            f"`width` is {width}; expected {least} (features by codebooks) to {min(features, MAX_WIDTH)}. A codebook "
            "projects its own features and, if it is wider, their neighbours."
        )
