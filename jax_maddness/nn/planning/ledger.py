"""`Ledger`: a plan in the making, which is kept after every entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jax_maddness.nn.planning.report import Plan
from jax_maddness.nn.planning.verdict import LayerPlan, Mix, Trial


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Lines and trials of a plan, which is updated in place.

    Attributes:
      plan: has them.
      write: keeps the plan; it is called after each entry.
    """

    plan: Plan
    write: Callable[[], None]

    def line(self, name: str) -> LayerPlan:
        """Returns the line of a name."""
        return next(line for line in self.plan.layers if line.name == name)

    def put(self, line: LayerPlan) -> None:
        """Puts a new version of a line into the plan."""
        self.plan.layers = tuple(line if line.name == old.name else old for old in self.plan.layers)
        self.write()

    def fail(self, name: str, words: str) -> None:
        """Adds to a line why something of it could not be measured."""
        line = self.line(name)
        if words not in line.failed:
            self.put(dataclasses.replace(line, failed=(*line.failed, words)))

    def trial(self, mix: Mix) -> Trial | None:
        """Returns the trial of a mix, if there was one."""
        return next((trial for trial in self.plan.trials if trial.mix == mix), None)

    def put_trial(self, trial: Trial) -> None:
        """Adds a trial, or puts a new version of it into the plan."""
        self.plan.trials = (*(old for old in self.plan.trials if old.replaced != trial.replaced), trial)
        self.write()
