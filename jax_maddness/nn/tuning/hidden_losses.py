"""`Objective`: the sum of several losses between a replaced model and the exact one, on outputs and hidden states."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_maddness.nn.models.layer import Hook
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.models.traces import current_trace
from jax_maddness.nn.tuning.losses import Term


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weighted sum of all terms.

    Attributes:
      terms: each with the paths of the modules whose outputs it compares; without paths, it compares the models' own.
    """

    terms: tuple[tuple[Term, tuple[str, ...]], ...]

    @classmethod
    def of(cls, terms: Iterable[Term], models: Iterable[Model], batch: Any) -> Objective:
        """Finds the modules of the terms in the teacher, the first of `models`.

        Args:
          terms: the losses.
          models: the teacher, then the models that are compared with it.
          batch: an input; only its shapes count.

        Raises:
          ValueError: No module matches a term, or the outputs of one are not accessible in one of the models.
        """
        teacher, *others = models
        paths = teacher.modules(batch)
        objective = cls(tuple((term, _matching(term, paths)) for term in terms))
        for model in (teacher, *others) if objective.hidden else ():
            seen = jax.eval_shape(lambda a, b, m=model: objective.outputs(m, a, b)[1], model.arrays(), batch)
            if missing := [path for path in objective.hidden if not seen[path]]:
                raise ValueError(f"{missing} are not called in one of the models: no loss can see them.")
        return objective

    @property
    def hidden(self) -> tuple[str, ...]:
        """The paths of all modules whose outputs are compared."""
        return tuple(dict.fromkeys(path for _, paths in self.terms for path in paths))

    def outputs(self, model: Model, arrays: Mapping[str, Any], batch: Any) -> tuple[Any, dict[str, list[Any]]]:
        """Returns the outputs of the model with other arrays, and those of each module of `hidden`, call by call."""
        seen: dict[str, list[Any]] = {path: [] for path in self.hidden}
        # A value of an inner trace, as of a scan, would leak if it were kept outside of it.
        outside = current_trace()

        def recorder(path: str) -> Hook:
            def hook(module: Callable[[Any], Any], x: Any) -> Any:
                if current_trace() != outside:
                    raise ValueError(f"{path!r} is inside of a scan, jit or remat of the model: no loss can see it.")
                y = module(x)
                seen[path].append(y)
                return y

            return hook

        return model.outputs(arrays, batch, {path: recorder(path) for path in seen}), seen

    def __call__(self, outputs: tuple[Any, dict], wanted: tuple[Any, dict], batch: Any) -> Array:
        """Computes the loss between the `outputs` of a model and those of the teacher."""
        total = jnp.zeros(())
        for term, paths in self.terms:
            calls = [pair for path in paths for pair in zip(outputs[1][path], wanted[1][path], strict=True)]
            values = [term(y, z, batch) for y, z in (calls if paths else [(outputs[0], wanted[0])])]
            total += term.weight * jnp.stack(values).mean()
        return total


def _matching(term: Term, paths: list[str]) -> tuple[str, ...]:
    if term.layers is None:
        return ()
    matching = tuple(path for path in paths if re.fullmatch(term.layers, path))
    if not matching:
        raise ValueError(f"`layers` {term.layers!r} of a loss matches no module of the teacher. There are: {paths}.")
    return matching
