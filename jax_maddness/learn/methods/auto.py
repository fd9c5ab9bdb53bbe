"""The table of methods by name, and method "auto", which chooses among them on held-out rows."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jax_maddness.core.types import LEAVES, ObliqueTrees, SplitTrees, Trees
from jax_maddness.learn.config import FEW_ROWS, FOLDS, HELD_OUT_SHARE, FitConfig
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.compare import surely_less
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.data.statistics import encoder
from jax_maddness.learn.methods import axis, oblique, paper
from jax_maddness.learn.methods.learned import Learned, Method
from jax_maddness.learn.methods.objective import Objective
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.tables.shrink import solve_shrunk
from jax_maddness.learn.tables.solve import predict


def learn(
    rows: Rows,
    w: Float[np.ndarray, "features outputs"],
    num_codebooks: int,
    config: FitConfig,
    bar: Progress,
    objective: Objective | None = None,
) -> Learned:
    """Learns with the first of "paper", "axis" and "oblique" that no later one surely beats on held-out rows.

    "axis" and "oblique" draw the same random order of the rows (if there are no more than `oblique.ROWS`), and hold out
    the first of them, so their errors there are comparable. "axis" chooses between its own trees and the paper's. A
    handful of held-out rows decides nothing, so up to `FEW_ROWS` rows the methods are cross-validated.

    Only training can minimize a loss of the user's, so the choice is "oblique" where there is one.
    """
    if objective is not None:
        return oblique.learn(rows, w, num_codebooks, config, bar, objective)
    if FOLDS <= len(rows.sample) <= FEW_ROWS:
        return CROSS_VALIDATED[cross_validated(rows, w, num_codebooks, config, bar)](
            rows, w, num_codebooks, config, bar
        )
    on_axes = axis.learn(rows, w, num_codebooks, config, bar)
    projected = oblique.learn(rows, w, num_codebooks, config, bar)
    verdict = axis.Trial.of(rows, w, HELD_OUT_SHARE, config.seed).judge(projected.trees, projected.own).verdict
    better = on_axes.verdict is not None and surely_less(verdict.errors, on_axes.verdict.errors)
    return projected if better else on_axes


def learn_untrained(
    rows: Rows,
    w: Float[np.ndarray, "features outputs"],
    num_codebooks: int,
    config: FitConfig,
    bar: Progress,
    objective: Objective | None = None,
) -> Learned:
    """Learns the trees that "oblique" starts from: on a hundred rows, training does as often harm as good."""
    return oblique.learn(rows, w, num_codebooks, dataclasses.replace(config, steps=0), bar, objective)


def cross_validated(
    rows: Rows, w: Float[np.ndarray, "features outputs"], num_codebooks: int, config: FitConfig, bar: Progress
) -> str:
    """Returns the name of the method of `CROSS_VALIDATED` with the least error on rows that it did not learn from.

    Each fold of the rows is held out once, and a later method must be surely better than an earlier one. Folds are
    random. Folds of consecutive rows gave no better choices on the data whose order matters (photographs; features of
    files in the order of their kinds).
    """
    errors: dict[str, list[np.ndarray]] = {name: [] for name in CROSS_VALIDATED}
    for fold in np.array_split(np.random.default_rng(config.seed).permutation(len(rows.sample)), FOLDS):
        others = Rows.of(np.delete(rows.sample, fold, axis=0))
        for name, method in CROSS_VALIDATED.items():
            learned = method(others, w, num_codebooks, config, bar)
            errors[name].append(errors_of(learned, others, w, rows.sample[fold], config.seed))
    best, *later_methods = ((name, np.concatenate(parts)) for name, parts in errors.items())
    for later in later_methods:
        best = later if surely_less(later[1], best[1]) else best
    return best[0]


def errors_of(
    learned: Learned,
    rows: Rows,
    w: Float[np.ndarray, "features outputs"],
    x: Float[np.ndarray, "others features"],
    seed: int,
) -> Float[np.ndarray, " others"]:
    """Returns the squared error of float tables that are solved from `rows`, on each of the rows `x`."""
    statistics = rows.statistics(learned.trees, lambda: None)
    solution, _ = solve_shrunk(rows, statistics, learned.trees, learned.own, w, learned.ridge, seed, learned.verdict)
    size = shapes.rounded(len(x), shapes.ROWS)
    codes = encoder(learned.trees)(shapes.pad(x, size, shapes.rounded(x.shape[1], shapes.FEATURES)))
    codes = shapes.pad(codes, size, statistics.sums.shape[0] // LEAVES)
    y = np.asarray(predict(solution.weights, solution.intercept, codes), np.float64)[: len(x), : w.shape[1]]
    return ((y / rows.factor - (x - rows.mean) @ w) ** 2).sum(1)


def method_of(trees: Trees) -> str:
    """Returns the name of the method that grows trees of this kind, for ops that must have one kind to be stacked."""
    return next(name for name, kind in _KIND_GROWN.items() if isinstance(trees, kind))


METHODS: dict[str, Method] = {
    "paper": paper.learn,
    "axis": axis.learn,
    "oblique": oblique.learn,
    "auto": learn,
}
"""The function behind each of `METHOD_NAMES`."""
CROSS_VALIDATED: dict[str, Method] = {
    "paper": paper.learn,
    "axis": axis.learn,
    "oblique, untrained": learn_untrained,
    "oblique": oblique.learn,
}
"""Methods that "auto" cross-validates on few rows, simplest first."""
_KIND_GROWN: dict[str, type[Trees]] = {"axis": SplitTrees, "oblique": ObliqueTrees}
