"""`nmse`: the error of outputs, as `plan` and the report of `finetune` compare it. It is never NaN."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

_ROUNDING = 16 * np.finfo(np.float64).eps
"""Deviations from the mean that are smaller, relative to the largest output, are rounding errors of the mean."""


def nmse(y: Float[np.ndarray, "rows outputs"], exact: Float[np.ndarray, "rows outputs"]) -> float:
    """Returns `|y - exact|^2 / |exact - mean|^2`, with each output's mean.

    Where `exact` is not finite, as masked logits are not, `y` must have the same infinity or NaN; these places are left
    out of both sums.

    Returns:
      Infinity if `y` differs at such a place, or is not finite at another; else the error, computed in float64. If
      nothing varies, 0 where nothing is wrong and 1 where something is.

    Example:
      >>> exact = np.array([[1.0, -np.inf], [3.0, -np.inf]])
      >>> nmse(exact + 1, exact), nmse(np.nan_to_num(exact), exact), nmse(np.nan * exact, exact)
      (1.0, inf, inf)
    """
    y, exact = np.asarray(y, np.float64), np.asarray(exact, np.float64)
    finite = np.isfinite(exact)
    if not np.array_equal(y[~finite], exact[~finite], equal_nan=True) or not np.isfinite(y[finite]).all():
        return math.inf
    if not finite.any():
        return 0.0
    # Scaled by a power of two, so that no square of `exact` overflows or becomes 0.
    exponent = -np.frexp(np.abs(exact[finite]).max())[1]
    with np.errstate(over="ignore"):  # an error that overflows is infinite
        y, exact = (np.ldexp(np.where(finite, a, 0), exponent) for a in (y, exact))
        error = float(np.square(y - exact).sum())
    mean = exact.sum(0) / np.maximum(finite.sum(0), 1)
    variation = float(np.square(np.where(finite, exact - mean, 0)).sum())
    return error / variation if variation > exact.size * _ROUNDING**2 else float(error > 0)


def finite_or_infinite(error: float) -> float:
    """Returns an error, or infinity for NaN: an error that is not a number must never be the least one."""
    return math.inf if math.isnan(error) else error
