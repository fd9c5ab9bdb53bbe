"""`Fitter`: fits the answer of a plan again: layer by layer on what the layers before leave, and by fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jax_maddness.nn.finetune import tune_tables
from jax_maddness.nn.layers.approximate import to_arrays, to_op
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.planning.clock import Clock
from jax_maddness.nn.planning.verdict import CALIBRATED
from jax_maddness.nn.replacement import CodesReplacement, Replacement, with_replacements
from jax_maddness.nn.unit_rows import UnitRows
from jax_maddness.nn.units import Unit


@dataclasses.dataclass(frozen=True)
class Fitter:
    """Fits replacements of units again, in the time that is left.

    Attributes:
      model: the exact model.
      rows: of its units.
      batches: those that layers are learned from.
      call: as for `plan`.
      clock: the time of the plan.
    """

    model: Model
    rows: UnitRows
    batches: list[Any]
    call: Callable[[Any, Any], Any] | None
    clock: Clock

    def fit(self, kind: str, steps: int, units: Sequence[Unit], replacements: list[Replacement]) -> list[Replacement]:
        """Returns replacements of the units that are fitted again.

        Args:
          kind: `CALIBRATED` or `TUNED`.
          steps: of training.
          units: in the order of their calls.
          replacements: of the units.

        Raises:
          ValueError: No replacement has tables that could be trained, or the loss is no finite number.
        """
        if kind == CALIBRATED:
            return self.rows.on_prefix(units, replacements)
        fast = with_replacements(self.model, units, replacements)
        tuned = tune_tables(fast.model, self.model.model, self.batches, steps, self.call, self._ends)
        arrays, specs, places = tuned.arrays(), tuned.specs(), tuned.op_places()
        fitted = list[Replacement]()
        for unit, replacement in zip(units, replacements, strict=True):
            if isinstance(replacement, CodesReplacement):
                named = {name: arrays[places[unit.owner][name]] for name in to_arrays(replacement.op)}
                op = to_op(specs[unit.first.path], named)
                replacement = dataclasses.replace(replacement, op=op)
            fitted.append(replacement)
        return fitted

    def _ends(self, seconds: float) -> bool:
        """Whether a part of training that takes so long would end too late."""
        return self.clock.left < seconds
