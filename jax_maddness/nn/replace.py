"""replace: model, rules, batches -> a new model with look-ups in place of layers: the steps, composed.

model --layers--> decide, units --capture--> rows --calibrate--> replacements --replaced--> model
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from jax_maddness.core import arguments
from jax_maddness.nn import fingerprint
from jax_maddness.nn.batches import Batches, can_be_read_again, peek, validate_limits, validate_rows
from jax_maddness.nn.calibrate import CALIBRATIONS, learn_units, unlearnable, validate_captured
from jax_maddness.nn.capture import MAX_BYTES, MAX_ROWS, Captured, record
from jax_maddness.nn.diff import diff, validate_diff
from jax_maddness.nn.layers.promotion import with_standard_promotion
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.models.model import Model, adapt, layers_of
from jax_maddness.nn.planning.record import WEIGHTS
from jax_maddness.nn.planning.report import Plan
from jax_maddness.nn.planning.verdict import CALIBRATED, TUNED
from jax_maddness.nn.replacement import Replacement, with_replacements
from jax_maddness.nn.rules import Rule, decide, validated_rules
from jax_maddness.nn.units import Unit, units


@with_standard_promotion
def replace(
    model: Any,
    rules: Rule | Sequence[Rule] | Plan,
    batches: Batches | None = None,
    *,
    calibrate: str | None = None,
    captured: Captured | None = None,
    keep_weights: bool = False,
    dry_run: bool = False,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    call: Callable[[Any, Any], Any] | None = None,
    progress: bool | None = None,
) -> Any:
    """Returns a new model in which the layers that `rules` match are look-ups; `model` stays as it is.

    Args:
      model: an `nnx.Module`, in the mode in which it is to be used (`model.eval()`); or `(module, variables)` of linen.
      rules: the first rule whose pattern matches a layer's path decides about it; layers that none matches stay.
        Or the result of `plan`: its choices, with the ops that it learned, if it still holds them. For a model with
        other weights than it was made for, ops are learned anew from `batches`, with a warning.
      batches: inputs of the model like those that it is for, or a function that returns an iterator over them, always
        the same. Layers that see at most 8 rows in the first batch get both layouts of tables
        (`with_small_batch_tables`). With `captured`, the first batch alone is read. A plan that holds its ops needs
        none.
      calibrate: `"independent"`: each op is learned from the layer's inputs in the exact model. `"prefix"`: layer by
        layer, each op is learned from the layer's inputs where all layers before it are replaced already, and for the
        exact model's values, so that it corrects their errors; the batches are read once for every layer. None: as the
        plan was made, if `rules` is one, or `"independent"`.
      captured: the result of `capture` for this model, to learn from instead of running it.
      keep_weights: keep kernels in the ops, for gradients; else they are dropped.
      dry_run: learn nothing; return the changes that would be made.
      max_rows: the most rows to learn each op from.
      max_bytes: the most bytes that these may take.
      call: `call(model, batch)` runs the model, if `model(batch)` does not.
      progress: show progress bars; None shows them for steps that take longer than two seconds.

    Returns:
      A model of the same kind: an `nnx.Module`, or `(module, variables)`. Its layers return arrays of the shapes and
      dtypes that they returned before. With `dry_run`, a `Diff`.

    Raises:
      TypeError: `model` is none of Flax's.
      ValueError: No layer matches, the model does not take the batches, or `captured` or the plan is of another model;
        or the plan was made for other weights and there are no `batches`. Nothing is ever replaced in part.

    Example:
      Learning takes seconds for each layer; with `dry_run` the changes are known at once::

          fast = jax_maddness.replace(model, [Rule(".*head", skip=True), Rule("encoder/.*", num_codebooks=64)], batches)

      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 2, rngs=nnx.Rngs(1)))
      >>> changes = replace(model, Rule("layers/0", num_codebooks=2), [jnp.ones((64, 8))], dry_run=True)
      >>> [(change.path, change.size, change.reason) for change in changes.changes]
      [('layers/0', 2, ''), ('layers/2', 0, 'no rule matches')]
    """
    if calibrate is not None:
        arguments.choice(calibrate, "calibrate", CALIBRATIONS)
    keep_weights, dry_run = arguments.flag(keep_weights, "keep_weights"), arguments.flag(dry_run, "dry_run")
    if captured is not None:
        arguments.instance(captured, "captured", Captured, "`capture` returns one")
    adapted, plan = adapt(model, call), rules if isinstance(rules, Plan) else None
    rules = rules.rules() if isinstance(rules, Plan) else validated_rules(rules)
    planned = "prefix" if plan is not None and plan.refitted(CALIBRATED) else "independent"
    reuses_ops = plan is not None and captured is None and calibrate in (None, planned) and plan.holds_ops
    calibrate = calibrate or planned
    can_learn = batches is not None
    batches = _given(batches, plan if reuses_ops else None)
    first, stream = peek(batches)
    layers = layers_of(adapted, first)
    to_replace = units(decide(layers, rules))
    if plan is not None:
        _validate_plan(plan, layers, to_replace)
    change = diff(layers, rules, to_replace)
    if dry_run:
        return change
    if plan is not None and not plan.replaced:
        return model
    validate_diff(change)
    if plan is not None and not _has_planned_weights(plan, adapted):
        reuses_ops = _must_learn_anew(can_learn)
    if plan is not None and reuses_ops:
        return with_replacements(adapted, to_replace, _held(plan, to_replace, keep_weights)).model
    if plan is not None and plan.refitted(TUNED):
        _warn_of_tuning(plan)
    validate_limits(max_rows, max_bytes, [unit.first for unit in to_replace])
    if calibrate == "prefix" and not can_be_read_again(batches):
        raise ValueError('`calibrate="prefix"` reads the batches several times: pass a list, or a function.')
    limits, source = (max_rows, max_bytes), batches if captured is None else None
    if captured is None:
        unlearned = {unit.first.path for unit in to_replace if not unit.learns}
        chosen = [unit.first for unit in to_replace]
        captured = record(adapted, chosen, stream, *limits, progress=progress, unlearned=unlearned)
    to_replace = _learnable(captured, to_replace)
    for unit in to_replace:
        validate_rows(unit.first.path, captured.rows[unit.first.path], source)
    replacements = learn_units(
        adapted,
        captured,
        to_replace,
        lambda: peek(batches)[1],
        calibrate=calibrate,
        keep_weights=keep_weights,
        limits=limits,
        progress=progress,
    )
    return with_replacements(adapted, to_replace, replacements).model


def _has_planned_weights(plan: Plan, model: Model) -> bool:
    """Whether a model has the weights that a plan was made for; plans of earlier versions do not tell."""
    planned = plan.fingerprint.get(WEIGHTS)
    return planned is None or planned == fingerprint.of_arrays(model.weights())


def _must_learn_anew(can_learn: bool) -> bool:
    """Returns False, the value of `reuses_ops` for a model with other weights than those of its plan, and warns.

    Raises:
      ValueError: There is nothing to learn from.
    """
    if not can_learn:
        raise ValueError(
            "The plan was made for a model with other weights, and the ops that it holds would be wrong. Pass "
            "`batches`, from which ops for this model are learned, or call `plan` for it."
        )
    # Level 4 is the caller of `replace`.
    warnings.warn(
        "The plan was made for a model with other weights: its choices are taken, and ops are learned anew from "
        "`batches`. The drop and the errors that it states are those of the other model.",
        UserWarning,
        stacklevel=4,
    )
    return False


def _warn_of_tuning(plan: Plan) -> None:
    """Warns that ops that are learned anew are not fine-tuned, as those of the plan were."""
    (refit,) = [refit for refit in plan.refits if refit.kind == TUNED]
    # Level 4 is the caller of `replace`.
    warnings.warn(
        f"Ops are learned anew. Those of the plan were also fine-tuned, from a drop of {refit.before:.2g} to "
        f"{refit.after:.2g}, which `replace` does not do: call `finetune` with its result.",
        UserWarning,
        stacklevel=4,
    )


def _given(batches: Batches | None, plan: Plan | None) -> Batches:
    """Returns `batches`, or the shapes of the first batch that the plan has seen."""
    if batches is not None:
        return batches
    if plan is None or plan.example is None:
        raise ValueError("`batches` is missing. Pass inputs of the model: ops are learned from what its layers see.")
    return [plan.example]


def _learnable(captured: Captured, to_replace: Sequence[Unit]) -> list[Unit]:
    """Returns the units that have rows to learn from, and warns about the others.

    Raises:
      ValueError: None has any, or `captured` is from another model.
    """
    validate_captured(captured, to_replace)
    reasons = unlearnable(captured, to_replace)
    stay = "; ".join(f"{', '.join(u.paths)!r} stays: {reasons[u.owner]}" for u in to_replace if u.owner in reasons)
    if len(reasons) == len(to_replace):
        raise ValueError(f"No layer would be replaced: {stay}. Pass batches that reach these layers.")
    if reasons:
        # Level 4 is the caller of `replace`.
        warnings.warn(f"Some layers are not replaced: {stay}.", UserWarning, stacklevel=4)
    return [unit for unit in to_replace if unit.owner not in reasons]


def _held(plan: Plan, to_replace: Sequence[Unit], keep_weights: bool) -> list[Replacement]:
    """Returns the replacements that the plan learned; it never keeps weights, which can be added."""
    held = [plan.learned[unit.owner, *unit.choice] for unit in to_replace]
    if not keep_weights:
        return held
    return [replacement.with_kernel(unit) for unit, replacement in zip(to_replace, held, strict=True)]


def _validate_plan(plan: Plan, layers: Sequence[Layer], to_replace: Sequence[Unit]) -> None:
    """Raises unless the plan is one for a model with these layers."""
    lines = {path for line in plan.layers for path in line.paths}
    # Plans of earlier versions have no lines for tables of embeddings, which no plan replaces.
    missing = lines ^ {layer.path for layer in layers if not layer.is_table or layer.path in lines}
    planned = {line.paths: line.shape for line in plan.replaced}
    matched = {unit.paths: unit.shape for unit in to_replace}
    if missing or planned != matched:
        difference = f"only one of them has {sorted(missing)}" if missing else f"planned {planned}, but found {matched}"
        raise ValueError(f"The plan is for another model: {difference}. Call `plan` for this one.")
