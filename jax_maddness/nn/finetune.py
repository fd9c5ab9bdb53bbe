"""finetune: distills the exact model into a replaced one, all layers end to end.

    fast = jax_maddness.finetune(fast, teacher=model, batches=batches)

Tables are trained as floats and rounded to 8 bits again. Trees stay, so codes change only with the layers before them.
Backward, gradients pass a replaced layer as they would pass the exact one (straight-through), with the teacher's
kernel, which need not be kept in `fast`. On CPU, look-ups in float tables and the tables' gradients are kernels
(`core/look_up.py`), so that the teacher takes most of a step's time.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import numbers
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jax_maddness.core import arguments
from jax_maddness.nn import fingerprint
from jax_maddness.nn.batches import Batches, can_be_read_again, peek
from jax_maddness.nn.layers.promotion import with_standard_promotion
from jax_maddness.nn.models.model import Model, adapt, layers_of
from jax_maddness.nn.tuning.checkpoints import Checkpoints
from jax_maddness.nn.tuning.hidden_losses import Objective
from jax_maddness.nn.tuning.layer_errors import layer_errors
from jax_maddness.nn.tuning.losses import Loss, Term, as_terms
from jax_maddness.nn.tuning.parts import Parts
from jax_maddness.nn.tuning.run import Run, State

TRAIN = ("tables", "all")
"""The values of `train`."""
_LEARNING_RATE, _PATIENCE = 0.003, 4
_EVALUATIONS = 8
"""Evaluations of `tune_tables`, which may end at each of them."""
FIRST_BATCHES = 8
"""A run is resumed only if so many of the first batches are the same; with a list, if all are."""


@dataclasses.dataclass(frozen=True)
class FinetuneReport:
    """The course and the result of `finetune`: `print` it.

    Attributes:
      before, after: the loss of the model with 8-bit tables on the held-out batches.
      best_step: the step whose tables are in the model; 0: the tables that it had before.
      looks: step and held-out loss of every evaluation; the loss is infinite where it was no finite number.
      layers: by path of every replaced layer, the NMSE of its outputs against the exact model's, before and after.
    """

    before: float
    after: float
    best_step: int
    looks: tuple[tuple[int, float], ...]
    layers: Mapping[str, tuple[float, float]]

    @property
    def worse(self) -> tuple[str, ...]:
        """Layers whose own outputs are farther from the exact ones than at the start."""
        return tuple(path for path, (before, after) in self.layers.items() if after > before)

    def __str__(self) -> str:
        lines = [f"held-out loss {self.before:.4g} -> {self.after:.4g}, at step {self.best_step}", ""]
        lines += ["| layer | NMSE before | after | |", "|---|---|---|---|"]
        for path, (before, after) in self.layers.items():
            lines.append(
                f"| {path or '(the model)'} | {before:.3g} | {after:.3g} | {'worse' if after > before else ''} |"
            )
        return "\n".join(lines)


@with_standard_promotion
def finetune(
    model: Any,
    *,
    teacher: Any,
    batches: Batches,
    steps: int = 500,
    loss: str | Loss | Sequence[Term] = "nmse",
    train: str = "tables",
    learning_rate: float = _LEARNING_RATE,
    held_out: Batches | int | None = None,
    look_every: int = 50,
    patience: int = _PATIENCE,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    call: Callable[[Any, Any], Any] | None = None,
    return_report: bool = False,
    progress: bool | None = None,
) -> Any:
    """Returns a copy of a replaced model whose tables are trained, all layers at once, to match the teacher's outputs.

    Args:
      model: the result of `replace`; it stays as it is.
      teacher: the model that was passed to `replace`; it stays as it is, too.
      batches: inputs of the models, or a function that returns an iterator over them. They are read again and again;
        a list is shuffled each time.
      steps: number of Adam's steps, one batch each; the learning rate falls to zero along half a cosine.
      loss: `"nmse"`: the squared error of the outputs over their variance, the mean over all arrays that the model
        returns. `"kl"`: for models that return logits, the divergence of the teacher's classes from the model's;
        `losses.kl(temperature)` has another temperature. Or `loss(outputs, teacher_outputs, batch)`, a scalar, which
        may take labels from the batch (with `call` to keep them from the model). Or a list of `Term`s, which are
        added, for outputs or hidden states: `[Term("kl"), Term("nmse", 0.5, layers="encoder/.*")]`.
      train: `"tables"`: train the tables of the replaced layers; `"all"`: the other parameters, too.
      learning_rate: relative to the root mean square of the trained arrays; 0.001 to 0.01 serve.
      held_out: batches to evaluate on, or the number of the first of `batches` that are held out; None: one of eight,
        or four where `batches` has no length. The model that is returned is the best on these.
      look_every: steps between two evaluations.
      patience: training ends after so many evaluations in a row without a gain.
      seed: of the order of the batches.
      checkpoint: a folder. The state is written there at every evaluation, by orbax; if there is one, training resumes.
        It is refused unless the models, the loss, the batches and the other arguments are those of its run. Batches
        that a function returns are compared as far as the first 8, and host callbacks in a model or loss are not.
      call: `call(model, batch)` runs the model, if `model(batch)` does not.
      return_report: return `(model, report)`, with a `FinetuneReport`.
      progress: show a progress bar; None shows it if this takes longer than two seconds.

    Returns:
      A model of the same structure, shapes and dtypes as `model`, so that the same code saves and loads it. Its
      held-out loss is never larger: if training does not help, it is the same model. With `return_report`,
      `(model, report)`.

    Raises:
      TypeError: A model is none of Flax's, `batches` is one array, or another argument is of another type.
      ValueError: No layer of `model` is replaced, `teacher` is another model, there are too few batches, an argument is
        out of range, or `checkpoint` is of another run.
      ModuleNotFoundError: `checkpoint` is given, and orbax is not installed.

    Example:
      Training takes minutes::

          fast = jax_maddness.replace(model, Rule("encoder/.*", num_codebooks=64), batches)
          terms = [Term("kl"), Term("nmse", 0.5, layers="encoder/.*")]
          fast, report = jax_maddness.finetune(fast, teacher=model, batches=batches, loss=terms, return_report=True)
          print(report)
    """
    terms = as_terms(loss)
    integers = {"steps": (steps, 1), "look_every": (look_every, 1), "patience": (patience, 1), "seed": (seed, 0)}
    steps, look_every, patience, seed = (arguments.integer(value, name, n) for name, (value, n) in integers.items())
    _validate(train, learning_rate, call)
    return_report = arguments.flag(return_report, "return_report")
    if not can_be_read_again(batches):
        raise ValueError("`batches` are read again and again: pass a list, or a function that returns an iterator.")
    first, _ = peek(batches)
    exact = adapt(teacher, call, "teacher")
    layers = {layer.path: layer for layer in layers_of(exact, first)}
    parts = Parts.of(model, layers, call)
    evaluated_on, train_on = _hold_out(batches, held_out)
    objective = Objective.of(terms, (exact, parts.model), first)
    run = Run(parts, exact, objective, steps, learning_rate)
    state = run.start(train == "all", -(-steps // look_every) + 1)
    settings = {"steps": steps, "train": train, "learning_rate": float(learning_rate), "look_every": look_every}
    found = {f"`{name}`": repr(value) for name, value in (settings | {"patience": patience, "seed": seed}).items()}
    if checkpoint is not None:
        found |= _fingerprint(parts.model, exact, objective, batches, evaluated_on)
    saved = Checkpoints(checkpoint, found)
    state = run.train(state, evaluated_on, train_on, (look_every, patience, seed), saved, progress)
    tuned = parts.delivered(state.best) if state.best_look else parts.model
    if not return_report:
        return tuned.model
    return tuned.model, _report(state, parts, exact, tuned, evaluated_on)


def tune_tables(
    model: Any,
    teacher: Any,
    batches: list[Any],
    steps: int,
    call: Callable[[Any, Any], Any] | None,
    ends: Callable[[float], bool],
) -> Model:
    """Trains tables as `finetune` does by default, in the time that there is.

    Args:
      model, teacher, batches, steps, call: as for `finetune`.
      ends: whether training ends before the next evaluation, if it takes so many seconds until then.

    Raises:
      ValueError: There is nothing to train, or only one batch, or the loss is no finite number.
    """
    exact, every = adapt(teacher, call, "teacher"), max(1, steps // _EVALUATIONS)
    parts = Parts.of(model, {layer.path: layer for layer in layers_of(exact, batches[0])}, call)
    evaluated_on, train_on = _hold_out(batches, None)
    objective = Objective.of(as_terms("nmse"), (exact, parts.model), batches[0])
    run = Run(parts, exact, objective, steps, _LEARNING_RATE)
    state = run.start(False, -(-steps // every) + 1)
    saved = Checkpoints(None, {})
    state = run.train(state, evaluated_on, train_on, (every, _PATIENCE, 0), saved, False, ends)
    return parts.delivered(state.best) if state.best_look else parts.model


def _validate(train: str, learning_rate: float, call: Any) -> None:
    arguments.choice(train, "train", TRAIN)
    arguments.function(call, "call", "call(model, batch)")
    if not 0 < arguments.real(learning_rate, "learning_rate", "a positive number, such as 0.003") < math.inf:
        raise ValueError(f"`learning_rate` is {learning_rate}; expected a positive number, such as 0.003.")


def _hold_out(batches: Batches, held_out: Batches | int | None) -> tuple[list[Any], Callable[[int], Iterator[Any]]]:
    """Returns the batches to evaluate on, and a function from a seed to an endless stream of the others."""
    if held_out is None:
        held_out = max(1, len(batches) // 8) if isinstance(batches, Sequence) else 4
    if isinstance(held_out, int | numbers.Number | np.bool_):
        words = ", a number of batches, or the batches themselves, or None for one of eight"
        count = arguments.integer(held_out, "held_out", 1, words)
        evaluated_on = list(itertools.islice(peek(batches)[1], count))
    else:
        count, evaluated_on = 0, list(peek(held_out, "held_out")[1])
    if next(itertools.islice(peek(batches)[1], count, None), None) is None:
        raise ValueError(f"`batches` has only {count}, all of them held out. Pass more, or a smaller `held_out`.")

    def stream(seed: int) -> Iterator[Any]:
        for epoch in itertools.count():
            if isinstance(batches, Sequence):
                order = np.random.default_rng((seed, epoch)).permutation(len(batches) - count)
                yield from (batches[count + i] for i in order)
            else:
                yield from itertools.islice(peek(batches)[1], count, None)

    return evaluated_on, stream


def _fingerprint(
    model: Model, teacher: Model, objective: Objective, batches: Batches, evaluated_on: Sequence[Any]
) -> dict[str, str]:
    """Returns the fingerprints of what decides the result, beside the arguments that are numbers."""
    found, outputs = fingerprint.versions(), []
    for name, one in (("`model`", model), ("`teacher`", teacher)):
        found[f"weights of {name}"] = fingerprint.of_arrays(one.arrays())
        run = functools.partial(objective.outputs, one)
        found[f"code of {name}"], shapes = fingerprint.of_program(run, one.arrays(), evaluated_on[0])
        outputs.append(shapes)
    found["`loss`"], _ = fingerprint.of_program(objective, *outputs, evaluated_on[0])
    # A list is in memory. What a function returns may be large: there the first batches must do.
    some = batches if isinstance(batches, list | tuple) else itertools.islice(peek(batches)[1], FIRST_BATCHES)
    found["`batches`"] = fingerprint.of_batches(some)
    found["held-out batches"] = fingerprint.of_batches(evaluated_on)
    return found


def _report(state: State, parts: Parts, teacher: Model, tuned: Model, batches: Sequence[Any]) -> FinetuneReport:
    looks = [(int(step), float(loss)) for step, loss in state.looks[: state.done]]
    best_step, after = looks[state.best_look]
    errors = functools.partial(layer_errors, teacher=teacher, specs=parts.specs, batches=batches)
    first, last = errors(parts.model), errors(tuned)
    return FinetuneReport(
        looks[0][1], after, best_step, tuple(looks), {path: (first[path], last[path]) for path in first}
    )
