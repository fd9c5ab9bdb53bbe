"""`Record`: the measurements and decisions of a plan, from which reports are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax_maddness.nn.layers.kinds import EXACT, SAME
from jax_maddness.nn.planning.confidence import largest_drop
from jax_maddness.nn.planning.verdict import LayerPlan, Refit, Trial
from jax_maddness.nn.replacement import Replacement

WEIGHTS = "weights of `model`"
"""The name in `Record.fingerprint` of the model's arrays."""
HELD_OUT = "`held_out`"
"""The name in `Record.fingerprint` of held-out batches that were passed apart from the others."""


@dataclasses.dataclass
class Record:
    """Measurements and decisions of a plan.

    Attributes:
      layers: a line for every layer with a kernel, in the order of their calls; layers that share an op are one line.
      max_drop: the most that the metric may lose.
      metric: the metric's name.
      machine, date, versions, batch: describe where, when and on what it was measured.
      exact_ms, fast_ms: median milliseconds of the whole model on the first batch, as it is and as planned; the latter
        in units of the former, which is measured first, so that their ratio is the speed-up.
      before, after: the metric on the held-out batches; None: not measured yet.
      trials: models that were tried.
      finished: nothing was left out for lack of time.
      only_look: layers were timed as they are, and nothing was tried.
      how: by name, the fields of the `Rule` of each planned line.
      fingerprint: by name, of what decided the measurements: `plan` goes on with a file only if it is the same. Empty
        in a plan of an earlier version.
      learned: replacements by name, kind and size; empty in a plan that was read from a file.
      measured_ms: milliseconds of the exact and the planned model, timed in turns. None: they were not, and the
        speed-up is estimated as the product of the ratios of each answer and the one before.
      held_out: number of held-out batches; 0 where there was only one batch, or in a plan of an earlier version.
      examples: number of held-out examples, if the metric is the share of them in which a model agrees with the exact
        one; otherwise 0.
      refits: the answer, fitted again.
      rest_ms: milliseconds of the exact model without the lines that rules ask for, timed in turns with it; None: it
        was not measured, or the difference was within the noise.
      example: shapes and dtypes of the first batch; None in a plan that was read from a file.
    """

    layers: tuple[LayerPlan, ...]
    max_drop: float
    metric: str
    machine: str
    exact_ms: float = 0.0
    fast_ms: float = 0.0
    before: float | None = None
    after: float | None = None
    trials: tuple[Trial, ...] = ()
    finished: bool = False
    how: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    fingerprint: Mapping[str, str] = dataclasses.field(default_factory=dict)
    learned: dict[tuple[str, str, int], Replacement] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )
    example: Any = dataclasses.field(default=None, repr=False, compare=False)
    only_look: bool = False
    date: str = ""
    versions: str = ""
    batch: str = ""
    measured_ms: tuple[float, float] | None = None
    held_out: int = 0
    refits: tuple[Refit, ...] = ()
    rest_ms: float | None = None
    examples: int = 0

    @property
    def replaced(self) -> tuple[LayerPlan, ...]:
        """The lines that are replaced."""
        return tuple(layer for layer in self.layers if layer.choice is not None)

    @property
    def holds_ops(self) -> bool:
        """Whether the plan has a replacement for every line that it replaces."""
        return all((layer.name, layer.by, layer.choice) in self.learned for layer in self.replaced)

    def refitted(self, kind: str) -> bool:
        """Whether the answer was fitted again in this way, and is better for it."""
        return any(refit.kept for refit in self.refits if refit.kind == kind)

    @property
    def largest_drop(self) -> float | None:
        """The most that the agreement with the exact model may drop on other examples; None for another metric."""
        if self.examples < 1 or not self.held_out or self.before is None or self.after is None:
            return None
        return largest_drop(self.before - self.after, self.examples) if self.is_approximate else 0.0

    @property
    def is_approximate(self) -> bool:
        """Whether a line is replaced by a product that is not its own, rewritten."""
        return any(line.by not in SAME for line in self.replaced)

    @property
    def looked_at(self) -> tuple[LayerPlan, ...]:
        """The lines that were timed as they are, those of the largest share of the model's time first."""
        timed = [line for line in self.layers if line.of(EXACT)]
        return tuple(sorted(timed, key=lambda line: -line.exact.ms))

    @property
    def scale(self) -> float:
        """The time of all lines in the model, in units of the sum of their times alone; 1 if it was not measured.

        Alone, a layer reads and writes arrays that XLA keeps in caches, or never writes, in the model.
        """
        alone = sum(line.exact.ms for line in self.looked_at)
        return 1.0 if self.rest_ms is None or not alone else (self.exact_ms - self.rest_ms) / alone

    def share(self, line: LayerPlan) -> float:
        """Returns a line's scaled time as a share of the exact model's; 0 if it was not timed."""
        return self.scale * line.exact.ms / self.exact_ms if line.of(EXACT) and self.exact_ms else 0.0

    @property
    def rest(self) -> float:
        """The share of the exact model's time in everything that rules do not ask for."""
        return max(0.0, 1 - sum(map(self.share, self.layers)))

    @property
    def best_case(self) -> float:
        """The speed-up of the model if the lines that were looked at took no time (Amdahl's law)."""
        return 1 / max(self.rest, 0.01)  # more cannot be told from times of layers alone
