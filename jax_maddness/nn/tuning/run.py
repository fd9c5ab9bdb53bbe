"""`Run`: the training loop of `finetune`, between held-out evaluations that decide which step's tables are kept."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jaxtyping import Array

from jax_maddness.learn.progress import Progress
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.tuning import not_finite
from jax_maddness.nn.tuning.checkpoints import Checkpoints
from jax_maddness.nn.tuning.hidden_losses import Objective
from jax_maddness.nn.tuning.parts import Parts

ADAM = optax.scale_by_adam()


class State(NamedTuple):
    """Training state carried between evaluations.

    Attributes:
      trained: the trained arrays by place.
      adam: the optimizer's state.
      best: the arrays with the least held-out loss so far.
      looks: [evaluations, 2], step and held-out loss: infinite where it was no finite number. The steps of evaluations
        that are still to come are NaN.
    """

    trained: dict[str, Array]
    adam: Any
    best: dict[str, Array]
    looks: np.ndarray

    @property
    def done(self) -> int:
        """Number of evaluations so far."""
        return int(np.isfinite(self.looks[:, 0]).sum())

    @property
    def best_look(self) -> int:
        """Number of the first evaluation with the least loss; 0, the one before training, where none is finite."""
        return int(np.argmin(self.looks[: self.done, 1]))


class Run:
    """One call of `finetune`: compiled functions of the trained arrays."""

    def __init__(self, parts: Parts, teacher: Model, loss: Objective, steps: int, learning_rate: float):
        self._parts, self._steps = parts, steps
        self._schedule = optax.cosine_decay_schedule(learning_rate, steps)
        # All arrays are arguments of the compiled functions: as constants they would be copied into the program.
        frozen, exact = parts.floating.arrays(), teacher.arrays()

        def objective(trained: dict[str, Array], frozen: Any, exact: Any, batch: Any) -> Array:
            wanted = jax.lax.stop_gradient(loss.outputs(teacher, exact, batch))
            return loss(loss.outputs(parts.floating, {**frozen, **trained}, batch), wanted, batch)

        @jax.jit
        def step(
            trained: Any, adam: Any, bad: Array, sizes: Any, number: Any, rate: Any, frozen: Any, exact: Any, batch: Any
        ) -> Any:
            value, gradient = jax.value_and_grad(objective)(trained, frozen, exact, batch)
            update, adam = ADAM.update(gradient, adam)
            trained = jax.tree.map(lambda p, u, s: (p - rate * s * u).astype(p.dtype), trained, update, sizes)
            here = jnp.stack([number, not_finite.count(batch)]).astype(jnp.int32)
            return trained, adam, jnp.where((bad[0] < 0) & ~jnp.isfinite(value), here, bad)

        @jax.jit
        def evaluate(arrays: Any, exact: Any, batch: Any) -> Array:
            return loss(loss.outputs(parts.model, arrays, batch), loss.outputs(teacher, exact, batch), batch)

        @jax.jit
        def own_loss(exact: Any, batch: Any) -> Array:
            outputs = loss.outputs(teacher, exact, batch)
            return loss(outputs, outputs, batch)

        self._step = lambda trained, adam, bad, number, batch: step(
            trained, adam, bad, self._sizes, number, self._schedule(number), frozen, exact, batch
        )
        self._evaluate = lambda arrays, batch: evaluate(arrays, exact, batch)
        self._own_loss = lambda batch: own_loss(exact, batch)
        self._sizes: dict[str, Array] = {}

    def start(self, everything: bool, looks: int) -> State:
        """Returns the state before the first step."""
        trained = self._parts.trained(everything)
        self._sizes = self._parts.sizes(trained)
        return State(trained, ADAM.init(trained), trained, np.full((looks, 2), np.nan))

    def loss(self, trained: dict[str, Array], batches: Sequence[Any]) -> float:
        """Returns the mean loss over batches of the model with 8-bit tables, infinite if it is no finite number."""
        return _mean_or_infinite(self._losses(self._parts.delivered(trained), batches))

    def first_loss(self, batches: Sequence[Any]) -> float:
        """Returns the mean loss over batches of the model as it was given.

        Raises:
          ValueError: It is no finite number, because of a batch or of the teacher.
        """
        losses = self._losses(self._parts.model, batches)
        not_finite.validate_held_out(batches, losses, self._own_loss)
        return _mean_or_infinite(losses)

    def _losses(self, model: Model, batches: Sequence[Any]) -> list[float]:
        arrays = model.arrays()
        return [float(self._evaluate(arrays, batch)) for batch in batches]

    def train(
        self,
        state: State,
        evaluated_on: Sequence[Any],
        train_on: Callable[[int], Iterator[Any]],
        settings: tuple[int, int, int],
        saved: Checkpoints,
        progress: bool | None,
        ends: Callable[[float], bool] | None = None,
    ) -> State:
        """Trains until the last step, or until `patience` evaluations in a row bring no gain.

        Args:
          state: the state to begin with, unless `saved` has a later one.
          evaluated_on: held-out batches.
          train_on: returns an endless stream of batches for a seed.
          settings: steps between evaluations, patience, and seed.
          saved: the folder of checkpoints.
          progress: show a progress bar.
          ends: whether training ends before the next evaluation, if it takes so many seconds until then.

        Returns:
          The last state.

        Raises:
          ValueError: No evaluation gave a finite number, or a batch that is not finite itself gave none.
        """
        every, patience, seed = settings
        state = saved.restored(state)
        if not state.done:
            state.looks[0] = 0, self.first_loss(evaluated_on)
        done = state.done - 1  # evaluations after the first one
        # Batches that the run used before its checkpoint are skipped.
        stream = itertools.islice(train_on(seed), done * every, None)
        seconds = 0.0
        with Progress(progress, "finetune") as bar:
            bar.expect(self._steps - done * every)
            for look in range(done + 1, len(state.looks)):
                begin = time.perf_counter()
                if look - 1 - state.best_look >= patience or (ends is not None and ends(seconds)):
                    break
                state = self._until_next_look(state, look, every, stream, bar)
                error = self.loss(state.trained, evaluated_on)
                gained = error < state.looks[state.best_look, 1]
                state.looks[look] = min(look * every, self._steps), error
                state = state._replace(best=state.trained) if gained else state
                saved.save(look, state)
                seconds = max(seconds, time.perf_counter() - begin)
        if not np.isfinite(state.looks[state.best_look, 1]):
            raise ValueError(
                "`loss` was no finite number on the held-out batches, neither for `model` nor after training: the "
                "outputs of `model`, or what `loss` makes of them, are NaN or infinite. Pass another `loss` or `model`."
            )
        return state

    def _until_next_look(self, state: State, look: int, every: int, stream: Iterator[Any], bar: Progress) -> State:
        trained, adam, bad = state.trained, state.adam, jnp.array([-1, 0], jnp.int32)
        for number in range((look - 1) * every, min(look * every, self._steps)):
            trained, adam, bad = self._step(trained, adam, bad, number, next(stream))
            bar.step()
        not_finite.validate_step(tuple(np.asarray(bad).tolist()))
        return state._replace(trained=trained, adam=adam)


def _mean_or_infinite(losses: Sequence[float]) -> float:
    """Returns the mean, or infinity if it is no finite number: minus infinity and NaN must not be the least loss."""
    mean = float(np.mean(losses))
    return mean if np.isfinite(mean) else np.inf
