"""How good a model is, on batches held out: the user's metric, or how close its outputs are to the exact ones."""

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
    """What it is called in a plan."""
    return "minus the relative error of the outputs" if metric is None else getattr(metric, "__name__", "metric")


class Score:
    """Scores models by their outputs for `batches`; without a metric, by the outputs of `model`, which has 0."""

    def __init__(self, model: Model, batches: Sequence[Any], metric: Metric | None):
        self._model = model
        self._batches = batches
        self._metric = metric

    @functools.cached_property
    def exact(self) -> float:
        """Of the exact model."""
        return self.of(self._model) if self._metric is not None else 0.0

    def of(self, model: Model) -> float:
        """The metric, the mean over the batches.

        Raises:
          ValueError: the metric is no finite number.
        """
        run = model.run()
        if self._metric is None:
            return -relative_error([run(batch) for batch in self._batches], self._wanted)
        found = [np.asarray(self._metric(run(batch), batch)) for batch in self._batches]
        for one in found:
            if one.size != 1 or not np.isfinite(one).all():
                raise ValueError(f"`metric` returned {one!r}; expected a finite number, the larger the better.")
        return float(np.mean([one.reshape(()) for one in found]))

    @functools.cached_property
    def _wanted(self) -> list[Any]:
        run = self._model.run()
        return [run(batch) for batch in self._batches]


def relative_error(outputs: Sequence[Any], exact: Sequence[Any]) -> float:
    """|y - y_exact|^2 / |y_exact - mean|^2 over all batches: the greatest of the arrays of floats among the outputs."""
    errors = [0.0]
    some, wanted = (
        [_flat(arrays) for arrays in zip(*map(jax.tree.leaves, each), strict=True)] for each in (outputs, exact)
    )
    for y, y_exact in zip(some, wanted, strict=True):
        if jnp.issubdtype(y_exact.dtype, jnp.floating):
            errors.append(nmse(y, y_exact))
    return max(errors)


def _flat(arrays: Sequence[Any]) -> np.ndarray:
    """All elements, floats in float32."""
    joined = np.concatenate([np.asarray(a).reshape(-1) for a in arrays])
    return joined.astype(np.float32) if jnp.issubdtype(joined.dtype, jnp.floating) else joined
