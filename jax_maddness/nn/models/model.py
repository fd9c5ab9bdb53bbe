"""Any model that Flax knows, in one view: `adapt` wraps it, and nothing else here asks which kind it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from flax import linen, nnx

from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.models.layer import Hook, Layer
from jax_maddness.nn.models.linen_model import LinenModel, Replaced
from jax_maddness.nn.models.nnx_model import NnxModel


class Model(Protocol):
    """What capture, calibration and replacement need of a model."""

    model: Any

    def layers(self, batch: Any) -> list[Layer]:
        """Every layer with a kernel, in the order of their calls."""

    def modules(self, batch: Any) -> list[str]:
        """Paths of the modules inside of it."""

    def run(self) -> Callable[[Any], Any]:
        """The model, compiled: batch -> what it returns."""

    def tapped(self, paths: list[str], tap: Callable[[str, Any], None]) -> Callable[[Any], None]:
        """A compiled run that computes what `tap(path, x)` asks for."""

    def arrays(self) -> dict[str, Any]:
        """All arrays of the model by place, as text."""

    def with_arrays(self, arrays: Mapping[str, Any]) -> Any:
        """The model with other arrays, all of them."""

    def outputs(self, arrays: Mapping[str, Any], batch: Any, hooks: Mapping[str, Hook] | None = None) -> Any:
        """What the model with other arrays says; hooks are in place of modules, replaced or not, by path."""

    def replaced(self, specs: Mapping[str, Spec], arrays: Mapping[str, Mapping[str, Any]]) -> Any:
        """A new model, with ops in place of layers."""

    def narrowed(self, specs: Mapping[str, Spec], arrays: Mapping[str, Any]) -> Any:
        """A new model, with other specs of all replaced layers, and all arrays, some of which may be smaller."""


def adapt(model: Any, call: Callable[[Any, Any], Any] | None = None) -> Model:
    """`model` in the view of this folder.

    Args:
      model: an `nnx.Module`, or a linen module with its variables: `(module, variables)`.
      call: `call(model, batch)` runs `model` on one of the batches; by default `model(batch)`, and for linen
        `module.apply(variables, batch)`, with a tuple's or a dict's elements as arguments.

    Raises:
      TypeError: it is neither.
    """
    if isinstance(model, nnx.Module):
        return NnxModel(model, call or (lambda m, batch: _apply(m, batch)))
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], linen.Module):
        all_replaced = isinstance(model[0], Replaced)  # and nothing else has parameters
        if not isinstance(model[1], Mapping) or not (all_replaced or "params" in model[1]):
            raise TypeError("The variables of a linen model must be a dict with 'params', as `module.init` returns it.")
        return LinenModel(model, call or (lambda m, batch: _apply(lambda *a, **k: m[0].apply(m[1], *a, **k), batch)))
    hint = "Pass `(module, variables)`." if isinstance(model, linen.Module) else "Pass one of Flax's."
    raise TypeError(
        f"`model` is {type(model).__name__}; expected an nnx.Module, or a linen module and variables. {hint}"
    )


def _apply(function: Callable[..., Any], batch: Any) -> Any:
    if isinstance(batch, tuple):
        return function(*batch)
    return function(**batch) if isinstance(batch, dict) else function(batch)


def layers_of(model: Model, batch: Any) -> list[Layer]:
    """`model.layers`, with a clear error if the model does not take the batch."""
    try:
        return model.layers(batch)
    except Exception as error:
        shapes = jax.tree.map(
            lambda a: f"{getattr(a, 'dtype', type(a).__name__)}{list(getattr(a, 'shape', ()))}", batch
        )
        raise ValueError(
            f"The model does not take the first batch, {shapes}: {error}. A tuple's elements are passed as arguments, "
            "a dict's by name; for anything else pass `call=lambda model, batch: ...`."
        ) from error
