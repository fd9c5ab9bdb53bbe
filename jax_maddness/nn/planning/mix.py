"""`Mixer`: predictions for mixes of products, from what was measured of layers and of whole models.

    time of a mix = time of the model - sum over its layers of (exact time - time of the product)
    drop of a mix = sum over its layers of the product's own drop, where it was measured, else sensitivity * NMSE

A layer's sensitivity is the largest ratio of drop to NMSE among its options with a measured drop. Where there is none,
it is the largest ratio of a model with several layers replaced, to the sum of their NMSE.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jax_maddness.nn.layers.kinds import EXACT, FACTORS, LOW_RANK, SAME
from jax_maddness.nn.planning.allocate import allocate
from jax_maddness.nn.planning.verdict import LayerPlan, Mix, Option, Product, Trial, worth_trying

_FLOOR = 20
"""Drops of whole models below `max_drop` by this factor do not tell sensitivities: they are noise of the metric."""
_OPTIMISM = 4
"""A product whose predicted drop is at most so many times `max_drop` is tried all the same."""
_MORE_OPTIMISM = 40
"""The same where no drop of the layer itself was measured: layers differ in their sensitivity."""


@dataclasses.dataclass(frozen=True)
class Mixer:
    """Predicts times and drops of mixes.

    Attributes:
      lines: with what was measured so far.
      incumbent: the best mix so far.
      trials: models that were tried.
      max_drop: the most that the metric may lose.
      exact_ms: milliseconds of the exact model.
    """

    lines: Sequence[LayerPlan]
    incumbent: Mix
    trials: Sequence[Trial]
    max_drop: float
    exact_ms: float

    def best(self, limit: float) -> Mix:
        """Returns the mix of least predicted time whose predicted drop is at most `limit`."""
        options = [self._choices(line) for line in self.lines]
        costs = [
            [(option.ms, self._cost(line, option)) for option in choices]
            for line, choices in zip(self.lines, options, strict=True)
        ]
        numbers = allocate(costs, limit)
        return self._mix([choices[number] for choices, number in zip(options, numbers, strict=True)])

    def best_exact(self) -> Mix:
        """Returns the mix of least predicted time in which layers are rewritten or stay."""
        options = [[o for o in (line.exact, *worth_trying(line)) if o.kind in SAME] for line in self.lines]
        return self._mix([min(choices, key=lambda option: option.ms) for choices in options])

    def gain(self, mix: Mix) -> float:
        """Predicts how many times as fast as the incumbent a mix is."""
        return self._ms(self.incumbent) / self._ms(mix)

    def predicted(self, mix: Mix) -> float:
        """Predicts how many times as fast as the exact model a mix is."""
        return self.exact_ms / self._ms(mix)

    def faster(self, line: LayerPlan) -> list[Option]:
        """Returns the options worth trying that are faster than what the incumbent has for a layer, fastest first."""
        now = line.option(self.incumbent[line.name]) if line.name in self.incumbent else line.exact
        return [option for option in worth_trying(line) if now is not None and option.ms < now.ms]

    def hopeless(self, line: LayerPlan, option: Option) -> bool:
        """Whether the predicted drop of an option is far above the limit, so that it is not worth a trial."""
        least = self._least_drop(line, option.nmse)
        return least is not None and least > self.max_drop

    def may_serve(self, line: LayerPlan, product: Product) -> bool:
        """Whether factors, a low rank or look-ups may serve a layer, so that they are worth learning.

        They do not if the layer is too sensitive: a lower rank is no closer, and C codebooks about as close.
        """
        errors = [o.nmse for o in line.options if o.kind in (FACTORS, LOW_RANK) and o.size >= product[1]]
        least = self._least_drop(line, max(errors)) if errors else None
        return least is None or least <= self.max_drop

    def may_gain(self, line: LayerPlan, product: Product, ms: float) -> bool:
        """Whether a product of known time may be faster than the incumbent's, and than factors that are as close."""
        kind, size = product
        others = [o for o in line.options if kind == LOW_RANK and o.kind == FACTORS and o.size >= size]
        return all(ms < option.ms for option in (self._choices(line)[0], *others) if option.ms > 0)

    def _choices(self, line: LayerPlan) -> list[Option]:
        """Returns the options that a mix may have for a layer; the incumbent's is the first."""
        product = self.incumbent.get(line.name)
        now = line.exact if product is None else line.option(product)
        if now is None:  # its time is not known, so that nothing can be compared with it
            assert product is not None
            return [Option(*product, 0.0, 0.0, 0.0)]
        others = [option for option in (line.exact, *worth_trying(line)) if option != now]
        return [now, *others]

    def _cost(self, line: LayerPlan, option: Option) -> float:
        """Predicts the drop of an option; infinity where nothing is known."""
        if option.kind in SAME or option.nmse == 0:
            return 0.0
        if option.drop is not None:
            return max(option.drop, 0.0)
        sensitivity = _sensitivity(line)
        if sensitivity is None:
            sensitivity = self._common(self.max_drop / _FLOOR if math.isfinite(self.max_drop) else 0.0)
        if sensitivity is None:
            return 0.0 if self.incumbent.get(line.name) == option.product else math.inf
        return sensitivity * option.nmse

    def _least_drop(self, line: LayerPlan, error: float) -> float | None:
        """Returns the least drop that a layer with this NMSE may cost; None where nothing tells."""
        sensitivity, optimism = _sensitivity(line), _OPTIMISM
        if sensitivity is None:
            sensitivity, optimism = self._common(None), _MORE_OPTIMISM
        return None if sensitivity is None else sensitivity * error / optimism

    def _common(self, least: float | None) -> float | None:
        """Returns the largest ratio of drop to the sum of NMSE among models with several layers replaced.

        Drops below `least` count as much; with None, drops that may be noise do not count.
        """
        ratios = []
        for trial in self.trials:
            errors = [_error(line, trial.mix[line.name]) for line in self.lines if line.name in trial.mix]
            counts = least is not None or trial.drop > self.max_drop / _FLOOR
            if len(trial.mix) > 1 and sum(errors) > 0 and math.isfinite(trial.drop) and counts:
                ratios.append(max(trial.drop, least or 0.0) / sum(errors))
        return max(ratios, default=None)

    def _mix(self, options: Sequence[Option]) -> Mix:
        """Returns the mix with an option for each line; other lines are as in the incumbent."""
        mix = dict(self.incumbent)
        for line, option in zip(self.lines, options, strict=True):
            mix.pop(line.name, None)
            if option.kind != EXACT:
                mix[line.name] = option.product
        return mix

    def _ms(self, mix: Mix) -> float:
        """Predicts the time of a mix: no less than that of its products."""
        options = [(line, line.option(mix[line.name])) for line in self.lines if line.name in mix]
        gained = sum(line.exact.ms - option.ms for line, option in options if option is not None)
        kept = sum(option.ms for _, option in options if option is not None)
        return max(self.exact_ms - gained, kept, 1e-9)


def _sensitivity(line: LayerPlan) -> float | None:
    """Returns the largest ratio of drop to NMSE among a layer's options; None if no drop was measured."""
    ratios = [max(o.drop, 0.0) / o.nmse for o in line.options if o.drop is not None and 0 < o.nmse < math.inf]
    return max(ratios, default=None)


def _error(line: LayerPlan, product: Product) -> float:
    option = line.option(product)
    return 0.0 if option is None or math.isinf(option.nmse) else option.nmse
