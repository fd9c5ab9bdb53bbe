"""Confidence in a drop: a share of few held-out examples says little about others.

This is about the agreement with the exact model, which itself scores 1: then nothing can be gained, and the examples
that are lost are counted. Of an accuracy only the net change is known, whose variance is larger than it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

CONFIDENCE = 0.95
"""Probability with which `largest_drop` holds."""
_WHOLE = 1e-6
"""Error of a share in float32, as a mean of zeros and ones has it."""


def are_shares(scores: Sequence[float], sizes: Sequence[int]) -> bool:
    """Returns whether scores of batches may be shares of their examples.

    Args:
      scores: the metric of each batch.
      sizes: the number of examples of each batch.

    Example:
      >>> are_shares([0.75, 0.5], [4, 4]), are_shares([0.7, 0.5], [4, 4])
      (True, False)
    """
    return all(
        0 <= score <= 1 and abs(score * size - round(score * size)) <= _WHOLE * size
        for score, size in zip(scores, sizes, strict=True)
    )


def largest_drop(drop: float, examples: int) -> float:
    """Returns the most that a share of 1 may drop on other examples of the same kind (Clopper & Pearson, 1934).

    Args:
      drop: of the share, measured. Nothing may have been gained for what was lost.
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
