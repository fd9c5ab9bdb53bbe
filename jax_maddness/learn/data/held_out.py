"""The random choice of held-out rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def split(
    count: int, share: float, most: int | None = None
) -> tuple[Int[np.ndarray, " held_out"], Int[np.ndarray, " others"]]:
    """Draws which of `count` rows are held out: a random `share` of them, the same at every call with this `count`.

    At least one row is held out and at least one is not, if there are two.

    Args:
      count: number of rows.
      share: share of the rows to hold out, between 0 and 1.
      most: largest number of rows to hold out; None for no limit.

    Returns:
      The numbers of the held-out rows, and those of the others.

    Example:
      >>> held_out, others = split(10, 0.2)
      >>> sorted([*held_out.tolist(), *others.tolist()]) == list(range(10)), len(held_out)
      (True, 2)
    """
    order = np.random.default_rng(0).permutation(count)
    size = min(max(1, round(share * count)), count - 1, count if most is None else most)
    return order[: max(size, 0)], order[max(size, 0) :]
