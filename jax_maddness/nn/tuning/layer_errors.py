"""The error of every replaced layer: its outputs in the replaced model beside those in the exact one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.models.layer import Hook
from jax_maddness.nn.models.model import Model

if TYPE_CHECKING:
    from jaxtyping import Array

MOST = 2**16
"""Numbers of a layer's output, of one call, that are looked at."""


def layer_errors(model: Model, teacher: Model, specs: Mapping[str, Spec], batches: Sequence[Any]) -> dict[str, float]:
    """NMSE of each layer's outputs over `batches`, all calls and steps of scans together.

    What comes from the layers before it counts, too: it is the error of the hidden state. Of a layer that returns the
    maximum over positions alone (`Rule.num_candidates`), it is the error of that.
    """
    wanted, said = (_outputs(one, specs, batches) for one in (teacher, model))
    found = {}
    for path in specs:
        pairs = list(zip(wanted[path], said[path], strict=True))
        exact = np.concatenate([one for one, _ in pairs])
        missed = sum(float(np.square(other - one).sum(dtype=np.float64)) for one, other in pairs)
        spread = float(np.square(exact - exact.mean(0, dtype=np.float64)).sum())
        found[path] = missed / max(spread, float(np.finfo(np.float32).tiny))
    return found


def _outputs(model: Model, specs: Mapping[str, Spec], batches: Sequence[Any]) -> dict[str, list[np.ndarray]]:
    """Rows of the outputs of each layer, call by call: the same places in each model."""
    waiting: dict[str, list[Any]] = {path: [] for path in specs}

    def watched(path: str, spec: Spec) -> Hook:
        def hook(layer: Callable[[Any], Array], x: Any) -> Array:
            y = layer(x)
            rows = _seen(y, spec).reshape(-1, y.shape[-1])
            rows = rows[:: max(1, -(-rows.size // MOST))].astype(jnp.float32)
            jax.debug.callback(waiting[path].append, rows, ordered=True)
            return y

        return hook

    @jax.jit
    def run(arrays: Any, batch: Any) -> None:  # computes what the callbacks need
        model.outputs(arrays, batch, {path: watched(path, spec) for path, spec in specs.items()})

    arrays = model.arrays()
    for batch in batches:
        run(arrays, batch)
    jax.effects_barrier()
    return {path: [np.asarray(rows) for rows in calls] for path, calls in waiting.items()}


def _seen(y: Array, spec: Spec) -> Array:
    """What counts of a layer's output."""
    return y if spec.num_candidates is None else y.max(spec.form.position_axes)
