"""Confidence in a drop: a share of few held-out examples says little about others."""

from __future__ import annotations

import math
from collections.abc import Sequence

CONFIDENCE = 0.95
"""Probability with which `largest_drop` holds."""
_WHOLE = 1e-4
"""A number of examples this near to an integer, as a share of float32 may be, counts as one."""


def examples_of(scores: Sequence[float], sizes: Sequence[int]) -> int:
    """Returns the number of examples of which a metric is a share, as an accuracy is; 0 if it is none.

    Args:
      scores: the metric of each batch.
      sizes: the number of examples of each batch; 0 if it is not known.

    Example:
      >>> examples_of([0.75, 0.5], [4, 4]), examples_of([0.7, 0.5], [4, 4])
      (8, 0)
    """
    counts = [(score * size, size) for score, size in zip(scores, sizes, strict=True)]
    whole = all(size and -_WHOLE <= n <= size + _WHOLE and abs(n - round(n)) <= _WHOLE for n, size in counts)
    return sum(sizes) if whole else 0


def largest_drop(drop: float, examples: int) -> float:
    """Returns the most that a share may drop on other examples of the same kind (Clopper & Pearson, 1934).

    Args:
      drop: of the share, measured.
      examples: number of examples on which it was measured, at least 1.

    Example:
      >>> round(largest_drop(0.0, 80), 4), round(largest_drop(0.01, 400), 4)
      (0.0368, 0.0227)
    """
    from scipy.stats import beta  # type: ignore[import-untyped]  # takes longer than jax itself

    lost = min(max(round(drop * examples), 0), examples)
    return 1.0 if lost == examples else float(beta.ppf(CONFIDENCE, lost + 1, examples - lost))


def needed(max_drop: float) -> int:
    """Returns the least number of examples, none of which may be lost, that show a drop of at most `max_drop`.

    Example:
      >>> needed(0.01)
      299
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-max_drop))
