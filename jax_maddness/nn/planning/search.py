"""The search for a plan: options are measured, then models with several layers replaced are tried.

Learning is passed in as functions, so that this file depends neither on capture nor on calibration.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jax_maddness.nn.layers.kinds import CODES, INT8, LOW_RANK
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.nmse import finite_or_infinite
from jax_maddness.nn.planning import measure, verdict
from jax_maddness.nn.planning.report import Plan, Trial, rule_fields
from jax_maddness.nn.planning.score import Score
from jax_maddness.nn.planning.verdict import Choice, LayerPlan
from jax_maddness.nn.replacement import Replacement, with_replacements
from jax_maddness.nn.units import Unit


@dataclasses.dataclass
class Search:
    """A plan in the making.

    Attributes:
      plan: is updated in place, and written to `path` after each step.
      model: the exact model.
      units: the layers that rules ask for.
      score: of models on held-out batches.
      batch: the batch on which whole models are timed.
      learn: returns the replacement of a unit.
      held_out_rows: returns rows of a unit that nothing was learned from, for each step of a scan.
      deadline: `time.perf_counter()` after which no measurement is begun.
      path: a JSON file, or None.
    """

    plan: Plan
    model: Model
    units: Sequence[Unit]
    score: Score
    batch: Any
    learn: Callable[[Unit], Replacement]
    held_out_rows: Callable[[Unit], list[np.ndarray]]
    deadline: float
    path: str | os.PathLike[str] | None

    def run(self) -> None:
        """Measures, decides, and completes the plan."""
        self.plan.before = self.score.exact  # first, as a metric that cannot be used is found in seconds
        try:
            self._measure()
            self._decide()
        except Exception as error:
            # A model or metric of the user's may raise: the message stays its own.
            kept = f"is kept in {os.fspath(self.path)!r}" if self.path is not None else "is lost: it needs a `path`"
            error.add_note(f"`plan` was not finished. What it has measured so far {kept}.")
            self._write()
            raise

    def _measure(self) -> None:
        """Measures every unit, the largest first: its options, then the drop of those that are worth trying."""
        lines = {line.name: line for line in self.plan.layers}
        for unit in sorted(self.units, key=lambda unit: -math.prod(unit.shape) * lines[unit.owner].rows):
            line = lines[unit.owner]
            if not line.options:
                if self._late():
                    continue
                line = dataclasses.replace(line, options=self._options(unit))
                self._put(line)
            for option in verdict.worth_trying(line):
                if self._late() or verdict.best(line, self.plan.max_drop) is not None:
                    break
                if option.drop is None:
                    line = line.with_drop(option, self._drop([(line, option)]))
                    self._put(line)

    def _options(self, unit: Unit) -> tuple[verdict.Option, ...]:
        """Measures the time and the error of every option of a unit."""
        sizes: list[tuple[str, int]] = []
        if unit.form.groups == 1:  # the other products know no groups
            sizes = [(INT8, 0), *((LOW_RANK, rank) for rank in measure.ranks(unit.shape))]
        sizes += [(CODES, c) for c in self.plan.how[unit.owner]["num_codebooks"]]
        replacements = {size: self._learned(unit, *size) for size in sizes}
        return measure.measured(unit, self.held_out_rows(unit), replacements)

    def _learned(self, unit: Unit, kind: str, size: int) -> Replacement:
        """Returns the replacement of a unit, which is learned once."""
        key = (unit.owner, kind, size)
        if key not in self.plan.learned:
            self.plan.learned[key] = self.learn(_with_product(unit, kind, size))
        return self.plan.learned[key]

    def _late(self) -> bool:
        return time.perf_counter() > self.deadline

    def _put(self, line: LayerPlan) -> None:
        """Puts a new version of a line into the plan."""
        self.plan.layers = tuple(line if line.name == old.name else old for old in self.plan.layers)
        self._write()

    def _write(self) -> None:
        if self.path is not None:
            self.plan.to_json(self.path)

    def _decide(self) -> None:
        """Tries models with several layers replaced, and writes the verdicts."""
        limit = self.plan.max_drop
        order = verdict.ordered(self._close_enough(verdict.accepted(self.plan.layers, limit)))
        count = verdict.longest(len(order), lambda n: verdict.within(self._drop(order[:n]), limit))
        chosen, instead = order[:count], "others gain more for what they cost, and together the drop is too large"
        self.plan.exact_ms, self.plan.fast_ms, gains = self._compare(chosen)
        if chosen and not gains:
            chosen = []
            instead = f"the whole model gains nothing measurable, {self.plan.exact_ms / self.plan.fast_ms:.2f}x"
            self.plan.fast_ms = self.plan.exact_ms
        self.plan.after = self.score.exact - (self._drop(chosen) if chosen else 0.0)
        options, planned = {line.name: option for line, option in chosen}, {unit.owner for unit in self.units}
        self.plan.layers = tuple(
            verdict.decided(line, options.get(line.name), limit, instead) if line.name in planned else line
            for line in self.plan.layers
        )
        self.plan.finished = not any(line.unmeasured for line in self.plan.layers)
        self._write()

    def _close_enough(self, choices: list[Choice]) -> list[Choice]:
        """Takes closer options, as far as there are any, until all layers may be replaced together."""
        while choices and not verdict.within(self._drop(choices), self.plan.max_drop) and not self._late():
            closer = verdict.closer(choices)
            if closer is None:
                break
            line, option = closer
            drop = self._drop([closer]) if option.drop is None else option.drop
            line = line.with_drop(option, drop)
            self._put(line)
            better = (line, dataclasses.replace(option, drop=drop))
            choices = [better if line.name == other.name else (other, old) for other, old in choices]
        return choices

    def _replaced(self, chosen: Sequence[Choice]) -> Model:
        """Returns the model with the chosen layers replaced."""
        products = {line.name: (option.kind, option.size) for line, option in chosen}
        replaced = [_with_product(unit, *products[unit.owner]) for unit in self.units if unit.owner in products]
        return with_replacements(self.model, replaced, [self._learned(unit, *unit.choice) for unit in replaced])

    def _compare(self, chosen: Sequence[Choice]) -> tuple[float, float, bool]:
        """Returns milliseconds of the model as it is and as chosen, and whether that is a gain."""
        runs = [self.model.run(), *([self._replaced(chosen).run()] if chosen else [])]
        batch = jax.tree.map(jax.numpy.asarray, self.batch)
        times = measure.interleaved([functools.partial(run, batch) for run in runs])
        (exact, exact_noise), (fast, fast_noise) = times[0], times[-1]
        return exact, fast, verdict.gains(exact, fast, exact_noise + fast_noise, verdict.MIN_MODEL_GAIN)

    def _drop(self, chosen: Sequence[Choice]) -> float:
        """Returns the metric's drop for the chosen layers; a trial that was made is not made again."""
        names = tuple(sorted((line.name, option.kind, option.size) for line, option in chosen))
        for trial in self.plan.trials:
            if trial.replaced == names:
                return trial.drop
        drop = finite_or_infinite(self.score.exact - self.score.of(self._replaced(chosen)))
        lines = [dataclasses.replace(line, choice=option.size, by=option.kind) for line, option in chosen]
        self.plan.exact_ms = self.plan.exact_ms or self._compare([])[0]
        self.plan.trials += (Trial(names, verdict.predicted(lines, self.plan.exact_ms), drop),)
        self._write()
        return drop


def _with_product(unit: Unit, kind: str, size: int) -> Unit:
    """Returns the unit with a rule for another product."""
    return dataclasses.replace(unit, rule=dataclasses.replace(unit.rule, **rule_fields(kind, size)))
