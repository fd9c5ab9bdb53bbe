"""plan: model, batches, rules -> the layers that are worth replacing, by measurement: the steps, composed.

batches --capture--> rows --learn--> replacements --measure--> options --run the model--> drops --verdict--> the plan
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jax_maddness.core import arguments
from jax_maddness.nn.batches import Batches, peek, validate_limits
from jax_maddness.nn.calibrate import CALIBRATIONS
from jax_maddness.nn.capture import MAX_BYTES, MAX_ROWS
from jax_maddness.nn.diff import Diff, diff, validate_diff
from jax_maddness.nn.fitter import Fitter
from jax_maddness.nn.layers.kinds import PLANNED
from jax_maddness.nn.layers.promotion import with_standard_promotion
from jax_maddness.nn.models.model import adapt, layers_of
from jax_maddness.nn.planning import about, validate
from jax_maddness.nn.planning import held_out as held_out_batches
from jax_maddness.nn.planning.bench import ModelBench
from jax_maddness.nn.planning.clock import Clock
from jax_maddness.nn.planning.refit import same_refits
from jax_maddness.nn.planning.report import Plan
from jax_maddness.nn.planning.resume import fingerprint_of, resumed
from jax_maddness.nn.planning.score import Metric, Score, name_of
from jax_maddness.nn.planning.search import Search, SearchOptions
from jax_maddness.nn.planning.verdict import CALIBRATED, TUNED, LayerPlan
from jax_maddness.nn.rules import Rule, decide, validated_rules
from jax_maddness.nn.unit_rows import UnitRows
from jax_maddness.nn.units import Unit, units

RATIOS = (32, 16, 8)
"""Features per codebook that are tried where a rule does not set the number of codebooks."""


@with_standard_promotion
def plan(
    model: Any,
    batches: Batches,
    rules: Rule | Sequence[Rule],
    *,
    held_out: Batches | None = None,
    max_drop: float = 0.01,
    metric: Metric | None = None,
    ratios: Sequence[int] = RATIOS,
    products: Sequence[str] = PLANNED,
    max_seconds: float = 600.0,
    path: str | os.PathLike[str] | None = None,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    call: Callable[[Any, Any], Any] | None = None,
    progress: bool | None = None,
    only_look: bool = False,
    calibrate: str = "independent",
    finetune_steps: int = 0,
) -> Plan:
    """Measures every layer that `rules` match, and decides by which products the model gets faster.

    Drops of the metric are measured on `held_out`, or on the last fifth of `batches`: layers are captured and learned
    from the others. First the whole model in int8 is tried, which is a safe answer in seconds; then mixes of products,
    those that are learned quickly before look-ups. A mix becomes the answer only if its drop is at most `max_drop` and
    if the whole model is faster than with the answer so far, by more than 2 % and more than the noise, measured in
    turns; an approximation must gain 5 % over what is exact. If no mix is faster than the model as it is, nothing is
    replaced. At the end the planned model is timed beside the exact one, if the time allows it, so that its speed-up is
    measured and not estimated. Where the metric is the share of examples in which a model agrees with the exact one,
    which scores 1, the report says up to what the drop may be on others: few held-out examples promise little.

    The search may be ended at any time, by `max_seconds` or by Ctrl-C: the plan is then the best answer so far, and
    `finished` is False. Ctrl-C does not stop the program: it warns, and a second one, or one before there is an answer,
    raises `KeyboardInterrupt` as usual.

    Args:
      model: an `nnx.Module`, in the mode in which it is to be used (`model.eval()`); or `(module, variables)` of linen.
      batches: inputs of the model, of the size that it is used with; at least two, unless `held_out` is given. All
        are held in memory.
      rules: decide which layers, as for `replace`. A rule with `num_codebooks` has that number tried and no other.
      held_out: batches on which drops are measured, of the structure and dtypes of `batches`; their sizes may differ,
        and all are held in memory. None: the last fifth of `batches`, from which nothing is learned then.
      max_drop: the most that the metric may lose.
      metric: `metric(model's output, batch)` is a number, the larger the better; the mean over batches counts. None:
        the negative of `|y - y_exact|^2 / |y_exact - mean|^2` of the model's outputs.
      ratios: features per codebook to try.
      products: the products that may replace a layer, some of `"codes"`, `"factors"` (in int8, up to the whole
        product), `"int8"` (XLA's), `"low rank"` (in floats) and `"rewritten"` (depthwise and 1x1 convolutions,
        exactly). No others are learned, but int8, which takes no time, is measured to compare.
      max_seconds: the time of all of it. A step is not begun if it is expected to end later, and learning look-ups is
        interrupted. Only the first trace, the first batches and the metric of the model as it is are never left out.
      path: a JSON file, written after each step. If it exists, its measurements are not made again: it is refused
        unless the model, all batches, the metric and the other arguments are those of its measurements. `max_drop` and
        `max_seconds` may differ. Of a metric, its bytecode and the constants and arrays it refers to are compared, and
        not lists, dicts and objects that it may change.
      max_rows, max_bytes: of each layer's sample, as for `capture`.
      call: `call(model, batch)` runs the model, if `model(batch)` does not.
      progress: show a progress line; None shows it after two seconds.
      only_look: only time the model and its layers as they are, in seconds: the plan then says which share of the time
        could be gained at most, and nothing is replaced or written.
      calibrate: `"prefix"`: the layers of the answer are learned once more, one after the other, each from the inputs
        that it has where those before it are replaced, as `replace` does. That is kept if the drop becomes smaller.
      finetune_steps: steps by which the answer's tables are then trained at most (`finetune`, by `"nmse"` of the
        outputs, on the batches that layers are learned from); 0: none. That is kept if the drop becomes smaller.
        Both are measured within `max_seconds`, a quarter of which is kept for them.

    Returns:
      The plan: `print` it, and pass it to `replace`.

    Raises:
      TypeError: `model` is none of Flax's, `batches` is one array, or another argument is of another type.
      ValueError: No layer matches, the model does not take the batches, the metric is no number, or `path` has a plan
        for another model, other batches, other rules, another metric or another machine; it stays as it is. Or
        `held_out` has no batch, or one that differs from those of `batches` or that the model does not take.

    Example:
      A plan measures each layer for half a second or more::

          plan = jax_maddness.plan(model, batches, [Rule("encoder/.*")], max_drop=0.01, path="plan.json")
          print(plan)
          fast = jax_maddness.replace(model, plan)
    """
    max_drop = arguments.real(max_drop, "max_drop", "a number >= 0, in units of the metric, such as 0.01")
    only_look, refits = arguments.flag(only_look, "only_look"), _refits(calibrate, finetune_steps)
    ratios, products = validate.ratios_of(ratios), validate.products_of(products)
    validate.arguments_of_plan(max_drop, max_seconds, metric, call, path)
    clock = Clock(progress, float(max_seconds))
    rules, adapted = validate.plannable(validated_rules(rules)), adapt(model, call)
    given = list(peek(batches)[1])
    layers = validate.layers_to_plan(layers_of(adapted, given[0]))
    to_plan = units(decide(layers, rules))
    own = held_out_batches.validated(held_out, adapted, given[0])
    change = diff(layers, rules, to_plan)
    validate_diff(change)
    validate_limits(max_rows, max_bytes, [unit.first for unit in to_plan])
    result = Plan(
        _lines(change, to_plan, products),
        max_drop,
        name_of(metric),
        about.machine(),
        how={unit.owner: _how(unit, ratios) for unit in to_plan},
        fingerprint={} if only_look else fingerprint_of(adapted, given, own, metric, max_rows, max_bytes),
        date=datetime.date.today().isoformat(),
        versions=about.versions(),
        batch=about.shapes(given[0]),
    )
    if path is not None and not only_look and pathlib.Path(path).exists():
        result = resumed(Plan.from_json(path), result)
    result.example = jax.tree.map(about.abstract, given[0])
    if result.finished and same_refits(result, refits):
        return result
    train, judged_on = held_out_batches.divided(given, own)
    result.held_out = 0 if judged_on is train else len(judged_on)
    with clock:
        rows = UnitRows(adapted, to_plan, train, (max_rows, max_bytes), clock)
        reasons = {} if only_look else rows.unlearnable()
        one_hot = set[str]() if only_look else rows.one_hot()
        result.layers = tuple(_with_reason(line, reasons, line.name in one_hot) for line in result.layers)
        bench = ModelBench(
            adapted,
            {unit.owner: unit for unit in to_plan if unit.owner not in reasons},
            {name: how["num_codebooks"] for name, how in result.how.items()},
            Score(adapted, judged_on, metric),
            given[0],
            rows.learn,
            rows.held_out,
            result.learned,
            Fitter(adapted, rows, train, call, clock).fit,
        )
        _search(result, bench, clock, path, SearchOptions(only_look, refits))
    return result


def _search(
    result: Plan, bench: ModelBench, clock: Clock, path: str | os.PathLike[str] | None, options: SearchOptions
) -> None:
    """Completes a plan, which is written to `path` after each step; an interrupt ends the search with a warning."""

    def write() -> None:
        if path is not None and not options.only_look:
            result.to_json(path)

    try:
        interrupted = Search(result, bench, clock, list(bench.units), write, options).run()
    except Exception as error:
        # A model or metric of the user's may raise: the message stays its own.
        kept = f"is kept in {os.fspath(path)!r}" if path is not None else "is lost: it needs a `path`"
        error.add_note(f"`plan` was not finished. What it has measured so far {kept}.")
        raise
    if (spread := bench.score.spread) > 0:
        words = f"`metric` is not deterministic: the same model has scores that differ by {spread:.2g}. Smaller drops "
        warnings.warn(f"{words}mean nothing: fix its seed, and that of `model`.", UserWarning, stacklevel=5)
    if interrupted:
        # Level 5 is the caller of `plan`.
        words = "`plan` was interrupted: this is the best answer so far. Interrupt again to stop the program."
        warnings.warn(words, UserWarning, stacklevel=5)


def _refits(calibrate: Any, finetune_steps: Any) -> tuple[tuple[str, int], ...]:
    """Returns how the answer is fitted again: the kinds in their order, each with its number of steps."""
    arguments.choice(calibrate, "calibrate", CALIBRATIONS)
    steps = arguments.integer(finetune_steps, "finetune_steps", 0, ", 0 for none")
    return (*[(CALIBRATED, 0)] * (calibrate == "prefix"), *[(TUNED, steps)] * bool(steps))


def _how(unit: Unit, ratios: Sequence[int]) -> dict[str, Any]:
    """Returns the settings that decide about a unit's ops, as JSON has them."""
    rule, d = unit.rule, unit.shape[0]
    if rule.config.loss is not None:
        raise ValueError(f"The rule {rule.pattern!r} has a loss, which no plan can hold. Use `replace` with that rule.")
    counts = [rule.codebooks(d)] if rule.num_codebooks else sorted({max(1, d // ratio) for ratio in ratios})
    fields = {name: getattr(rule, name) for name in ("conv", "share", "exact_rows", "num_candidates")}
    return {"num_codebooks": counts, "config": dataclasses.asdict(rule.config), **fields}


def _lines(change: Diff, to_plan: Sequence[Unit], products: tuple[str, ...]) -> tuple[LayerPlan, ...]:
    """Returns a line for each unit, at the place of its first layer, and for each layer that is in none."""
    unit_of = {path: unit for unit in to_plan for path in unit.paths}
    lines = []
    for layer in change.changes:
        unit = unit_of.get(layer.path)
        if unit is None:
            words = f"stays: {layer.reason}"
            lines.append(LayerPlan(layer.path, (layer.path,), layer.kind, layer.shape, 0, words=words))
        elif unit.first.path == layer.path:
            rows = unit.form.num_rows(unit.first.calls[0].x)
            lines.append(
                LayerPlan(
                    unit.owner, unit.paths, layer.kind, unit.shape, rows, products=products, groups=unit.form.groups
                )
            )
    return tuple(lines)


def _with_reason(line: LayerPlan, reasons: Mapping[str, str], one_hot: bool) -> LayerPlan:
    """Returns the line, as one that stays if there is a reason."""
    line = dataclasses.replace(line, one_hot=one_hot)
    if line.name not in reasons:
        return line
    return dataclasses.replace(line, words=f"stays: {reasons[line.name]}", unmeasured=False)
