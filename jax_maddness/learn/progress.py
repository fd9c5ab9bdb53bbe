"""Progress of long fits, on stderr."""

from __future__ import annotations

import warnings
from types import TracebackType

from tqdm import TqdmWarning  # type: ignore[import-untyped]

with warnings.catch_warnings():  # in a notebook without ipywidgets the bar is text, which needs no warning at import
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

DELAY = 2.0
"""Seconds for which progress is not shown, so that short work stays silent."""


class Progress:
    """A progress bar that counts steps.

    Args:
      show: whether the bar is shown; None shows it after two seconds, so that short fits stay silent.
      of: name of the work, in front of the name of the stage.
    """

    def __init__(self, show: bool | None, of: str = "fit"):
        self._of = of
        self._bar = tqdm(total=0, disable=show is False, delay=DELAY if show is None else 0, leave=show is True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def expect(self, steps: int) -> None:
        """Announces that `steps` more steps are to come."""
        self._bar.total += steps

    def stage(self, name: str) -> None:
        """Shows `name` as the stage that the next steps belong to."""
        self._bar.set_description(f"{self._of}: {name}", refresh=False)

    def step(self, count: int = 1) -> None:
        """Counts `count` steps as done."""
        self._bar.update(count)
