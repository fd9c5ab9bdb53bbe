"""Errors on the same rows, of two ways to learn -> which one serves better, where more than luck says so."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def surely_less(errors: Float[np.ndarray, " rows"], others: Float[np.ndarray, " rows"]) -> bool:
    """Whether the sum of `errors` is smaller, by more than the standard error of the difference.

    Infinite errors lose against finite ones; of no rows, nothing is sure.

    Example:
      >>> surely_less(np.array([1.0, 2.0]), np.array([2.0, 2.9]))
      True
      >>> surely_less(np.array([1.0, 2.0]), np.array([0.9, 2.5]))
      False
    """
    if not np.isfinite(errors).all() or len(errors) == 0:
        return False
    if not np.isfinite(others).all():
        return True
    gain = np.asarray(others, np.float64) - errors
    return bool(gain.sum() > np.sqrt(len(gain)) * gain.std())
