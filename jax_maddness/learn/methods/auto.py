"""The methods by name: rows, weights -> trees, and how their tables are to be solved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jax_maddness.core.types import LEAVES
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.methods import axis, compare, oblique, paper
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.tables.ridge import Solution
from jax_maddness.learn.tables.solve import Learned, errors_of

if TYPE_CHECKING:
    from jaxtyping import Float

    from jax_maddness.learn.fit import FitConfig


def learn_oblique(
    rows: Rows, w: Float[np.ndarray, "features outputs"], num_codebooks: int, config: FitConfig, bar: Progress
) -> Learned:
    """Method "oblique": see oblique.py."""
    bar.stage("oblique trees")
    bar.expect(config.steps // oblique.train.INTERVAL)
    found = oblique.learn(
        rows.sample,
        w,
        num_codebooks,
        width=config.width,
        steps=config.steps,
        seed=config.seed,
        done=bar.step,
        loss=config.loss,
        extra=rows.extra,
    )
    return Learned(found.trees, found.own, found.ridge, _scaled(found, rows, w))


def learn_untrained(
    rows: Rows, w: Float[np.ndarray, "features outputs"], num_codebooks: int, config: FitConfig, bar: Progress
) -> Learned:
    """What "oblique" starts from: on a hundred rows, training does harm as often as not."""
    return learn_oblique(rows, w, num_codebooks, dataclasses.replace(config, steps=0), bar)


def _scaled(found: oblique.Trained, rows: Rows, w: Float[np.ndarray, "features outputs"]) -> Solution | None:
    """Tables trained on a loss, of scaled rows about their mean, as `solve` has them."""
    if found.tables is None or found.intercept is None:
        return None
    constant = np.ldexp(rows.mean, -rows.exponent) @ w.astype(np.float64)
    codes = shapes.rounded(found.trees.num_codebooks, shapes.CODEBOOKS) * LEAVES
    weights = shapes.pad(np.asarray(found.tables) * rows.factor, codes, w.shape[1])
    return Solution(jnp.asarray(weights), jnp.asarray(found.intercept * rows.factor - constant), jnp.float32(1))


def learn_best(
    rows: Rows, w: Float[np.ndarray, "features outputs"], num_codebooks: int, config: FitConfig, bar: Progress
) -> Learned:
    """Method "auto": the first of "paper", "axis" and "oblique" that no later one surely beats on rows held out.

    "axis" and "oblique" draw the same random order of the rows (as long as there are no more than `oblique.ROWS`), and
    hold the first of them out: what each says of itself there is comparable. "axis" falls back on the paper's trees by
    itself. A handful of rows says nothing: up to `axis.FEW_ROWS` of them, methods are cross-validated.

    With a loss, which only training can follow: "oblique".
    """
    if config.loss is not None:
        return learn_oblique(rows, w, num_codebooks, config, bar)
    if FOLDS <= len(rows.sample) <= axis.FEW_ROWS:
        return CANDIDATES[cross_validated(rows, w, num_codebooks, config, bar)](rows, w, num_codebooks, config, bar)
    on_axes = axis.learn(rows, w, num_codebooks, config, bar)
    projected = learn_oblique(rows, w, num_codebooks, config, bar)
    errors = axis.Trial.of(rows, w, axis.HELD_OUT_SHARE, config.seed).judge(projected.trees, projected.own).errors
    return projected if on_axes.errors is None or compare.surely_less(errors, on_axes.errors) else on_axes


def cross_validated(
    rows: Rows, w: Float[np.ndarray, "features outputs"], num_codebooks: int, config: FitConfig, bar: Progress
) -> str:
    """Which of `CANDIDATES` serves best on every fold of the rows after learning from the others.

    Folds are random. Blocks of consecutive rows chose no better where that could be told (photographs; features of
    files in the order of their kinds).
    """
    errors: dict[str, list[np.ndarray]] = {name: [] for name in CANDIDATES}
    for fold in np.array_split(np.random.default_rng(config.seed).permutation(len(rows.sample)), FOLDS):
        part = Rows.of(np.delete(rows.sample, fold, axis=0))
        for name, learn in CANDIDATES.items():
            learned = learn(part, w, num_codebooks, config, bar)
            errors[name].append(errors_of(learned, part, w, rows.sample[fold]))
    best, *others = ((name, np.concatenate(e)) for name, e in errors.items())
    for other in others:
        best = other if compare.surely_less(other[1], best[1]) else best
    return best[0]


FOLDS = 4
"""Of cross-validation."""
METHODS: dict[str, Callable[..., Learned]] = {
    "paper": paper.learn,
    "axis": axis.learn,
    "oblique": learn_oblique,
    "auto": learn_best,
}
CANDIDATES = {"paper": paper.learn, "axis": axis.learn, "oblique, untrained": learn_untrained, "oblique": learn_oblique}
"""What "auto" chooses from where rows are few: the simplest first."""
