"""Times contenders in turn, round after round, in one process: what slows the machine down slows all of them.

Of the libraries, pyperf gives every benchmark processes of its own, pytest-benchmark and richbench finish one before
the next; google-benchmark interleaves, but takes one number of rounds for all, from tiny calls to seconds, through
a file and a global registry: more code to drive than the loop below.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Timed(Protocol):
    """What is timed."""

    @property
    def call(self) -> Callable[[], Any]:
        """Does the work and waits for it."""

    @property
    def context(self) -> Callable[[], contextlib.AbstractContextManager]:
        """Makes the context that all calls of a slice run in."""


SLICE = 0.02
"""Seconds of calls that a contender gets in a round, unless one call takes longer."""
PAUSE = 0.005
"""Seconds between two contenders, in which thread pools of the last one stop spinning."""


def interleaved(
    contenders: Sequence[Timed], *, seconds: float, rounds: tuple[int, int], slice_seconds: float = SLICE
) -> list[list[float]]:
    """Milliseconds of a call, per contender and round.

    In a round each contender is called as often as fits in a slice, back to back, so that small operands are hot; the
    round's figure is the median of its calls. The order changes from round to round.

    Args:
      contenders: what to time.
      seconds: how long all rounds may take; the least number of rounds is run in any case.
      rounds: the least and the largest number of rounds.
      slice_seconds: of calls per contender and round.
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
    """How many calls fit, by the second of two calls; the first one compiles, allocates, reads from memory."""
    with contender.context():
        for _ in range(2):
            begin = time.perf_counter()
            contender.call()
            taken = time.perf_counter() - begin
            if taken > 50 * slice_seconds:
                break
    return max(1, min(200, int(slice_seconds / taken)))


def _slice(contender: Timed, calls: int) -> float:
    """Median milliseconds of so many calls; where there are several, one more, before them, is not counted."""
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
    """Lower quartile, median, upper quartile.

    Example:
      >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
      (2.0, 3.0, 4.0)
    """
    if len(figures) == 1:
        return figures[0], figures[0], figures[0]
    low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
    return low, middle, high
