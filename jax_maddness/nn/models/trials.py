"""Tries on shapes alone whether a model still runs once its layers are replaced, before anything is learned.

A model may read the kernel of a layer, as tied embeddings and `WeightNorm` do. Such layers can be replaced if the model
keeps their kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.layers.int8_low_rank import product_arrays
from jax_maddness.nn.layers.kinds import LOW_RANK
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.models.view import Model


def validate_replaced(model: Model, layers: Sequence[Layer], batch: Any) -> None:
    """Traces the replaced model; sets `keeps_kernel` of layers whose kernels the model reads.

    Layers with which the replaced model does not run get a reason to stay.

    Args:
      model: the model.
      layers: of the model; they are changed in place.
      batch: an input; only its shapes count.
    """
    candidates = [layer for layer in layers if not layer.reason]
    if not candidates or _failure(model, candidates, batch) is None:
        return
    for layer in candidates:
        if _failure(model, [layer], batch) is None:
            continue
        kept, layer.keeps_kernel = layer.keeps_kernel, True
        if (failure := _failure(model, [layer], batch)) is not None:
            layer.keeps_kernel = kept
            layer.reason = f"the model does not run without it: {str(failure).splitlines()[0]}"


def _failure(model: Model, layers: Sequence[Layer], batch: Any) -> Exception | None:
    """Returns the error of the model with these layers replaced; None if it runs."""
    specs, arrays = {}, {}
    for layer in layers:
        assert layer.form is not None
        specs[layer.path] = Spec(
            layer.form, layer.dtype, layer.param_dtype, layer.path, LOW_RANK, None, False, layer.steps,
            keeps_kernel=layer.keeps_kernel,
        )  # fmt: skip
        arrays[layer.path] = _shapes(layer)
    try:
        replaced = model.replaced(specs, arrays)
        jax.eval_shape(replaced.outputs, replaced.arrays(), batch)
    except Exception as error:  # whatever the user's code raises
        return error
    return None


def _shapes(layer: Layer) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a product in the layer's place, for all of its groups."""
    assert layer.form is not None
    (d, m), groups = layer.shape, layer.form.groups
    shapes = {"down": (groups, d, m), "up": (groups * m, groups * m), "bias": (groups * m,)}
    lead = (layer.steps,) * bool(layer.steps)
    return product_arrays({k: jax.ShapeDtypeStruct((*lead, *s), jnp.float32) for k, s in shapes.items()})
