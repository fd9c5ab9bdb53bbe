"""A replaced model and the exact one -> the replaced one, tuned end to end: distillation.

    fast = jax_maddness.finetune(fast, teacher=model, batches=batches)

Tables are trained as floats and rounded to 8 bits again; trees stay, so codes change only with the layers before.
Backward, gradients pass a replaced layer as they would pass the exact one (straight-through), with the kernel that
the teacher has: it need not be kept in `fast`. On CPU, look-ups in float tables and the tables' gradients are kernels
(`core/look_up.py`): what is left of a step's time is the teacher's.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax  # type: ignore[import-untyped]

from jax_maddness.learn.progress import Progress
from jax_maddness.nn.batches import Batches, can_be_read_again, peek
from jax_maddness.nn.models.model import Model, adapt, layers_of
from jax_maddness.nn.tuning.checkpoints import Checkpoints
from jax_maddness.nn.tuning.hidden_losses import Objective
from jax_maddness.nn.tuning.layer_errors import layer_errors
from jax_maddness.nn.tuning.losses import Loss, Term, as_terms
from jax_maddness.nn.tuning.parts import Parts

if TYPE_CHECKING:
    from jaxtyping import Array

TRAIN = ("tables", "all")
ADAM = optax.scale_by_adam()


@dataclasses.dataclass(frozen=True)
class FinetuneReport:
    """What `finetune` did: `print` it.

    Attributes:
      before, after: the loss on the held-out batches, 8-bit tables and all.
      best_step: whose tables are in the model; 0: those that it came with.
      looks: step and held-out loss of every look at the held-out batches.
      layers: of every replaced layer, NMSE of its outputs against the exact model's, before and after.
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


class State(NamedTuple):
    """Of training, all that goes on from one look to the next."""

    trained: dict[str, Array]
    adam: Any
    best: dict[str, Array]
    looks: np.ndarray  # [looks, 2]: step and loss; NaN where there was none yet


def finetune(
    model: Any,
    *,
    teacher: Any,
    batches: Batches,
    steps: int = 500,
    loss: str | Loss | Sequence[Term] = "nmse",
    train: str = "tables",
    learning_rate: float = 0.003,
    held_out: Batches | int | None = None,
    look_every: int = 50,
    patience: int = 4,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    call: Callable[[Any, Any], Any] | None = None,
    return_report: bool = False,
    progress: bool | None = None,
) -> Any:
    """A copy of a replaced model whose tables are tuned, all layers at once, so that it says what `teacher` says.

    Args:
      model: what `replace` returned; it stays as it is.
      teacher: the model that `replace` was given; it stays as it is, too.
      batches: inputs of the models, or a function that returns an iterator over them. They are read again and again;
        a list is shuffled each time.
      steps: of Adam, one batch each; the learning rate falls to zero as half a cosine over as many.
      loss: `"nmse"`: squared error of the outputs over their variance, the mean over all arrays that the model
        returns. `"kl"`: for models that return logits, the divergence of the teacher's classes from the model's.
        `losses.kl(temperature)` has another temperature. Or `loss(outputs, teacher_outputs, batch)`, a scalar, which
        may take labels from the batch (with `call` to keep them from the model). Or a list of `losses.Term`, which
        are added, of outputs or of hidden states: `[Term("kl"), Term("nmse", 0.5, layers="encoder/.*")]`.
      train: `"tables"`: those of the replaced layers; or `"all"`: the other parameters, too.
      learning_rate: relative to the root mean square of what is trained; 0.001 to 0.01 serve.
      held_out: batches to judge by, or how many of `batches`, the first ones, are held out for it; None: one of eight,
        or four where `batches` has no length. The model that is returned is the best by these.
      look_every: steps between two looks at them.
      patience: so many looks in a row without a gain end training.
      seed: of the order of the batches.
      checkpoint: a folder. State is written there at every look, by orbax; where there is some, training goes on.
      call: `call(model, batch)` runs the model, if `model(batch)` does not.
      return_report: return `(model, report)`, with a `FinetuneReport`.
      progress: show a progress bar; None shows it where this takes longer than two seconds.

    Returns:
      A model of the same structure as `model`, so that whatever saves and loads that one takes it, too. It is never
      worse than `model` by the held-out loss: where nothing helps, it is the same.

    Raises:
      TypeError: a model is none of Flax's.
      ValueError: no layer of `model` is replaced, `teacher` is another model, there are too few batches, an argument is
        out of range, or `checkpoint` is of another run.
    """
    terms = as_terms(loss)
    _validate(steps, train, learning_rate, look_every, patience)
    if not can_be_read_again(batches):
        raise ValueError("`batches` are read again and again: pass a list, or a function that returns an iterator.")
    first, _ = peek(batches)
    exact = adapt(teacher, call)
    layers = {layer.path: layer for layer in layers_of(exact, first)}
    parts = Parts.of(model, layers, call)
    judged_by, rows = _hold_out(batches, held_out)
    objective = Objective.of(terms, (exact, parts.model), first)
    run = _Run(parts, exact, objective, steps, learning_rate)
    state = run.start(train == "all", -(-steps // look_every) + 1)
    names = [term.name for term in terms]
    fingerprint = zlib.crc32(repr((steps, names, train, learning_rate, look_every, patience, seed)).encode())
    saved = Checkpoints(checkpoint, fingerprint)
    state = run.train(state, judged_by, rows, (look_every, patience, seed), saved, progress)
    tuned = parts.delivered(state.best) if np.nanargmin(state.looks[:, 1]) else parts.model
    if not return_report:
        return tuned.model
    return tuned.model, _report(state, parts, exact, tuned, judged_by)


def _validate(steps: int, train: str, learning_rate: float, look_every: int, patience: int) -> None:
    if train not in TRAIN:
        raise ValueError(f"`train` is {train!r}; expected one of: {', '.join(map(repr, TRAIN))}.")
    for name, value in (("steps", steps), ("look_every", look_every), ("patience", patience)):
        if value < 1:
            raise ValueError(f"`{name}` is {value}; expected an integer >= 1.")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"`learning_rate` is {learning_rate}; expected a positive number, such as 0.003.")


def _hold_out(batches: Batches, held_out: Batches | int | None) -> tuple[list[Any], Callable[[int], Iterator[Any]]]:
    """Batches to judge by, and a function from a seed to an endless stream of the others."""
    if held_out is None:
        held_out = max(1, len(batches) // 8) if isinstance(batches, Sequence) else 4
    count = held_out if isinstance(held_out, int) else 0
    judged_by = list(itertools.islice(peek(batches)[1], count)) if count else list(peek(held_out)[1])  # type: ignore[arg-type]
    if next(itertools.islice(peek(batches)[1], count, None), None) is None:
        raise ValueError(f"`batches` has only {count}, all of them held out. Pass more, or a smaller `held_out`.")

    def stream(seed: int) -> Iterator[Any]:
        for epoch in itertools.count():
            if isinstance(batches, Sequence):
                order = np.random.default_rng((seed, epoch)).permutation(len(batches) - count)
                yield from (batches[count + i] for i in order)
            else:
                yield from itertools.islice(peek(batches)[1], count, None)

    return judged_by, stream


class _Run:
    """One call of `finetune`: compiled functions of what is trained."""

    def __init__(self, parts: Parts, teacher: Model, loss: Objective, steps: int, learning_rate: float):
        self._parts, self._steps = parts, steps
        self._schedule = optax.cosine_decay_schedule(learning_rate, steps)
        frozen, exact = parts.floating.arrays(), teacher.arrays()

        def objective(trained: dict[str, Array], frozen: Any, exact: Any, batch: Any) -> Array:
            wanted = jax.lax.stop_gradient(loss.outputs(teacher, exact, batch))
            return loss(loss.outputs(parts.floating, {**frozen, **trained}, batch), wanted, batch)

        @jax.jit
        def step(trained: Any, adam: Any, sizes: Any, rate: Array, frozen: Any, exact: Any, batch: Any) -> Any:
            update, adam = ADAM.update(jax.grad(objective)(trained, frozen, exact, batch), adam)
            return jax.tree.map(lambda p, u, s: (p - rate * s * u).astype(p.dtype), trained, update, sizes), adam

        @jax.jit
        def judge(arrays: Any, exact: Any, batch: Any) -> Array:
            return loss(loss.outputs(parts.model, arrays, batch), loss.outputs(teacher, exact, batch), batch)

        self._step = lambda trained, adam, rate, batch: step(trained, adam, self._sizes, rate, frozen, exact, batch)
        self._judge = lambda arrays, batch: judge(arrays, exact, batch)
        self._sizes: dict[str, Array] = {}

    def start(self, everything: bool, looks: int) -> State:
        """Before the first step."""
        trained = self._parts.trained(everything)
        self._sizes = self._parts.sizes(trained)
        return State(trained, ADAM.init(trained), trained, np.full((looks, 2), np.nan))

    def loss(self, trained: dict[str, Array] | None, batches: Sequence[Any]) -> float:
        """Mean over batches of what would be delivered; None: of the model as it was given."""
        model = self._parts.model if trained is None else self._parts.delivered(trained)
        arrays = model.arrays()
        return float(np.mean([self._judge(arrays, batch) for batch in batches]))

    def train(
        self,
        state: State,
        judged_by: Sequence[Any],
        rows: Callable[[int], Iterator[Any]],
        looking: tuple[int, int, int],
        saved: Checkpoints,
        progress: bool | None,
    ) -> State:
        """The state after all steps, or when looks bring nothing any more."""
        every, patience, seed = looking
        state = saved.restored(state)
        if np.isnan(state.looks).all():
            state.looks[0] = 0, self.loss(None, judged_by)
        done = int(np.isfinite(state.looks[:, 1]).sum()) - 1  # looks after the first
        stream = itertools.islice(rows(seed), done * every, None)
        with Progress(progress, "finetune") as bar:
            bar.expect(self._steps - done * every)
            for look in range(done + 1, len(state.looks)):
                if look - 1 - int(np.nanargmin(state.looks[:, 1])) >= patience:
                    break
                state = self._until_next_look(state, look, every, stream, bar)
                error = self.loss(state.trained, judged_by)
                gained = error < np.nanmin(state.looks[:, 1])
                state.looks[look] = min(look * every, self._steps), error
                state = state._replace(best=state.trained) if gained else state
                saved.save(look, state)
        return state

    def _until_next_look(self, state: State, look: int, every: int, stream: Iterator[Any], bar: Progress) -> State:
        trained, adam = state.trained, state.adam
        for number in range((look - 1) * every, min(look * every, self._steps)):
            trained, adam = self._step(trained, adam, self._schedule(number), next(stream))
            bar.step()
        return state._replace(trained=trained, adam=adam)


def _report(state: State, parts: Parts, teacher: Model, tuned: Model, batches: Sequence[Any]) -> FinetuneReport:
    looks = [(int(step), float(loss)) for step, loss in state.looks if np.isfinite(loss)]
    best_step, after = min(looks, key=lambda look: look[1])
    errors = functools.partial(layer_errors, teacher=teacher, specs=parts.specs, batches=batches)
    first, last = errors(parts.model), errors(tuned)
    return FinetuneReport(
        looks[0][1], after, best_step, tuple(looks), {path: (first[path], last[path]) for path in first}
    )
