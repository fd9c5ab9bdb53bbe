"""Times contenders in turn, round after round, in one process, so that a slower machine affects all of them alike.

No library does this in less code: pyperf runs every benchmark in processes of its own, pytest-benchmark and richbench
finish one before the next; google-benchmark interleaves, but with one number of rounds for all, from tiny calls to
seconds, and through a file and a global registry.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Timed(Protocol):
    """The interface of a contender."""

    @property
    def call(self) -> Callable[[], Any]:
        """Does the work and waits for it."""

    @property
    def context(self) -> Callable[[], contextlib.AbstractContextManager]:
        """Makes the context that all calls of a slice run in."""


SLICE = 0.02
"""Seconds of calls that a contender gets in a round, unless one call takes longer."""
PAUSE = 0.005
"""Seconds between two contenders, so that the thread pools of the first one stop spinning."""


def interleaved(
    contenders: Sequence[Timed], *, seconds: float, rounds: tuple[int, int], slice_seconds: float = SLICE
) -> list[list[float]]:
    """Returns the milliseconds of a call, per contender and round.

    In a round each contender is called as often as fits into a slice, back to back, so that small operands are in the
    caches; the figure of the round is the median of its calls. The order changes from round to round.

    Args:
      contenders: the contenders.
      seconds: time limit of all rounds; the least number of rounds is run in any case.
      rounds: the least and the greatest number of rounds.
      slice_seconds: seconds of calls per contender and round.
    """
    order = random.Random(0)  # noqa: S311
    calls = [_calls_in_a_slice(contender, slice_seconds) for contender in contenders]
    figures: list[list[float]] = [[] for _ in contenders]
    start = time.perf_counter()
    for done in range(rounds[1]):
        if done >= rounds[0] and time.perf_counter() - start > seconds:
            break
        for i in order.sample(range(len(contenders)), len(contenders)):
            time.sleep(PAUSE)
            figures[i].append(_slice(contenders[i], calls[i]))
    return figures


def _calls_in_a_slice(contender: Timed, slice_seconds: float) -> int:
    """Returns how many calls fit, by the time of the second call: the first compiles, allocates and reads memory."""
    with contender.context():
        for _ in range(2):
            begin = time.perf_counter()
            contender.call()
            taken = time.perf_counter() - begin
            if taken > 50 * slice_seconds:
                break
    return max(1, min(200, int(slice_seconds / taken)))


def _slice(contender: Timed, calls: int) -> float:
    """Returns the median milliseconds of `calls` calls; if there are several, a call before them is not counted."""
    times = []
    with contender.context():
        if calls > 1:
            contender.call()
        for _ in range(calls):
            begin = time.perf_counter()
            contender.call()
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def quartiles(figures: Sequence[float]) -> tuple[float, float, float]:
    """Returns lower quartile, median and upper quartile.

    Example:
      >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
      (2.0, 3.0, 4.0)
    """
    if len(figures) == 1:
        return figures[0], figures[0], figures[0]
    low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
    return low, middle, high
