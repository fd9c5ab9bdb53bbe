"""`UnitRows`: the rows that a plan learns the replacements of units from, captured when they are first asked for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_maddness.learn.config import REPORTED_SHARE
from jax_maddness.learn.data.held_out import split
from jax_maddness.nn.batches import validate_rows
from jax_maddness.nn.calibrate import learn_unit, unlearnable, validate_captured
from jax_maddness.nn.capture import Captured, record
from jax_maddness.nn.layers.kinds import REWRITTEN
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.planning.advice import is_one_hot
from jax_maddness.nn.planning.bench import learns, with_product
from jax_maddness.nn.planning.clock import Clock, TimeUpError
from jax_maddness.nn.replacement import Replacement, with_replacements
from jax_maddness.nn.units import Unit


class UnitRows:
    """Rows to learn from and held-out rows of every unit; they are captured when they are first asked for."""

    def __init__(
        self, model: Model, to_plan: Sequence[Unit], batches: list[Any], limits: tuple[int, int], clock: Clock
    ):
        self._model, self._units, self._batches, self._limits, self._clock = model, to_plan, batches, limits, clock
        self._last: tuple[str | None, list[np.ndarray], list[np.ndarray]] = (None, [], [])

    def learn(self, unit: Unit) -> Replacement:
        """Learns the replacement of a unit, without its exact kernel."""
        return learn_unit(unit, self._split(unit)[0], False, self._clock)

    def held_out(self, unit: Unit) -> list[np.ndarray]:
        """Returns the held-out rows of a unit, `[rows, groups, D]` for each step of a scan."""
        return self._split(unit)[1]

    def on_prefix(self, units: Sequence[Unit], replacements: Sequence[Replacement]) -> list[Replacement]:
        """Learns units again, each from the inputs that it has where the units before it are replaced.

        Targets are the exact model's values. What is made from weights alone stays, and so do units at the end for
        which there is no time.

        Args:
          units: in the order of their calls.
          replacements: of the units, as they were learned from inputs in the exact model.
        """
        current, learned = self._model, list[Replacement]()
        with contextlib.suppress(TimeUpError):
            for unit, replacement in zip(units, replacements, strict=True):
                if not self._clock.allows("drop"):  # it is measured afterwards
                    break
                if unit.learns:
                    with self._clock.doing("prefix", f"{unit.owner or 'the model'}, after the layers before it"):
                        replacement = self._on_prefix(current, unit)
                learned.append(replacement)
                current = with_replacements(current, [unit], [replacement])
        return [*learned, *replacements[len(learned) :]]

    def _on_prefix(self, current: Model, unit: Unit) -> Replacement:
        """Learns a unit from its inputs in a model with replaced layers."""
        path = unit.first.path
        # The same batches give the same places, so these rows correspond to those of the exact model one to one.
        drifted = record(current, [unit.first], self._batches, *self._limits, progress=False).rows[path]
        train = [rows[split(len(rows), REPORTED_SHARE)[1]] for rows in drifted]
        return learn_unit(unit, train, False, self._clock, exact=self._split(unit)[0])

    def unlearnable(self) -> dict[str, str]:
        """Returns, by owner, why some units cannot be learned."""
        return unlearnable(self._captured, [unit for unit in self._units if learns(unit)])

    def one_hot(self) -> set[str]:
        """Returns the owners of units whose inputs are one-hot."""
        rows = self._captured.rows
        return {unit.owner for unit in self._units if all(map(is_one_hot, rows[unit.first.path]))}

    @functools.cached_property
    def _captured(self) -> Captured:
        first = [unit.first for unit in self._units if not learns(unit)]
        layers = [unit.first for unit in self._units if learns(unit)]
        few = {layer.path for layer in first}
        captured = Captured({}, {})
        if layers:
            captured = record(self._rewritten, layers, self._batches, *self._limits, progress=False)
        if few:  # their rows are only compared, so that one batch is enough
            found = record(self._model, first, self._batches[:1], *self._limits, progress=False, unlearned=few)
            captured = Captured(captured.rows | found.rows, captured.seen | found.seen, captured.batches)
        for unit in self._units:
            validate_rows(unit.first.path, captured.rows[unit.first.path], self._batches)
        validate_captured(captured, self._units)
        return captured

    @property
    def _rewritten(self) -> Model:
        """The model with depthwise convolutions rewritten, exactly, which may be several times as fast."""
        some = [unit for unit in self._units if not learns(unit) and unit.form.can_rewrite(unit.shape[0])]
        some = [with_product(unit, (REWRITTEN, 0)) for unit in some]
        no_rows = np.zeros(0)  # these products are made from weights alone
        replacements = [learn_unit(unit, [no_rows] * max(unit.steps, 1), False, self._clock) for unit in some]
        return with_replacements(self._model, some, replacements) if some else self._model

    def _split(self, unit: Unit) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns rows to learn from and held-out rows; copies of one unit's are kept, as those of all are large."""
        if unit.owner != self._last[0]:
            parts = [(rows, *split(len(rows), REPORTED_SHARE)) for rows in self._captured.rows[unit.first.path]]
            train, held_out = ([rows[others] for rows, _, others in parts], [rows[chosen] for rows, chosen, _ in parts])
            self._last = (unit.owner, train, held_out)
        return self._last[1], self._last[2]
