"""Scores of models on held-out batches: the user's metric, or the distance of their outputs from the exact ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.nn.models.model import Model
from jax_maddness.nn.planning.measure import nmse

Metric = Callable[[Any, Any], Any]
"""`metric(model's output, batch)`: a number, the larger the better."""


def name_of(metric: Metric | None) -> str:
    """Returns the metric's name in a plan."""
    return "minus the relative error of the outputs" if metric is None else getattr(metric, "__name__", "metric")


class Score:
    """Scores models by a metric of their outputs.

    Without a metric the score is minus the relative error, so that the exact model has 0.
    """

    def __init__(self, model: Model, batches: Sequence[Any], metric: Metric | None):
        self._model = model
        self._batches = batches
        self._metric = metric

    @functools.cached_property
    def exact(self) -> float:
        """The exact model's score."""
        return self.of(self._model) if self._metric is not None else 0.0

    def of(self, model: Model) -> float:
        """Returns a model's score, the mean over the batches.

        Raises:
          ValueError: The metric is no finite number.
        """
        run = model.run()
        if self._metric is None:
            return -relative_error([run(batch) for batch in self._batches], self._exact_outputs)
        scores = [np.asarray(self._metric(run(batch), batch)) for batch in self._batches]
        for score in scores:
            if score.size != 1 or not np.isfinite(score).all():
                raise ValueError(f"`metric` returned {score!r}; expected a finite number, the larger the better.")
        return float(np.mean([score.reshape(()) for score in scores]))

    @functools.cached_property
    def _exact_outputs(self) -> list[Any]:
        run = self._model.run()
        return [run(batch) for batch in self._batches]


def relative_error(outputs: Sequence[Any], exact: Sequence[Any]) -> float:
    """Returns |y - y_exact|^2 / |y_exact - mean|^2 over all batches.

    Args:
      outputs: pytrees of arrays, one for each batch.
      exact: the exact model's, of the same structure.

    Returns:
      The largest error of the floating arrays of the pytree; 0 if there are none.
    """
    errors = [0.0]
    flat_outputs, flat_exact = (
        [_flat(arrays) for arrays in zip(*map(jax.tree.leaves, trees), strict=True)] for trees in (outputs, exact)
    )
    for y, y_exact in zip(flat_outputs, flat_exact, strict=True):
        if jnp.issubdtype(y_exact.dtype, jnp.floating):
            errors.append(nmse(y, y_exact))
    return max(errors)


def _flat(arrays: Sequence[Any]) -> np.ndarray:
    """Joins all elements; floats are converted to float32."""
    joined = np.concatenate([np.asarray(a).reshape(-1) for a in arrays])
    return joined.astype(np.float32) if jnp.issubdtype(joined.dtype, jnp.floating) else joined
