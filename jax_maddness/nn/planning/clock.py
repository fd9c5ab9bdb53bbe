"""`Clock`: the time that a plan has, what its steps take, and the line on stderr that shows both."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator

from jax_maddness.learn.progress import DELAY, Progress

_MARGIN = 1.25
"""A step is expected to take so many times as long as the longest before: the machine may be busy."""
_MOST_RESERVED = 0.1
"""The largest share of the time of the plan that is kept for its last step."""


class TimeUpError(Exception):
    """A step would end after the time of the plan, or is interrupted at that time."""


class Clock(Progress):
    """The time of a plan. Learning reports its steps to it, and is interrupted when the time is up.

    A step is not begun unless it is expected to end in time: it is expected to take a little longer than the longest
    step of its kind so far.

    Args:
      show: whether progress is shown; None shows it after two seconds.
      seconds: the time of the plan, from now on.
      now: returns the present time in seconds.
    """

    def __init__(self, show: bool | None, seconds: float, now: Callable[[], float] = time.perf_counter):
        super().__init__(False)
        self._now, self._start = now, now()
        self._end = self._start + seconds
        self._delay = DELAY if show is None else 0.0 if show else math.inf
        self._reserved = self._held = 0.0
        self._longest: dict[str, float] = {}
        self._stage, self._incumbent, self._shown = "", "", 0

    @property
    def left(self) -> float:
        """Seconds that are left, but for those that are reserved; negative when the time is up."""
        return self._end - self._reserved - self._held - self._now()

    def hold(self, share: float) -> None:
        """Keeps a share of the time of the plan, in place of what was held before, for steps at its end."""
        seconds = self._end - self._start
        self._held = share * seconds if math.isfinite(seconds) else 0.0

    def reserve(self, kind: str, least: float = 0.0) -> None:
        """Keeps time for one more step of a kind until `release`: all other steps end before.

        Nothing is kept if that would be a large share of the time of the plan.
        """
        seconds = _MARGIN * max(self._longest.get(kind, 0.0), least)
        self._reserved = seconds if seconds <= _MOST_RESERVED * (self._end - self._start) else 0.0

    def release(self) -> None:
        """Frees the time that was reserved."""
        self._reserved = 0.0

    def allows(self, kind: str, least: float = 0.0) -> bool:
        """Whether a step of a kind, which takes no less than `least` seconds, is expected to end in time."""
        return self.left > _MARGIN * max(self._longest.get(kind, 0.0), least)

    @contextlib.contextmanager
    def doing(self, kind: str, words: str, least: float = 0.0, always: bool = False) -> Iterator[None]:
        """Counts a step of a kind, which `words` describe in the progress line.

        Args:
          kind: steps of one kind take about as long.
          words: what is done.
          least: no step of this kind takes less, in seconds.
          always: the step is begun whatever the time is.

        Raises:
          TimeUpError: The step is not begun, as it would not end in time.
        """
        if not always and not self.allows(kind, least):
            raise TimeUpError
        self._stage, begin = words, self._now()
        self._show()
        try:
            yield
        finally:
            self._longest[kind] = max(self._longest.get(kind, 0.0), self._now() - begin)

    def best(self, words: str) -> None:
        """Sets the words for the best model so far."""
        self._incumbent = words
        self._show()

    def expect(self, steps: int) -> None:
        """Ignores the number of steps that learning announces: the time that is left says more."""

    def stage(self, name: str) -> None:
        """Ignores the stages of learning: the line names the layer."""

    def step(self, count: int = 1) -> None:
        """Hears of a step of learning.

        Raises:
          TimeUpError: The time is up.
        """
        self._show()
        if self.left < 0:
            raise TimeUpError

    def __exit__(self, *error: object) -> None:
        if self._shown:
            print("\r" + " " * self._shown, end="\r", file=sys.stderr, flush=True)

    def _show(self) -> None:
        """Writes the line over the one before."""
        if self._now() - self._start < self._delay:
            return
        parts = (self._stage, self._incumbent, f"{max(self.left, 0):.0f} s left")
        line = "plan: " + " | ".join(part for part in parts if part)
        print("\r" + line.ljust(self._shown), end="", file=sys.stderr, flush=True)
        self._shown = max(self._shown, len(line))
