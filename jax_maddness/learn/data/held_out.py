"""Which rows are held out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def split(
    count: int, share: float, most: int | None = None
) -> tuple[Int[np.ndarray, " held_out"], Int[np.ndarray, " others"]]:
    """Draws which of `count` rows are held out: a random `share` of them, the same for the same `count`.

    At least one row is held out, and at least one is not, as long as there are two; at most `most` are held out.

    Example:
      >>> held_out, others = split(10, 0.2)
      >>> sorted([*held_out.tolist(), *others.tolist()]) == list(range(10)), len(held_out)
      (True, 2)
    """
    order = np.random.default_rng(0).permutation(count)
    size = min(max(1, round(share * count)), count - 1, count if most is None else most)
    return order[: max(size, 0)], order[max(size, 0) :]
