"""Errors of replaced layers: their outputs in the replaced model compared with those in the exact model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.models.layer import Hook
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.models.watch import Watch
from jax_maddness.nn.nmse import nmse

MAX_ELEMENTS = 2**16
"""The most elements of a layer's output that are compared, for each call."""


def layer_errors(model: Model, teacher: Model, specs: Mapping[str, Spec], batches: Sequence[Any]) -> dict[str, float]:
    """Returns, by path, the NMSE of each layer's outputs over `batches`, all calls and steps of scans together.

    It is infinite for a layer whose outputs are not finite where the teacher's are. Layers without calls are left out.
    Errors of the layers before count, too: it is the error of the hidden state. For a layer that returns the maximum
    over positions alone (`Rule.num_candidates`), it is the error of the maximum.

    Args:
      model: the replaced model.
      teacher: the exact model.
      specs: of the layers to compare, by path.
      batches: inputs of the models.
    """
    wanted, approximate = (_outputs(model, specs, batches) for model in (teacher, model))
    errors = {}
    for path in specs:
        if wanted[path]:
            errors[path] = nmse(np.concatenate(approximate[path]), np.concatenate(wanted[path]))
    return errors


def _outputs(model: Model, specs: Mapping[str, Spec], batches: Sequence[Any]) -> dict[str, list[np.ndarray]]:
    """Returns rows of the outputs of each layer, call by call, at places that are the same in each model."""
    watch = Watch()

    def watched(path: str, spec: Spec) -> Hook:
        def hook(layer: Callable[[Any], Array], x: Any) -> Array:
            y = layer(x)
            rows = _compared(y, spec).reshape(-1, y.shape[-1])
            watch.send(path, rows[:: max(1, -(-rows.size // MAX_ELEMENTS))].astype(jnp.float32))
            return y

        return hook

    def function(arrays: Any, batch: Any) -> None:  # returns nothing, so that XLA drops all that no callback needs
        model.outputs(arrays, batch, {path: watched(path, spec) for path, spec in specs.items()}, of_layers=True)

    arrays, run = model.arrays(), watch.compiled(function)
    for batch in batches:
        run(arrays, batch)
    received = watch.received()
    return {path: [rows.reshape(-1, rows.shape[-1]) for (rows,) in received.get(path, [])] for path in specs}


def _compared(y: Array, spec: Spec) -> Array:
    """Returns the layer's output, or its maximum over positions if the replaced layer returns nothing else."""
    return y if spec.num_candidates is None else y.max(spec.form.position_axes)
