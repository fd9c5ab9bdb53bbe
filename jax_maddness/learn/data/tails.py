"""Rows with heavy tails, of which one has a large share of the outputs' variance: what they measure holds for few."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from jax_maddness.learn.data.rows import Rows

DOMINANT = 0.25
"""Share of the outputs' variance from which one row is called an outlier."""
_HEAVY, _FEWEST = 0.1, 100  # share of one training row that is warned of, and the fewest rows of which it means much
_BLOCK = 4096


def largest_share(rows: Rows, w: Float[np.ndarray, "features outputs"]) -> float:
    """Returns the share that one row of the sample has of the outputs' variance; 0 where rows are fewer than 100.

    Products of features are left out: the variance is taken as sum_d (x_d - mean_d)^2 |w_d|^2, which takes D numbers a
    row instead of D M.
    """
    if len(rows.sample) < _FEWEST:
        return 0.0
    scale = max(float(np.abs(w).max(initial=0)), float(np.finfo(np.float32).tiny))
    strength = np.square(w / scale, dtype=np.float64).sum(1)
    energies = []
    for start in range(0, len(rows.sample), _BLOCK):
        deviations = np.ldexp(rows.sample[start : start + _BLOCK] - rows.mean, -rows.exponent)
        energies.append(np.square(deviations) @ strength)
    energy = np.concatenate(energies)
    total = float(energy.sum())
    return float(energy.max()) / total if total > 0 else 0.0


def warning(share: float, rows: int) -> str:
    """Returns the words of the warning about `rows` of which one has a large `share` of the variance, or "".

    Among few rows one has a large share by chance: of 100, less than a quarter is not warned of; of 250 or more, less
    than a tenth.
    """
    if share <= max(_HEAVY, DOMINANT * _FEWEST / rows):
        return ""
    return (
        f"The training rows have heavy tails: one has {share:.0%} of the outputs' variance. The error on other rows "
        "may be far from that on these. Clip such rows, or keep them exact (`fit_outlier_rows`)."
    )
