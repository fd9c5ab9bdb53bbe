"""`Bench`: everything of a search that runs something, behind one interface, so that tests can simulate it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jax_maddness.nn.layers.kinds import CODES, EXACT, FACTORS, INT8, LOW_RANK, REWRITTEN
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.nmse import finite_or_infinite
from jax_maddness.nn.planning import measure
from jax_maddness.nn.planning.report import rule_fields
from jax_maddness.nn.planning.score import Score
from jax_maddness.nn.planning.substitution import Substitution
from jax_maddness.nn.planning.verdict import MIN_OUTPUTS, Mix, Option, Product
from jax_maddness.nn.replacement import Replacement, with_replacements
from jax_maddness.nn.units import Unit

Learned = dict[tuple[str, str, int], Replacement]
"""Replacements by the name of the line, kind and size."""
Timing = tuple[float, float]
"""Median milliseconds, and half the interquartile range as a share."""


class Bench(Protocol):
    """Learns and measures for a search. Lines have names, and each method may raise `MemoryError`."""

    def before(self) -> float:
        """Returns the metric of the exact model."""

    @property
    def examples(self) -> int:
        """The number of held-out examples, as in `Score`."""

    def exact(self, names: Sequence[str]) -> list[Option]:
        """Measures lines as they are."""

    def whole_model(self) -> tuple[float, float | None]:
        """Returns the times of the exact model, and of the same without its lines; None if that cannot be told."""

    def products(self, name: str) -> list[Product]:
        """Returns the products that may be measured for a line; those of a kind from fast to close."""

    def error(self, name: str, product: Product) -> float:
        """Learns a product, once, and returns its NMSE on held-out rows."""

    def times(self, name: str, products: Sequence[Product]) -> list[Timing]:
        """Returns the times of learned products of a line, of all calls in one run of the model."""

    def known_ms(self, name: str, product: Product) -> float | None:
        """Returns the time of a product that need not be learned, as it was measured for a line alike; or None."""

    def drop(self, mix: Mix) -> float:
        """Returns by how much the metric is less for the model with a mix of products."""

    def compare(self, mixes: Sequence[Mix]) -> list[Timing]:
        """Returns the times of whole models, measured in turns."""

    def refit(self, mix: Mix, kind: str, steps: int) -> tuple[float, Learned]:
        """Fits the products of a mix again, and returns the drop with them, and them; see `verdict.Refit`."""


@dataclasses.dataclass
class ModelBench:
    """The bench of a model and its units, the layers that rules ask for.

    Attributes:
      model: the exact model.
      units: by name of the line.
      codebooks: by name, the numbers of codebooks to try.
      score: of models on held-out batches.
      batch: the batch on which whole models are timed.
      learn: returns the replacement of a unit.
      held_out_rows: returns rows of a unit that nothing was learned from, for each step of a scan.
      learned: what was learned so far; is added to.
      fit: `fit(kind, steps, units, replacements)` fits replacements of units again.
    """

    model: Model
    units: Mapping[str, Unit]
    codebooks: Mapping[str, Sequence[int]]
    score: Score
    batch: Any
    learn: Callable[[Unit], Replacement]
    held_out_rows: Callable[[Unit], list[np.ndarray]]
    learned: Learned
    fit: Callable[[str, int, Sequence[Unit], list[Replacement]], list[Replacement]]

    def __post_init__(self) -> None:
        self._timings: dict[Hashable, Timing] = {}
        self._runs: dict[Hashable, Callable[[Any], Any]] = {}
        self._compared: set[Hashable] = set()
        self._substitution = Substitution(self.model, list(self.units.values()), self.score.batches)

    def before(self) -> float:
        return self.score.exact

    @property
    def examples(self) -> int:
        return self.score.examples

    def exact(self, names: Sequence[str]) -> list[Option]:
        new = {measure.alike(self.units[name]): self.units[name] for name in names}
        new = {key: unit for key, unit in new.items() if (key, EXACT) not in self._timings}
        timings = measure.times(list(new.values()), [])
        self._timings |= {(key, EXACT): timing for key, timing in zip(new, timings, strict=True)}
        return [
            Option(EXACT, 0, *self._of_model(name, self._timings[measure.alike(self.units[name]), EXACT]), 0.0)
            for name in names
        ]

    def whole_model(self) -> tuple[float, float | None]:
        batch = jax.tree.map(jax.numpy.asarray, self.batch)
        calls: list[Callable[[], Any]] = [functools.partial(self._run({}), batch)]
        if (rest := self._substitution.rest(batch)) is not None:
            calls.append(rest)
        units = {measure.alike(unit): unit for unit in self.units.values()}
        known = {key: self._timings[key, EXACT][0] for key in units if (key, EXACT) in self._timings}
        with memory_errors():
            timings = measure.beside(calls, [units[key] for key in known])
        # The machine may have been quicker or slower when the layers were timed: ratios are kept, as in `times`.
        now = sum(ms for ms, _ in timings[len(calls) :])
        drift = sum(known.values()) / now if now else 1.0
        (ms, noise), *others = timings[: len(calls)]
        for rest_ms, rest_noise in others:
            if ms - rest_ms > ms * noise + rest_ms * rest_noise:
                return ms * drift, rest_ms * drift
        return ms * drift, None

    def products(self, name: str) -> list[Product]:
        unit = self.units[name]
        found: list[Product] = [(REWRITTEN, 0)] if unit.form.can_rewrite(unit.shape[0]) else []
        if not learns(unit):
            return found
        if unit.form.groups == 1:  # the other products know no groups
            found.append((INT8, 0))
            found += [(LOW_RANK, rank) for rank in measure.ranks(unit.shape)]
        found += [(FACTORS, rank) for rank in {*measure.ranks(unit.shape), min(unit.shape)}]
        found += [(CODES, size) for size in self.codebooks[name]]
        return sorted(found)

    def error(self, name: str, product: Product) -> float:
        with memory_errors():
            replacement = self._replacement(name, product)
            return measure.error_of(self.units[name], replacement, self.held_out_rows(self.units[name]))

    def times(self, name: str, products: Sequence[Product]) -> list[Timing]:
        unit = self.units[name]
        replacements = {product: self._replacement(name, product) for product in products}
        keys = {product: _shapes(measure.alike(unit), one) for product, one in replacements.items()}
        new = [product for product in products if keys[product] not in self._timings]
        if new:
            with memory_errors():
                (exact, noise), *timings = measure.times([unit], [(unit, replacements[product]) for product in new])
            # The machine may have been quicker or slower when the layer itself was timed: ratios are kept.
            before, _ = self._timings.setdefault((measure.alike(unit), EXACT), (exact, noise))
            for product, (ms, noise) in zip(new, timings, strict=True):
                self._timings[keys[product]] = (ms * before / exact, noise)
        self._timings |= {(measure.alike(unit), product): self._timings[keys[product]] for product in products}
        return [self._of_model(name, self._timings[keys[product]]) for product in products]

    def known_ms(self, name: str, product: Product) -> float | None:
        timing = self._timings.get((measure.alike(self.units[name]), product))
        return None if timing is None else self._of_model(name, timing)[0]

    def drop(self, mix: Mix) -> float:
        run = self._run
        if len(mix) == 1 and self._substitution.can_replace(self.units[next(iter(mix))]):
            run = self._run_alone  # which is compiled already
        with memory_errors():
            return finite_or_infinite(self.score.exact - self.score.of(run(mix)))

    def compare(self, mixes: Sequence[Mix]) -> list[Timing]:
        batch = jax.tree.map(jax.numpy.asarray, self.batch)
        self._compared = {_key(mix) for mix in mixes}
        with memory_errors():
            return measure.interleaved([functools.partial(self._run(mix), batch) for mix in mixes])

    def refit(self, mix: Mix, kind: str, steps: int) -> tuple[float, Learned]:
        units, replacements = self._replaced(mix)
        with memory_errors():
            fitted = self.fit(kind, steps, units, replacements)
            drop = self.score.exact - self.score.of(with_replacements(self.model, units, fitted).run())
        names = [(unit.owner, *mix[unit.owner]) for unit in units]
        return finite_or_infinite(drop), dict(zip(names, fitted, strict=True))

    def _replaced(self, mix: Mix) -> tuple[list[Unit], list[Replacement]]:
        """Returns the units of a mix in the order of their calls, and their replacements."""
        units = [with_product(unit, mix[name]) for name, unit in self.units.items() if name in mix]
        return units, [self._replacement(unit.owner, mix[unit.owner]) for unit in units]

    def _of_model(self, name: str, timing: Timing) -> Timing:
        """Returns the time of all calls in one run of the model, from that of a call like the first."""
        ms, noise = timing
        return ms * measure.calls_of(self.units[name]), noise

    def _replacement(self, name: str, product: Product) -> Replacement:
        """Returns the replacement of a line, which is learned once."""
        if (name, *product) not in self.learned:
            self.learned[name, *product] = self.learn(with_product(self.units[name], product))
        return self.learned[name, *product]

    def _run_alone(self, mix: Mix) -> Callable[[Any], Any]:
        """Returns the model with one unit replaced, which is not compiled anew."""
        ((name, product),) = mix.items()
        return self._substitution.run(with_product(self.units[name], product), self._replacement(name, product))

    def _run(self, mix: Mix) -> Callable[[Any], Any]:
        """Returns the compiled model with a mix. Each is run for its drop, then for its time beside the incumbent's.

        So those of the last comparison are kept, and the latest.
        """
        if not mix:
            return self.score.run_exact
        key = _key(mix)
        if key not in self._runs:
            units, replacements = self._replaced(mix)
            kept = {other: run for other, run in self._runs.items() if other in self._compared}
            self._runs = {**kept, key: with_replacements(self.model, units, replacements).run()}
        return self._runs[key]


def _key(mix: Mix) -> Hashable:
    return tuple(sorted(mix.items()))


def learns(unit: Unit) -> bool:
    """Whether products are measured for a unit that are learned from its rows: groups of few outputs gain nothing."""
    return unit.form.groups == 1 or unit.shape[1] >= MIN_OUTPUTS


def with_product(unit: Unit, product: Product) -> Unit:
    """Returns the unit with a rule for another product."""
    return dataclasses.replace(unit, rule=dataclasses.replace(unit.rule, **rule_fields(*product)))


def _shapes(unit: Hashable, replacement: Replacement) -> Hashable:
    """Returns a key that is equal for replacements of units alike that take the same time."""
    shapes = tuple((name, a.shape, str(a.dtype)) for name, a in sorted(replacement.arrays().items()))
    return unit, replacement.spec_kind, replacement.shares_codes, shapes


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raises `MemoryError` where XLA has not enough memory, as NumPy does."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryError(str(error)) from error
        raise
