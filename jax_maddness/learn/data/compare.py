"""A test whether the errors of one model are surely smaller than those of another on the same rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def surely_less(
    errors: Float[np.ndarray, " rows"], others: Float[np.ndarray, " rows"], standard_errors: float = 1.0
) -> bool:
    """Returns whether the sum of `errors` is smaller by more than the standard error of the difference.

    Infinite errors lose against finite ones. Without rows, the result is False.

    Args:
      errors: squared error of one model on each row.
      others: squared error of the other model on the same rows.
      standard_errors: number of standard errors that the difference must exceed.

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
    # Errors on the same rows vary together, so the paired differences have a smaller standard error than the sums.
    gain = np.asarray(others, np.float64) - errors
    return bool(gain.sum() > standard_errors * np.sqrt(len(gain)) * gain.std())
