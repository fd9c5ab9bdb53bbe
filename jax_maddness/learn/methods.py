"""The methods by name: rows, weights -> trees, and how their tables are to be solved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jax_maddness.learn import axis, oblique, paper
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.solve import Learned

if TYPE_CHECKING:
    from jaxtyping import Float

    from jax_maddness.learn.fit import FitConfig
    from jax_maddness.learn.rows import Rows


def learn_oblique(
    rows: Rows, w: Float[np.ndarray, "features outputs"], num_codebooks: int, config: FitConfig, bar: Progress
) -> Learned:
    """Method "oblique": see oblique.py."""
    bar.stage("oblique trees")
    bar.expect(oblique.STEPS // oblique.train.INTERVAL)
    found = oblique.learn(rows.sample, w, num_codebooks, width=config.width, done=bar.step)
    return Learned(found.trees, found.own, found.ridge)


def learn_best(
    rows: Rows, w: Float[np.ndarray, "features outputs"], num_codebooks: int, config: FitConfig, bar: Progress
) -> Learned:
    """Method "auto": the better one of "axis" and "oblique" on the rows that both hold out.

    Both draw the same random order of the rows (as long as there are no more than `oblique.ROWS`), and hold the first
    of them out: what each says of itself there is comparable.
    """
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
