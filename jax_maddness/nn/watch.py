"""The error of every replaced layer: its outputs in the replaced model beside those in the exact one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.nn.model import Model

if TYPE_CHECKING:
    from jaxtyping import Array

MOST = 2**16
"""Numbers of a layer's output, of one call, that are looked at."""


def layer_errors(model: Model, teacher: Model, paths: Sequence[str], batches: Sequence[Any]) -> dict[str, float]:
    """NMSE of each layer's outputs over `batches`, all calls and steps of scans together.

    What comes from the layers before it counts, too: it is the error of the hidden state.
    """
    wanted, said = (_outputs(one, paths, batches) for one in (teacher, model))
    found = {}
    for path in paths:
        pairs = list(zip(wanted[path], said[path], strict=True))
        exact = np.concatenate([one for one, _ in pairs])
        missed = sum(float(np.square(other - one).sum(dtype=np.float64)) for one, other in pairs)
        spread = float(np.square(exact - exact.mean(0, dtype=np.float64)).sum())
        found[path] = missed / max(spread, float(np.finfo(np.float32).tiny))
    return found


def _outputs(model: Model, paths: Sequence[str], batches: Sequence[Any]) -> dict[str, list[np.ndarray]]:
    """Rows of the outputs of each layer, call by call: the same places in each model."""
    waiting: dict[str, list[Any]] = {path: [] for path in paths}

    def tap(path: str, y: Array) -> None:
        rows = y.reshape(-1, y.shape[-1])
        rows = rows[:: max(1, -(-rows.size // MOST))].astype(jnp.float32)
        jax.debug.callback(waiting[path].append, rows, ordered=True)

    run = model.watched(list(paths), tap)
    for batch in batches:
        run(batch)
    jax.effects_barrier()
    return {path: [np.asarray(rows) for rows in calls] for path, calls in waiting.items()}
