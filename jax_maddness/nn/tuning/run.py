"""`Run`: the training loop of `finetune`, between held-out evaluations that decide which step's tables are kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax  # type: ignore[import-untyped]
from jaxtyping import Array

from jax_maddness.learn.progress import Progress
from jax_maddness.nn.models.model import Model
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
      looks: [evaluations, 2], step and held-out loss; NaN for evaluations that are still to come.
    """

    trained: dict[str, Array]
    adam: Any
    best: dict[str, Array]
    looks: np.ndarray


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
        def step(trained: Any, adam: Any, sizes: Any, rate: Array, frozen: Any, exact: Any, batch: Any) -> Any:
            update, adam = ADAM.update(jax.grad(objective)(trained, frozen, exact, batch), adam)
            return jax.tree.map(lambda p, u, s: (p - rate * s * u).astype(p.dtype), trained, update, sizes), adam

        @jax.jit
        def evaluate(arrays: Any, exact: Any, batch: Any) -> Array:
            return loss(loss.outputs(parts.model, arrays, batch), loss.outputs(teacher, exact, batch), batch)

        self._step = lambda trained, adam, rate, batch: step(trained, adam, self._sizes, rate, frozen, exact, batch)
        self._evaluate = lambda arrays, batch: evaluate(arrays, exact, batch)
        self._sizes: dict[str, Array] = {}

    def start(self, everything: bool, looks: int) -> State:
        """Returns the state before the first step."""
        trained = self._parts.trained(everything)
        self._sizes = self._parts.sizes(trained)
        return State(trained, ADAM.init(trained), trained, np.full((looks, 2), np.nan))

    def loss(self, trained: dict[str, Array] | None, batches: Sequence[Any]) -> float:
        """Returns the mean loss over batches of the model with 8-bit tables; None: of the model as it was given."""
        model = self._parts.model if trained is None else self._parts.delivered(trained)
        arrays = model.arrays()
        return float(np.mean([self._evaluate(arrays, batch) for batch in batches]))

    def train(
        self,
        state: State,
        evaluated_on: Sequence[Any],
        train_on: Callable[[int], Iterator[Any]],
        settings: tuple[int, int, int],
        saved: Checkpoints,
        progress: bool | None,
    ) -> State:
        """Trains until the last step, or until `patience` evaluations in a row bring no gain.

        Args:
          state: the state to begin with, unless `saved` has a later one.
          evaluated_on: held-out batches.
          train_on: returns an endless stream of batches for a seed.
          settings: steps between evaluations, patience, and seed.
          saved: the folder of checkpoints.
          progress: show a progress bar.

        Returns:
          The last state.
        """
        every, patience, seed = settings
        state = saved.restored(state)
        if np.isnan(state.looks).all():
            state.looks[0] = 0, self.loss(None, evaluated_on)
        done = int(np.isfinite(state.looks[:, 1]).sum()) - 1  # evaluations after the first one
        # Batches that the run used before its checkpoint are skipped.
        stream = itertools.islice(train_on(seed), done * every, None)
        with Progress(progress, "finetune") as bar:
            bar.expect(self._steps - done * every)
            for look in range(done + 1, len(state.looks)):
                if look - 1 - int(np.nanargmin(state.looks[:, 1])) >= patience:
                    break
                state = self._until_next_look(state, look, every, stream, bar)
                error = self.loss(state.trained, evaluated_on)
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
