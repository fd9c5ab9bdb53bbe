"""Replaced layers with fewer features, or with fewer outputs. Pure JAX, no Flax.

Ops are dicts of arrays by name, as modules hold them (`CodesReplacement.arrays`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jax_maddness.core.terms.exact_term import ExactTerm
from jax_maddness.core.terms.kinds import TERMS
from jax_maddness.core.types import TREE_KINDS
from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.layers.form import Form

Op = Mapping[str, Array]

_OUTPUT_AXES = {
    "tables_values": -3,
    "tables_scale": -1,
    "tables_offset": -1,
    "tables_by_code": -1,
    "exact_up": -1,
    "factors_up": -2,
    "factors_shift": -1,
    "int8_up": -2,
    "int8byrow_up": -2,
    "weights": -1,
    "rescore_kernel": -2,
    "rescore_bias": -1,
}
"""The axis of the outputs of each array that has one."""


def why_all_are_read(spec: Spec, op: Op) -> str:
    """Returns why a layer may read all features of its input; "" if its op reads only those that its trees compare."""
    if not spec.has_tables:
        return f"it is a product, in {spec.trees}"
    if not TREE_KINDS[spec.trees].reads_few_features:
        return "its trees project groups of features: only those of `FitConfig('axis')` or 'paper' read few"
    if spec.steps or spec.form.groups > 1:
        return "it has several ops: it is in a scan, or a convolution with groups"
    if not spec.form.reads_last_axis:
        return "its features are not one axis, the last, of its input"
    if "rescore_kernel" in op:
        return "it multiplies some of its rows exactly, with all features"
    term = next((kind for kind in TERMS if any(name.startswith(f"{kind.name}_") for name in op)), None)
    if term is not None and (term is not ExactTerm or "exact_down" in op or spec.shared):
        return f"its {term.__name__} reads all features"
    return ""


def why_all_are_written(form: Form, steps: int, part: tuple[int, int] | None) -> str:
    """Returns why a layer cannot have fewer outputs; "" if it can.

    Args:
      form, steps: of the layer.
      part: the part of a shared op, as in `Spec`; None: the op is not shared.
    """
    if steps or form.groups > 1:
        return "is in a scan, or a convolution with groups"
    if part is not None:
        return "shares its op with other layers"
    if not form.writes_last_axis:
        return "has outputs that are not one axis, the last"
    return ""


def features_read(spec: Spec, op: Op, features: int) -> Int[np.ndarray, " read"]:
    """Returns the features of the input that the op compares, in the order of its codebooks.

    For a convolution they are the channels that any of its taps compares.
    """
    compared = _compared(spec, op, features) % features
    own, first = np.unique(compared, return_index=True)
    return own[np.argsort(first)]


def _compared(spec: Spec, op: Op, features: int) -> Int[np.ndarray, " all"]:
    """Returns the features of a row that the op compares, in `[0, taps * features)`."""
    # As `encode` clips indices that are out of range, so must this.
    indices = np.concatenate([np.asarray(op[name]).reshape(-1) for name in _indices(op)])
    return np.clip(indices, 0, _taps(spec) * features - 1)


def _indices(op: Op) -> list[str]:
    return [name for name in ("trees_indices", "exact_indices") if name in op]


def _taps(spec: Spec) -> int:
    """Returns the number of taps that are side by side in a row of the op."""
    return 1 if spec.shared else spec.form.taps


def with_features(spec: Spec, op: Op, kept: Int[np.ndarray, " kept"], features: int) -> tuple[Spec, dict[str, Array]]:
    """Adapts a layer to inputs with fewer features.

    Args:
      spec, op: the layer.
      kept: the features that the new inputs have, in their order; the layer must compare no others.
      features: number of features of the old inputs.

    Returns:
      The new spec, and the new arrays.
    """
    new_index = np.zeros(features, np.int32)
    new_index[kept] = np.arange(len(kept))
    changed = dict(op)
    for name in _indices(op):
        indices = np.clip(np.asarray(op[name]), 0, _taps(spec) * features - 1)
        changed[name] = jnp.asarray(indices // features * len(kept) + new_index[indices % features])
    if "weights" in op:
        by_tap = op["weights"].reshape(-1, features, op["weights"].shape[-1])
        changed["weights"] = by_tap[:, kept].reshape(-1, by_tap.shape[-1])
    return dataclasses.replace(spec, num_features=_taps(spec) * len(kept), pruned=True), changed


def with_outputs(spec: Spec, op: Op, kept: Int[np.ndarray, " kept"]) -> tuple[Spec, dict[str, Array]]:
    """Returns the spec and the arrays of the layer with only the outputs `kept`, in this order."""
    changed = {name: jnp.take(a, kept, _OUTPUT_AXES[name]) if name in _OUTPUT_AXES else a for name, a in op.items()}
    return dataclasses.replace(spec, form=spec.form.with_outputs(len(kept)), pruned=True), changed
