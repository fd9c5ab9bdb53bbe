"""`adapt` and `layers_of`: a user's model -> its `Model` -> its layers, and which of them can be replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen, nnx

from jax_maddness.core import arguments
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.models.linen_model import LinenModel
from jax_maddness.nn.models.linen_modules import Replaced
from jax_maddness.nn.models.nnx_model import NnxModel
from jax_maddness.nn.models.products import validate_products
from jax_maddness.nn.models.trials import validate_replaced
from jax_maddness.nn.models.view import Model

MODELS: tuple[type[Model], ...] = (NnxModel, LinenModel)


def adapt(model: Any, call: Callable[[Any, Any], Any] | None = None, name: str = "model") -> Model:
    """Returns the view of a user's model.

    Args:
      model: an `nnx.Module`, or a linen module with its variables: `(module, variables)`.
      call: `call(model, batch)` runs `model` on one of the batches; by default `model(batch)`, and for linen
        `module.apply(variables, batch)`, with a tuple's or a dict's elements as arguments.
      name: the user's name of `model`, for errors.

    Raises:
      TypeError: It is neither, or `call` is no function.
    """
    arguments.function(call, "call", "call(model, batch)")
    if isinstance(model, nnx.Module):
        return NnxModel(model, call or (lambda m, batch: _apply(m, batch)))
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], linen.Module):
        all_replaced = isinstance(model[0], Replaced)  # and nothing else has parameters
        if not isinstance(model[1], Mapping) or not (all_replaced or "params" in model[1]):
            raise TypeError("The variables of a linen model must be a dict with 'params', as `module.init` returns it.")
        return LinenModel(model, call or (lambda m, batch: _apply(lambda *a, **k: m[0].apply(m[1], *a, **k), batch)))
    hint = "Pass `(module, variables)`." if isinstance(model, linen.Module) else "Pass one of Flax's."
    raise TypeError(
        f"`{name}` is {type(model).__name__}; expected an nnx.Module, or a linen module and variables. {hint}"
    )


def _apply(function: Callable[..., Any], batch: Any) -> Any:
    if isinstance(batch, tuple):
        return function(*batch)
    return function(**batch) if isinstance(batch, dict) else function(batch)


def layers_of(model: Model, batch: Any, name: str = "the first batch") -> list[Layer]:
    """Returns `model.layers(batch)`; layers that are no products with their kernels have a reason to stay.

    Raises:
      ValueError: The model does not take the batch; the message says how batches are passed.
    """
    try:
        layers = model.layers(batch)
        validate_products(model, layers, batch)
        validate_replaced(model, layers, batch)
        return layers
    except Exception as error:
        shapes = jax.tree.map(
            lambda a: f"{getattr(a, 'dtype', type(a).__name__)}{list(getattr(a, 'shape', ()))}", batch
        )
        raise ValueError(
            f"The model does not take {name}, {shapes}: {error}. A tuple's elements are passed as arguments, "
            "a dict's by name; for anything else pass `call=lambda model, batch: ...`."
        ) from error
