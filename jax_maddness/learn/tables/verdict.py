"""`Verdict`, what held-out rows say of float tables: their error, and whether they should count for less."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jax_maddness.core.types import LEAVES
from jax_maddness.learn.data.compare import surely_less

FEW_PER_CODE = 8
"""Rows per code below which rows are few.

There, a penalty that held-out rows choose leaves 7 % less error at 5 rows per code, and 40 % less at one; at 10 it is
2 %, for which solving the tables with several penalties takes too large a part of the time of learning."""
_USELESS = 0.85  # NMSE from which tables bring too little: on trees that saw the rows, it is up to .15 too small


class Comparison(NamedTuple):
    """Sums over the outputs of each held-out row, from which the error of tables times any factor follows.

    Attributes:
      energy: squares of the exact outputs, about the mean of the other rows' outputs.
      agreement: products of the exact outputs and those of the tables.
      size: squares of the outputs of the tables.
    """

    energy: Float[np.ndarray, " held_out"]
    agreement: Float[np.ndarray, " held_out"]
    size: Float[np.ndarray, " held_out"]

    @classmethod
    def of(cls, y: Float[np.ndarray, "held_out outputs"], exact: Float[np.ndarray, "held_out outputs"]) -> Comparison:
        """Compares the outputs `y` of tables with the exact ones, both about the mean of the other rows' outputs."""
        y, exact = y.astype(np.float64), exact.astype(np.float64)
        return cls(*(np.einsum("nm,nm->n", a, b) for a, b in ((exact, exact), (exact, y), (y, y))))

    def errors(self, factor: float = 1.0) -> Float[np.ndarray, " held_out"]:
        """Returns the squared error of each row if all tables are multiplied by `factor`; infinite instead of NaN."""
        errors = self.energy - 2 * factor * self.agreement + factor**2 * self.size
        return np.where(np.isfinite(errors), np.maximum(errors, 0), np.inf)

    def best_factor(self) -> float:
        """Returns the factor from 0 to 1 with the least error."""
        size = self.size.sum()
        return float(np.clip(self.agreement.sum() / size, 0, 1)) if size > 0 else 1.0


class Verdict(NamedTuple):
    """The way to solve tables that held-out rows choose, and the error that they measure.

    Attributes:
      ridge: weight of the penalty, in rows.
      factor: factor of all tables, from 0 to 1.
      errors: squared error of each held-out row with both.
      energy: squared distance of each held-out row's exact outputs from their mean.
    """

    ridge: float
    factor: float
    errors: Float[np.ndarray, " held_out"]
    energy: Float[np.ndarray, " held_out"]

    @property
    def error(self) -> float:
        """Sum of the squared errors over held-out rows."""
        return float(self.errors.sum())

    @property
    def nmse(self) -> float:
        """NMSE on the held-out rows."""
        return self.error / max(float(self.energy.sum()), np.finfo(np.float64).tiny)

    @property
    def largest(self) -> float:
        """Share that one row has of all squared distances from the mean."""
        return float(self.energy.max() / self.energy.sum())

    @property
    def useful(self) -> bool:
        """Whether errors are smaller than those of the mean: surely, and by more than 15 %.

        Rows with heavy tails need both: their standard error is as uncertain as their error.
        """
        if not self.energy.any():
            return True  # no rows, or outputs that are constant
        return self.nmse <= _USELESS and surely_less(self.errors, self.energy, standard_errors=2)


def verdict(compared: Comparison, ridge: float, few: bool) -> Verdict:
    """Judges tables that were solved with `ridge`.

    They get a factor below 1 if that is surely better, where rows are `few` or the tables are of no use without it.
    Other tables stay as they are, since their best factor differs from 1 by chance.
    """
    plain = Verdict(ridge, 1.0, compared.errors(), compared.energy)
    best = compared.best_factor()
    shrunk = Verdict(ridge, best, compared.errors(best), compared.energy)
    return shrunk if (few or not plain.useful) and surely_less(shrunk.errors, plain.errors) else plain


def unjudged(ridge: float) -> Verdict:
    """Returns the verdict without held-out rows: tables are used as they are."""
    return Verdict(ridge, 1.0, np.zeros(0), np.zeros(0))


def are_few(rows: int, codebooks: int) -> bool:
    """Returns whether the `rows` that tables are learned from are few for their number of codes."""
    return rows < FEW_PER_CODE * LEAVES * codebooks
