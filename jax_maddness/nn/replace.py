"""model, rules, batches -> a new model with look-ups in place of layers: the steps, composed.

model --layers--> decide, units --capture--> rows --calibrate--> ops --replaced--> model
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jax_maddness.nn.approximate import to_arrays
from jax_maddness.nn.calibrate import Unit, independent, on_prefix, specs_of, units
from jax_maddness.nn.capture import MAX_BYTES, MAX_ROWS, Captured, peek, record
from jax_maddness.nn.diff import Diff, diff
from jax_maddness.nn.model import adapt, layers_of
from jax_maddness.nn.rules import Rule, check, decide

Batches = Iterable[Any] | Callable[[], Iterator[Any]]
CALIBRATIONS = ("independent", "prefix")


def replace(
    model: Any,
    rules: Rule | Sequence[Rule],
    batches: Batches,
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
      batches: inputs of the model like those that it is for, or a function that returns an iterator over them, always
        the same. They are only read for a first look where `captured` has what is needed.
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
      ValueError: no layer matches, the model does not take the batches, or `captured` is of another model. Nothing is
        ever replaced in part.
    """
    if calibrate not in CALIBRATIONS:
        raise ValueError(f"`calibrate` is {calibrate!r}; expected one of: {', '.join(map(repr, CALIBRATIONS))}.")
    rules, adapted = check(rules), adapt(model, call)
    first, stream = peek(batches)
    layers = layers_of(adapted, first)
    to_learn = units(decide(layers, rules))
    change = diff(layers, rules, to_learn)
    if dry_run:
        return change
    _complain(change)
    limits = (max_rows, max_bytes)
    if calibrate == "prefix" and _only_once(batches):
        raise ValueError('`calibrate="prefix"` reads the batches several times: pass a list, or a function.')
    if captured is None:
        captured = record(adapted, [unit.layers[0] for unit in to_learn], stream, *limits, progress=progress)
    _check_captured(captured, to_learn)
    if calibrate == "prefix":
        ops = on_prefix(adapted, captured, to_learn, lambda: peek(batches)[1], keep_weights, limits, progress)
    else:
        ops = independent(captured, to_learn, keep_weights, progress)
    specs = {path: spec for unit, op in zip(to_learn, ops, strict=True) for path, spec in specs_of(unit, *op).items()}
    arrays = {unit.owner: to_arrays(op) for unit, (op, _) in zip(to_learn, ops, strict=True)}
    return adapted.replaced(specs, arrays).model


def _only_once(batches: Batches) -> bool:
    """Whether they can be read only once."""
    return not callable(batches) and iter(batches) is batches


def _complain(change: Diff) -> None:
    if not change.replaced:
        raise ValueError(f"No layer would be replaced; nothing was done.\n{change}")
    if change.unused:
        warnings.warn(f"Rules that decide on no layer of the model: {change.unused}.", UserWarning, stacklevel=3)


def _check_captured(captured: Captured, to_learn: Sequence[Unit]) -> None:
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
