"""The advice of `evaluate`: what to do about the largest part of an op's error."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jax_maddness.core.types import LEAVES, MaddnessOp
from jax_maddness.learn.config import REPORTED_SHARE, FitConfig
from jax_maddness.learn.data.held_out import split
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.steps import learn

_AMPLE = 20  # training rows per code from which more bring little, as a rule of thumb
_LARGER = 1.3  # ratio from which an error counts as larger than another
_SMALLER = 0.9  # ratio up to which an error counts as smaller than another
_ROWS = 4096  # largest number of rows that an op is learned from to measure whether rows shift


class Simpler(NamedTuple):
    """An op with half as many codebooks: it tells training rows that are too few from new rows that shift.

    Attributes:
      codebooks: its number of codebooks.
      nmse: its error on the rows that are evaluated.
      train_nmse: its error on training rows that it was not learned from.
    """

    codebooks: int
    nmse: float
    train_nmse: float

    @classmethod
    def learned(
        cls,
        codebooks: int,
        train: Float[np.ndarray, "rows features"],
        w: Float[np.ndarray, "features outputs"],
        bias: Float[np.ndarray, " outputs"],
        x: Float[np.ndarray, "others features"],
        nmse: Callable[[MaddnessOp, np.ndarray], float],
    ) -> Simpler | None:
        """Learns an op with half as many `codebooks` from a part of the training rows, by method "paper".

        Args:
          codebooks: number of codebooks of the op that is evaluated.
          train: training rows.
          w: weights.
          bias: vector that is added to every row of the product.
          x: the rows that are evaluated.
          nmse: function that measures the error of an op on rows.

        Returns:
          The op's errors; None where there are not two training rows.
        """
        held_out, others = split(len(train), REPORTED_SHARE, _ROWS)
        if not len(held_out):
            return None
        others = others[:_ROWS]
        fewer = max(1, codebooks // 2)
        op = learn(Rows.of(train[others]), w, bias, fewer, FitConfig("paper"), Progress(False))
        return cls(fewer, nmse(op, x), nmse(op, train[held_out]))


def differs(nmse: float, train_nmse: float | None) -> bool:
    """Returns whether the error is larger than that on the training rows, if that is known."""
    return train_nmse is not None and nmse > _LARGER * train_nmse


def suggestion(
    codebooks: int,
    nmse: float,
    quantization: float,
    train_nmse: float | None,
    train_rows: int | None,
    occupancy: Float[np.ndarray, "codebooks 16"],
    simpler: Simpler | None = None,
) -> str:
    """Returns advice on the largest part of the error, or an empty string.

    Args:
      codebooks: number of codebooks, C.
      nmse: NMSE on rows that were not learned from.
      quantization: part of `nmse` that comes from rounding the tables.
      train_nmse: NMSE on the training rows; None if it is not known.
      train_rows: number of training rows; None if it is not known.
      occupancy: share of the rows that reach each leaf.
      simpler: errors of an op with fewer codebooks; None if they were not measured.

    Example:
      >>> suggestion(64, 0.31, 1e-4, 0.02, 1600, np.full((64, 16), 1 / 16), Simpler(32, 0.34, 0.33))
      'Rows too few for C = 64: NMSE on training rows 0.02, on others 0.31. Learn from >= 20,480 rows.'
    """
    if not codebooks:
        return _without_codebooks(nmse, train_nmse)
    if train_nmse is not None and train_rows is not None and differs(nmse, train_nmse):
        ample = max(_AMPLE * LEAVES * codebooks, 2 * train_rows)
        return _about_rows(codebooks, nmse, train_nmse, ample, simpler)
    if nmse > 1:
        return (
            "Worse than predicting the mean: is this the `w` and `bias`, are these rows like those, it was learned for?"
        )
    if quantization > 0.25 * nmse:
        return "Rounding the tables to 8 bits is much of the error: more codebooks bring little."
    if (occupancy == 0).mean() > 0.5:
        return "More than half of the leaves are unused: few different rows, or features that are constant."
    if nmse > 0.05:
        return f"The trees are the limit: use more codebooks (C = {2 * codebooks}), or a method that learns longer."
    return ""


def _without_codebooks(nmse: float, train_nmse: float | None) -> str:
    """Returns advice about factors, or a whole product in int8."""
    if differs(nmse, train_nmse):
        return (
            f"Rows of another kind, or too few: NMSE on training rows {train_nmse:.2g}, on others {nmse:.2g}. Learn "
            "from more rows, like those that the op will see."
        )
    return "The rank is the limit: use a larger one, or codebooks beside the factors." if nmse > 0.05 else ""


def _about_rows(codebooks: int, nmse: float, train_nmse: float, ample: int, simpler: Simpler | None) -> str:
    """Returns advice where new rows have a larger error: they are of another kind, or training rows are too few."""
    text = f"NMSE on training rows {train_nmse:.2g}, on others {nmse:.2g}."
    if simpler is None:
        return (
            f"Rows too few for C = {codebooks}, or of another kind: {text} Learn from >= {ample:,} rows like those "
            "that the op will see."
        )
    fewer = ""
    if simpler.nmse < min(_SMALLER * nmse, 1):
        fewer = f' Fewer codebooks are better on these rows: C = {simpler.codebooks} has {simpler.nmse:.2g} ("paper").'
    if differs(simpler.nmse, simpler.train_nmse):
        return f"Rows of another kind: {text} Learn from rows like those that the op will see.{fewer}"
    return f"Rows too few for C = {codebooks}: {text} Learn from >= {ample:,} rows.{fewer}"
