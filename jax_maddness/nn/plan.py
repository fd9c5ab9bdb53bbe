"""model, batches, rules -> a plan: which layers to replace, by measurement: the steps, composed.

batches --capture--> rows --learn--> ops --measure--> options --run the model--> drops --verdict--> trials, the plan
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jax_maddness.core.ffi import active_tier
from jax_maddness.learn.progress import Progress
from jax_maddness.nn.calibrate import StandIn, Unit, learn_unit, units
from jax_maddness.nn.capture import MAX_BYTES, MAX_ROWS, record
from jax_maddness.nn.diff import Diff, diff
from jax_maddness.nn.layers.kinds import CODES, INT8, LOW_RANK, PRODUCTS
from jax_maddness.nn.models.model import Model, adapt, layers_of
from jax_maddness.nn.planning import measure, verdict
from jax_maddness.nn.planning.report import Plan, Trial, sized
from jax_maddness.nn.planning.score import Metric, Score, name_of
from jax_maddness.nn.planning.verdict import Choice, LayerPlan
from jax_maddness.nn.replace import Batches, check_captured, complain, put
from jax_maddness.nn.rules import Rule, decide, validated_rules

RATIOS = (32, 16, 8)
"""Features per codebook that are tried where a rule does not say how many codebooks."""
HELD_OUT_SHARE = 0.2
"""Share of the batches on which the metric is measured, and of the rows on which errors are."""


def plan(
    model: Any,
    batches: Batches,
    rules: Rule | Sequence[Rule],
    *,
    max_drop: float = 0.01,
    metric: Metric | None = None,
    ratios: Sequence[int] = RATIOS,
    products: Sequence[str] = (CODES,),
    max_seconds: float = 600.0,
    path: str | os.PathLike[str] | None = None,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    call: Callable[[Any, Any], Any] | None = None,
    progress: bool | None = None,
) -> Plan:
    """Measures every layer that `rules` match, and decides which become look-ups so that the model gets faster.

    The last fifth of the batches is held out: layers are captured and learned from the others, the metric is of these.
    A layer is replaced only if codes gain more than 5 % and more than the noise, if neither int8 nor low rank is both
    as fast and as close, and if the metric allows it: first each layer alone is replaced, then all of these together;
    if that costs too much, with more codebooks, and in the end only those that gain most for what they cost. If the
    whole model is then not measurably faster, it stays as it is.

    Args:
      model: an `nnx.Module`, in the mode in which it is to be used (`model.eval()`); or `(module, variables)` of linen.
      batches: inputs of the model, of the size that it is used with; at least two. All are held in memory.
      rules: which layers, as for `replace`. A rule with `num_codebooks` has that number tried and no other.
      max_drop: of the metric, at most.
      metric: `metric(model's output, batch)` is a number, the larger the better; the mean over batches counts. None:
        the negative of |y - y_exact|^2 / |y_exact - mean|^2 of the model's outputs.
      ratios: features per codebook to try.
      products: what may replace a layer: `"codes"`, `"int8"` and `"low rank"`, whichever is fastest. What is not among
        them is measured all the same, and a layer for which it would be better stays as it is.
      max_seconds: no measurement is begun later; the first look, capture and the last comparison come on top.
      path: a JSON file, written after each step. If it is there, what it has is not measured again.
      max_rows, max_bytes: of each layer's sample, as for `capture`.
      call: `call(model, batch)` runs the model, if `model(batch)` does not.
      progress: show a progress bar; None shows it where this takes longer than two seconds.

    Raises:
      TypeError: `model` is none of Flax's.
      ValueError: no layer matches, the model does not take the batches, the metric is no number, or `path` has a plan
        for another model, other rules, another metric or another machine.
    """
    if not max_drop >= 0 or not ratios or min(ratios) < 1:
        raise ValueError(f"`max_drop` is {max_drop!r}, `ratios` {ratios!r}; expected a number >= 0, and integers >= 1.")
    if not products or not set(products) <= set(PRODUCTS):
        raise ValueError(f"`products` is {products!r}; expected some of: {', '.join(map(repr, PRODUCTS))}.")
    rules, adapted = validated_rules(rules), adapt(model, call)
    given = list(batches() if callable(batches) else batches)
    if not given:
        raise ValueError("`batches` is empty. Pass inputs of the model: what its layers see is what is measured.")
    layers = layers_of(adapted, given[0])
    to_plan = units(decide(layers, rules))
    change = diff(layers, rules, to_plan)
    complain(change)
    fresh = Plan(
        _lines(change, to_plan, tuple(products)),
        max_drop,
        name_of(metric),
        _machine(),
        how={unit.owner: _how(unit, ratios) for unit in to_plan},
    )
    found = fresh if path is None or not pathlib.Path(path).exists() else _resumed(Plan.from_json(path), fresh)
    found.example = jax.tree.map(_abstract, given[0])
    if not found.finished:
        with Progress(progress, "plan") as bar:
            limits = (max_rows, max_bytes)
            deadline = time.perf_counter() + max_seconds
            work = _Work(found, adapted, to_plan, given, metric, deadline, path, limits, bar)
            work.measure()
            work.decide()
    return found


def _abstract(a: Any) -> Any:
    return jax.ShapeDtypeStruct(a.shape, a.dtype) if hasattr(a, "shape") and hasattr(a, "dtype") else a


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} CPUs, {jax.default_backend()}, tier {active_tier()}"


def _how(unit: Unit, ratios: Sequence[int]) -> dict[str, Any]:
    """What decides about a unit's ops, as JSON has it."""
    rule, d = unit.rule, unit.shape[0]
    if rule.config.loss is not None:
        raise ValueError(f"The rule {rule.pattern!r} has a loss, which no plan can hold. Use `replace` with that rule.")
    counts = [rule.codebooks(d)] if rule.num_codebooks else sorted({max(1, d // ratio) for ratio in ratios})
    names = ("conv", "share", "exact_rows", "num_candidates")
    rest = {"config": dataclasses.asdict(rule.config), **{name: getattr(rule, name) for name in names}}
    return {"num_codebooks": counts, **rest}


def _lines(change: Diff, to_plan: Sequence[Unit], products: tuple[str, ...]) -> tuple[LayerPlan, ...]:
    """A line for each unit, where its first layer is, and for each layer that is in none."""
    of = {path: unit for unit in to_plan for path in unit.paths}
    lines = []
    for one in change.changes:
        unit = of.get(one.path)
        if unit is None:
            lines.append(LayerPlan(one.path, (one.path,), one.kind, one.shape, 0, words=f"stays: {one.reason}"))
        elif unit.paths[0] == one.path:
            form = unit.layers[0].form
            assert form is not None
            rows = form.num_rows(unit.layers[0].calls[0].x)
            lines.append(LayerPlan(unit.owner, unit.paths, one.kind, unit.shape, rows, products=products))
    return tuple(lines)


def _resumed(old: Plan, fresh: Plan) -> Plan:
    """`old`, if it is a plan for what `fresh` is for."""

    def what(plan: Plan) -> dict[str, Any]:
        about = [(line.name, line.paths, line.kind, line.shape, line.rows, line.products) for line in plan.layers]
        return {"layers": about, "rules": plan.how, "metric": plan.metric, "machine": plan.machine}

    was, now = what(old), what(fresh)
    for name, said in now.items():
        if was[name] != said:
            raise ValueError(
                f"`path` has a plan for another model, or made otherwise: {name} were {was[name]}, but are {said}. "
                "Pass another `path`, or delete that file."
            )
    if old.max_drop != fresh.max_drop:  # what was measured is as good as before
        old.max_drop, old.finished = fresh.max_drop, False
    return old


def _as(unit: Unit, kind: str, size: int) -> Unit:
    """The unit with another product in place of it."""
    return dataclasses.replace(unit, rule=dataclasses.replace(unit.rule, **sized(kind, size)))


@dataclasses.dataclass
class _Work:
    """A plan in the making; `plan` is written to `path` after each step."""

    plan: Plan
    model: Model
    units: Sequence[Unit]
    batches: list[Any]
    metric: Metric | None
    deadline: float
    path: str | os.PathLike[str] | None
    limits: tuple[int, int]
    bar: Progress

    def __post_init__(self) -> None:
        count = max(1, round(HELD_OUT_SHARE * len(self.batches)))
        self.train, held_out = self.batches[:-count], self.batches[-count:]
        self.score = Score(self.model, held_out, self.metric)
        if not self.train:
            self.train = held_out
            warnings.warn("There is one batch only: the metric is of what ops are learned from.", stacklevel=4)

    @functools.cached_property
    def rows(self) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
        """Of each unit: rows to learn from, and held-out rows, for each step of a scan."""
        captured = record(self.model, [unit.layers[0] for unit in self.units], self.train, *self.limits, progress=False)
        check_captured(captured, self.units)
        found = {}
        for unit in self.units:
            train, held_out = [], []
            for rows in captured.rows[unit.paths[0]]:
                order = np.random.default_rng(0).permutation(len(rows))
                cut = max(1, round(HELD_OUT_SHARE * len(rows)))
                held_out.append(rows[order[:cut]])
                train.append(rows[order[cut:]])
            found[unit.owner] = (train, held_out)
        return found

    def learned(self, unit: Unit, kind: str, size: int) -> StandIn:
        """What stands in for a unit, learned once."""
        key = (unit.owner, kind, size)
        if key not in self.plan.learned:
            self.plan.learned[key] = learn_unit(_as(unit, kind, size), self.rows[unit.owner][0], False, self.bar)
        return self.plan.learned[key]

    def measure(self) -> None:
        """Every unit, the largest first: its options, then what those that are worth it cost the metric."""
        lines = {line.name: line for line in self.plan.layers}
        for unit in sorted(self.units, key=lambda unit: -math.prod(unit.shape) * lines[unit.owner].rows):
            line = lines[unit.owner]
            if not line.options:
                if self._late():
                    continue
                choices = []
                if unit.w.shape[1] == 1:
                    choices = [(INT8, 0), *((LOW_RANK, rank) for rank in measure.ranks(unit.shape))]
                choices += [(CODES, c) for c in self.plan.how[unit.owner]["num_codebooks"]]
                ops = {choice: self.learned(unit, *choice) for choice in choices}
                line = dataclasses.replace(line, options=measure.measured(unit, self.rows[unit.owner][1], ops))
                self._put(line)
            for option in verdict.worth_trying(line):
                if self._late() or verdict.best(line, self.plan.max_drop) is not None:
                    break
                if option.drop is None:
                    line = line.with_drop(option, self._drop([(line, option)]))
                    self._put(line)

    def _late(self) -> bool:
        return time.perf_counter() > self.deadline

    def _put(self, line: LayerPlan) -> None:
        """A new version of a line."""
        self.plan.layers = tuple(line if line.name == old.name else old for old in self.plan.layers)
        self._write()

    def _write(self) -> None:
        if self.path is not None:
            self.plan.to_json(self.path)

    def decide(self) -> None:
        """Tries models with several layers replaced, and writes the verdicts."""
        limit = self.plan.max_drop
        order = verdict.ordered(self._close_enough(verdict.accepted(self.plan.layers, limit)))
        count = verdict.longest(len(order), lambda n: self._drop(order[:n]) <= limit)
        chosen, instead = order[:count], "others gain more for what they cost, and together the drop is too large"
        self.plan.exact_ms, self.plan.fast_ms, gains = self._compare(chosen)
        if chosen and not gains:
            chosen, instead = [], f"the whole model gains nothing measurable, {self._ratio():.2f}x"
            self.plan.fast_ms = self.plan.exact_ms
        self.plan.before = self.score.exact
        self.plan.after = self.plan.before - (self._drop(chosen) if chosen else 0.0)
        options = {line.name: option for line, option in chosen}
        self.plan.layers = tuple(
            verdict.decided(line, options.get(line.name), limit, instead) if line.name in self.plan.how else line
            for line in self.plan.layers
        )
        self.plan.finished = all(map(verdict.is_finished, self.plan.layers))
        self._write()

    def _close_enough(self, choices: list[Choice]) -> list[Choice]:
        """The same layers with closer codes, as far as there are any, until they may all be replaced together."""
        while choices and self._drop(choices) > self.plan.max_drop and not self._late():
            found = verdict.closer(choices)
            if found is None:
                break
            line, option = found
            drop = self._drop([found]) if option.drop is None else option.drop
            line = line.with_drop(option, drop)
            self._put(line)
            better = (line, dataclasses.replace(option, drop=drop))
            choices = [better if line.name == other.name else (other, old) for other, old in choices]
        return choices

    def _ratio(self) -> float:
        return self.plan.exact_ms / self.plan.fast_ms

    def _replaced(self, chosen: Sequence[Choice]) -> Model:
        by = {line.name: (option.kind, option.size) for line, option in chosen}
        replaced = [_as(unit, *by[unit.owner]) for unit in self.units if unit.owner in by]
        return put(self.model, replaced, [self.learned(unit, *unit.choice) for unit in replaced])

    def _compare(self, chosen: Sequence[Choice]) -> tuple[float, float, bool]:
        """Milliseconds of the model as it is and as chosen; whether that is a gain."""
        runs = [self.model.run(), *([self._replaced(chosen).run()] if chosen else [])]
        batch = jax.tree.map(jax.numpy.asarray, self.batches[0])
        times = measure.interleaved([functools.partial(run, batch) for run in runs])
        (exact, noise), (fast, more) = times[0], times[-1]
        return exact, fast, exact / fast >= 1 + max(verdict.MIN_MODEL_GAIN, noise + more)

    def _drop(self, chosen: Sequence[Choice]) -> float:
        """What the metric loses; a trial that was made is not made again."""
        names = tuple(sorted((line.name, option.kind, option.size) for line, option in chosen))
        for trial in self.plan.trials:
            if trial.replaced == names:
                return trial.drop
        drop = self.score.exact - self.score.of(self._replaced(chosen))
        lines = [dataclasses.replace(line, choice=option.size, by=option.kind) for line, option in chosen]
        self.plan.exact_ms = self.plan.exact_ms or self._compare([])[0]
        self.plan.trials += (Trial(names, verdict.predicted(lines, self.plan.exact_ms), drop),)
        self._write()
        return drop
