"""The methods by name: rows, weights -> trees, and how their tables are to be solved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jax_maddness.core.types import LEAVES
from jax_maddness.learn import axis, oblique, paper, shapes
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.prototypes import Solution
from jax_maddness.learn.solve import Learned, encoder

if TYPE_CHECKING:
    from jaxtyping import Float

    from jax_maddness.learn.fit import FitConfig
    from jax_maddness.learn.rows import Rows


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
    return Learned(found.trees, encoder(found.trees), found.own, found.ridge, _scaled(found, rows, w))


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
    """Method "auto": the better one of "axis" and "oblique" on the rows that both hold out.

    Both draw the same random order of the rows (as long as there are no more than `oblique.ROWS`), and hold the first
    of them out: what each says of itself there is comparable. With a loss, which only training can follow: "oblique".
    """
    if config.loss is not None:
        return learn_oblique(rows, w, num_codebooks, config, bar)
    on_axes = axis.learn(rows, w, num_codebooks, config, bar)
    projected = learn_oblique(rows, w, num_codebooks, config, bar)
    trial = axis.Trial.of(rows, w, axis.ASIDE)
    projected = dataclasses.replace(projected, error=trial.judge(projected.trees, projected.own).error)
    return min((projected, on_axes), key=lambda found: np.inf if found.error is None else found.error)


METHODS: dict[str, Callable[..., Learned]] = {
    "paper": paper.learn,
    "axis": axis.learn,
    "oblique": learn_oblique,
    "auto": learn_best,
}
