"""Terms -> one loss of a replaced model beside the exact one: of their outputs, and of hidden states."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jax_maddness.nn.models.layer import Hook
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.tuning.losses import Term

if TYPE_CHECKING:
    from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weighted sum of all terms.

    Attributes:
      terms: with the paths of the modules that each compares; none: the model's outputs.
    """

    terms: tuple[tuple[Term, tuple[str, ...]], ...]

    @classmethod
    def of(cls, terms: Iterable[Term], models: Iterable[Model], batch: Any) -> Objective:
        """Finds the modules in the teacher, the first of `models`.

        Raises:
          ValueError: there is none for a term, or one of the models does not show its outputs.
        """
        teacher, *others = models
        paths = teacher.modules(batch)
        found = cls(tuple((term, _matching(term, paths)) for term in terms))
        for model in (teacher, *others) if found.hidden else ():
            seen = jax.eval_shape(lambda a, b, m=model: found.outputs(m, a, b)[1], model.arrays(), batch)
            if missing := [path for path in found.hidden if not seen[path]]:
                raise ValueError(f"{missing} are not called in one of the models: no loss can see them.")
        return found

    @property
    def hidden(self) -> tuple[str, ...]:
        """Paths of all modules that are looked into."""
        return tuple(dict.fromkeys(path for _, paths in self.terms for path in paths))

    def outputs(self, model: Model, arrays: Mapping[str, Any], batch: Any) -> tuple[Any, dict[str, list[Any]]]:
        """What the model says with such arrays, and what each module of `hidden` says, call by call."""
        seen: dict[str, list[Any]] = {path: [] for path in self.hidden}
        here = core.get_opaque_trace_state(convention="nnx")

        def seeing(path: str) -> Hook:
            def hook(module: Callable[[Any], Any], x: Any) -> Any:
                if core.get_opaque_trace_state(convention="nnx") != here:
                    raise ValueError(f"{path!r} is inside of a scan, jit or remat of the model: no loss can see it.")
                y = module(x)
                seen[path].append(y)
                return y

            return hook

        return model.outputs(arrays, batch, {path: seeing(path) for path in seen}), seen

    def __call__(self, said: tuple[Any, dict], wanted: tuple[Any, dict], batch: Any) -> Array:
        """The loss of two models' `outputs`."""
        total = jnp.zeros(())
        for term, paths in self.terms:
            calls = [pair for path in paths for pair in zip(said[1][path], wanted[1][path], strict=True)]
            values = [term(y, z, batch) for y, z in (calls if paths else [(said[0], wanted[0])])]
            total += term.weight * jnp.stack(values).mean()
        return total


def _matching(term: Term, paths: list[str]) -> tuple[str, ...]:
    if term.layers is None:
        return ()
    found = tuple(path for path in paths if re.fullmatch(term.layers, path))
    if not found:
        raise ValueError(f"`layers` {term.layers!r} of a loss matches no module of the teacher. There are: {paths}.")
    return found
