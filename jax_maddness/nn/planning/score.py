"""Scores of models on held-out batches: the user's metric, or the distance of their outputs from the exact ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.nn.models.model import Model
from jax_maddness.nn.nmse import nmse
from jax_maddness.nn.planning.confidence import are_shares

Metric = Callable[[Any, Any], Any]
"""`metric(model's output, batch)`: a number, the larger the better."""


def name_of(metric: Metric | None) -> str:
    """Returns the metric's name in a plan."""
    return "minus the relative error of the outputs" if metric is None else getattr(metric, "__name__", "metric")


class Score:
    """Scores models by a metric of their outputs.

    Without a metric the score is minus the relative error, so that the exact model has 0, and a model whose outputs are
    not finite where the exact ones are has minus infinity.

    Attributes:
      batches: the held-out batches.
      spread: by how much two scores of the exact model on one batch differ, once it was scored: not 0 for a metric that
        is random.
    """

    def __init__(self, model: Model, batches: Sequence[Any], metric: Metric | None):
        self._model = model
        self.batches = batches
        self._metric = metric
        self.spread = 0.0
        self._sizes = [_size(batch) for batch in batches]
        self._agrees = metric is not None and len(set(self._sizes)) == 1

    @property
    def examples(self) -> int:
        """The number of held-out examples, if the metric is the share of them that a model has as the exact one has.

        The exact model scores 1 then, and no model that was scored is between two numbers of examples. Otherwise 0.
        """
        return sum(self._sizes) * self._agrees

    @functools.cached_property
    def exact(self) -> float:
        """The exact model's score, a finite number.

        Raises:
          ValueError: The metric is no finite number; or there is none, and the outputs have no numbers to compare.
        """
        if self._metric is not None:
            scores = self._by_batch(self.run_exact, self.batches)
            self.spread = abs(self._by_batch(self.run_exact, self.batches[:1])[0] - scores[0])
            self._agrees &= all(score == 1 for score in scores)
            return float(np.mean(scores))
        return -relative_error(self._exact_outputs, self._exact_outputs) or 0.0  # not -0.0

    @functools.cached_property
    def run_exact(self) -> Callable[[Any], Any]:
        """The exact model, compiled once."""
        return self._model.run()

    def of(self, run: Callable[[Any], Any]) -> float:
        """Returns the score of a compiled model, the mean over the batches: a number, or minus infinity.

        Raises:
          ValueError: The metric is no finite number, or there is none and the outputs have no numbers to compare.
        """
        if self._metric is None:
            return -relative_error([run(batch) for batch in self.batches], self._exact_outputs)
        scores = self._by_batch(run, self.batches)
        self._agrees = self._agrees and are_shares(scores, self._sizes)
        return float(np.mean(scores))

    def _by_batch(self, run: Callable[[Any], Any], batches: Sequence[Any]) -> list[float]:
        """Returns the metric of each batch."""
        assert self._metric is not None
        return [_finite_number(self._metric(run(batch), batch)) for batch in batches]

    @functools.cached_property
    def _exact_outputs(self) -> list[Any]:
        return [self.run_exact(batch) for batch in self.batches]


def _size(batch: Any) -> int:
    """Returns the number of examples of a batch, the first dimension of its first array; 0 if it has none."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    return next((shape[0] for shape in shapes if shape), 0)


def _finite_number(score: Any) -> float:
    """Returns what `metric` returned as a float, if it is one finite number."""
    try:
        number = float(np.asarray(score).reshape(()))
    except (TypeError, ValueError):  # several numbers, or none
        number = math.nan
    if not math.isfinite(number):
        shape = getattr(score, "shape", ())
        what = f"an array of shape {shape}" if shape else f"{score!r:.200}"
        raise ValueError(f"`metric` returned {what}; expected a finite number, the larger the better.")
    return number


def relative_error(outputs: Sequence[Any], exact: Sequence[Any]) -> float:
    """Returns `|y - y_exact|^2 / |y_exact - mean|^2` over all batches, as `nmse` defines it for what is not finite.

    Args:
      outputs: pytrees of arrays, one for each batch.
      exact: the exact model's, of the same structure.

    Returns:
      The largest error of the floating and complex arrays of the pytree.

    Raises:
      ValueError: The exact model's have no finite number, so there is nothing to compare.
    """
    errors, comparable = list[float](), False
    flat_outputs, flat_exact = (
        [_flat(arrays) for arrays in zip(*map(jax.tree.leaves, trees), strict=True)] for trees in (outputs, exact)
    )
    for y, y_exact in zip(flat_outputs, flat_exact, strict=True):
        if jnp.issubdtype(y_exact.dtype, jnp.floating):
            errors.append(nmse(y, y_exact))
            comparable |= bool(np.isfinite(y_exact).any())
    if not comparable:
        raise ValueError(
            "The outputs of the exact model have no floating array with finite numbers on the held-out batches, so "
            "models cannot be compared by them. Pass `metric`, or other batches."
        )
    return max(errors)


def _flat(arrays: Sequence[Any]) -> np.ndarray:
    """Joins all elements; bfloat16, which NumPy does not know, becomes float32, and a complex number two numbers."""
    joined = np.concatenate([np.asarray(a).reshape(-1) for a in arrays])
    if np.iscomplexobj(joined):
        return joined.view(joined.real.dtype)
    known = np.issubdtype(joined.dtype, np.floating) or not jnp.issubdtype(joined.dtype, jnp.floating)
    return joined if known else joined.astype(np.float32)
