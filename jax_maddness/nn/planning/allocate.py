"""The mix of options with the least time within a limit of the drop: a knapsack with one choice for each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_STEPS = 1000
"""Steps into which the limit is divided; costs are rounded up, so that no mix is above the limit."""


def allocate(choices: Sequence[Sequence[tuple[float, float]]], limit: float) -> list[int]:
    """Returns, for each layer, the number of its choice in the mix of least time whose costs sum to at most `limit`.

    Args:
      choices: for each layer, pairs of time and cost, one of them of cost 0 (or less); others may be infinite.
      limit: the largest sum of costs; it may be infinite.

    Example:
      >>> allocate([[(5.0, 0.0), (1.0, 0.3)], [(5.0, 0.0), (2.0, 0.2), (4.0, 0.1)]], 0.4)
      [1, 2]
    """
    seconds = np.zeros(_STEPS + 1)  # the least time of the layers so far, by the steps of the limit that they take
    taken = []
    for layer in choices:
        steps = [_steps(cost, limit) for _, cost in layer]
        rows = np.full((len(layer), _STEPS + 1), np.inf)
        for row, (ms, _), cost in zip(rows, layer, steps, strict=True):
            if cost <= _STEPS:
                row[cost:] = seconds[: _STEPS + 1 - cost] + ms
        best = rows.argmin(0)
        taken.append((best, steps))
        seconds = rows.min(0)
    left, numbers = _STEPS, []
    for best, steps in reversed(taken):
        numbers.append(int(best[left]))
        left -= steps[numbers[-1]]
    return numbers[::-1]


def _steps(cost: float, limit: float) -> int:
    """Returns how many steps of the limit a cost takes; more than there are if it is above the limit."""
    if not math.isfinite(cost) or cost > limit:
        return _STEPS + 1
    return math.ceil(_STEPS * cost / limit) if cost > 0 and math.isfinite(limit) else 0
