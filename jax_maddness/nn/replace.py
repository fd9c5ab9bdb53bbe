"""model, rules, batches -> a new model with look-ups in place of layers: the steps, composed.

model --layers--> decide, units --capture--> rows --calibrate--> ops --replaced--> model
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jax_maddness.nn.calibrate import StandIn, Unit, independent, on_prefix, specs_of, units, with_kernel
from jax_maddness.nn.capture import MAX_BYTES, MAX_ROWS, Captured, peek, record
from jax_maddness.nn.diff import Diff, diff
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.models.model import Model, adapt, layers_of
from jax_maddness.nn.planning.report import Plan
from jax_maddness.nn.rules import Rule, decide, validated_rules

Batches = Iterable[Any] | Callable[[], Iterator[Any]]
CALIBRATIONS = ("independent", "prefix")


def replace(
    model: Any,
    rules: Rule | Sequence[Rule] | Plan,
    batches: Batches | None = None,
    *,
    calibrate: str = "independent",
    captured: Captured | None = None,
    keep_weights: bool = False,
    dry_run: bool = False,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    call: Callable[[Any, Any], Any] | None = None,
    progress: bool | None = None,
) -> Any:
    """A new model in which the layers that `rules` match are look-ups; `model` stays as it is.

    Args:
      model: an `nnx.Module`, in the mode in which it is to be used (`model.eval()`); or `(module, variables)` of linen.
      rules: the first whose pattern matches a layer's path decides about it; layers that none matches stay.
        Or what `plan` returned: its choices, with the ops that it learned where it still holds them.
      batches: inputs of the model like those that it is for, or a function that returns an iterator over them, always
        the same. They are only read for a first look where `captured` has what is needed, and needed
        by no plan that holds its ops.
      calibrate: `"independent"`: each op is learned from what its layer sees in the exact model. `"prefix"`: layer by
        layer, each from what it sees where all before it are replaced already, and for the exact model's values, so
        that it makes up for their errors; the batches are read once for every layer.
      captured: what `capture` returned for this model, to learn from instead of running it.
      keep_weights: keep kernels in the ops, for gradients; else they are dropped.
      dry_run: learn nothing; return what would be done.
      max_rows: how many rows to learn each op from.
      max_bytes: how many bytes these may take.
      call: `call(model, batch)` runs the model, if `model(batch)` does not.
      progress: show progress bars; None shows them where things take longer than two seconds.

    Returns:
      A model of the same kind: an `nnx.Module`, or `(module, variables)`. With `dry_run` a `Diff`.

    Raises:
      TypeError: `model` is none of Flax's.
      ValueError: no layer matches, the model does not take the batches, or `captured` or the plan is of another model.
        Nothing is ever replaced in part.
    """
    if calibrate not in CALIBRATIONS:
        raise ValueError(f"`calibrate` is {calibrate!r}; expected one of: {', '.join(map(repr, CALIBRATIONS))}.")
    adapted, plan = adapt(model, call), rules if isinstance(rules, Plan) else None
    rules = rules.rules() if isinstance(rules, Plan) else validated_rules(rules)
    held = plan is not None and captured is None and calibrate == "independent" and plan.holds_ops
    first, stream = peek(_batches(batches, plan if held else None))
    layers = layers_of(adapted, first)
    to_learn = units(decide(layers, rules))
    if plan is not None:
        check_plan(plan, layers, to_learn)
    change = diff(layers, rules, to_learn)
    if dry_run:
        return change
    if plan is not None and not plan.replaced:
        return model
    complain(change)
    if plan is not None and held:
        learned = [plan.learned[unit.owner, *unit.choice] for unit in to_learn]
        ops = list(map(with_kernel, to_learn, learned)) if keep_weights else learned
        return put(adapted, to_learn, ops).model
    limits = (max_rows, max_bytes)
    if calibrate == "prefix" and _only_once(batches):
        raise ValueError('`calibrate="prefix"` reads the batches several times: pass a list, or a function.')
    if captured is None:
        captured = record(adapted, [unit.layers[0] for unit in to_learn], stream, *limits, progress=progress)
    check_captured(captured, to_learn)
    if calibrate == "prefix":
        ops = on_prefix(
            adapted, captured, to_learn, lambda: peek(_batches(batches, None))[1], keep_weights, limits, progress
        )
    else:
        ops = independent(captured, to_learn, keep_weights, progress)
    return put(adapted, to_learn, ops).model


def put(model: Model, replaced: Sequence[Unit], ops: Sequence[StandIn]) -> Model:
    """The model with an op in place of each unit."""
    pairs = list(zip(replaced, ops, strict=True))
    specs = {path: spec for unit, learned in pairs for path, spec in specs_of(unit, learned).items()}
    return model.replaced(specs, {unit.owner: learned.arrays() for unit, learned in pairs})


def _batches(batches: Batches | None, plan: Plan | None) -> Batches:
    """`batches`, or the shapes of the first that the plan has seen."""
    if batches is not None:
        return batches
    if plan is None or plan.example is None:
        raise ValueError("`batches` is missing. Pass inputs of the model: ops are learned from what its layers see.")
    return [plan.example]


def check_plan(plan: Plan, layers: Sequence[Layer], to_learn: Sequence[Unit]) -> None:
    """Raises unless the plan is one for a model with these layers."""
    missing = {path for line in plan.layers for path in line.paths} ^ {layer.path for layer in layers}
    planned = {line.paths: line.shape for line in plan.replaced}
    found = {unit.paths: unit.shape for unit in to_learn}
    if missing or planned != found:
        what = f"only one of them has {sorted(missing)}" if missing else f"planned {planned}, but found {found}"
        raise ValueError(f"The plan is for another model: {what}. Call `plan` for this one.")


def _only_once(batches: Batches | None) -> bool:
    """Whether they can be read only once."""
    return batches is not None and not callable(batches) and iter(batches) is batches


def complain(change: Diff) -> None:
    if not change.replaced:
        raise ValueError(f"No layer would be replaced; nothing was done.\n{change}")
    if change.unused:
        warnings.warn(f"Rules that decide on no layer of the model: {change.unused}.", UserWarning, stacklevel=3)


def check_captured(captured: Captured, to_learn: Sequence[Unit]) -> None:
    """Raises unless there are rows of the right shapes for every unit."""
    for unit in to_learn:
        layer = unit.layers[0]
        assert layer.form is not None
        rows = captured.rows.get(layer.path)
        expected = (max(layer.steps, 1), layer.form.groups, layer.shape[0])
        if rows is None or (len(rows), *rows[0].shape[1:]) != expected:
            found = "none" if rows is None else f"{len(rows)} samples of {list(rows[0].shape)}"
            raise ValueError(
                f"`captured` has {found} for {layer.path!r}; expected {expected[0]} of [rows, {expected[1]}, "
                f"{expected[2]}]. Capture this model with these rules."
            )
        if min(map(len, rows)) < 2:
            raise ValueError(f"The batches gave {layer.path!r} fewer than two rows to learn from. Pass more of them.")
