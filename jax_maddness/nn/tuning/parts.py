"""A replaced model, taken apart for training: float tables replace the 8-bit ones, and are rounded again later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.layers.float_tables import to_bytes, to_floats
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.models.model import Model, adapt

TRAINED = ("tables_values", "tables_offset")
"""The arrays of an op that are trained, as floats."""
MIN_SIZE = 1e-3
"""The least size that the entries of an array are taken to have, where steps are relative to it."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a replaced model that `finetune` needs.

    Attributes:
      model: the model as it was given, with 8-bit tables.
      floating: the same model with float tables, and with the teacher's kernels, for gradients.
      specs: of the layers with tables, by path.
      places: the places of the arrays of each op, by owner and name.
      others: the places of the parameters that belong to no op.
    """

    model: Model
    floating: Model
    specs: dict[str, Spec]
    places: dict[str, dict[str, str]]
    others: tuple[str, ...]

    @classmethod
    def of(cls, fast: Any, layers: Mapping[str, Layer], call: Callable[[Any, Any], Any] | None) -> Parts:
        """Takes a replaced model apart.

        Args:
          fast: the replaced model.
          layers: by path, the layers of the model that it was made from.
          call: as for `finetune`.

        Raises:
          ValueError: No layer of `fast` is replaced, or one is not in `layers`, or has another shape there.
        """
        model = adapt(fast, call)
        specs = {path: spec for path, spec in model.specs().items() if spec.has_tables}
        if not specs:
            raise ValueError("No layer of `model` is replaced: there is nothing to tune. Pass what `replace` returned.")
        if any(spec.pruned for spec in specs.values()):
            raise ValueError("`model` is pruned, and no longer has the teacher's shapes. Tune first, prune then.")
        arrays = model.arrays()
        owners = {spec.owner for spec in specs.values()}
        places = {owner: named for owner, named in model.op_places().items() if owner in owners}
        floats = {}
        for owner, named in places.items():
            op = {name: jnp.asarray(arrays[place]) for name, place in named.items()}
            floats[owner] = {**to_floats(op), "weights": _weights(owner, specs, layers, op)}
        of_ops = {place for named in places.values() for place in named.values()}
        others = [place for place in model.parameter_places() if place not in of_ops]
        return cls(model, model.replaced(specs, floats), specs, places, tuple(others))

    def trained(self, everything: bool) -> dict[str, Array]:
        """Returns the arrays that are trained by place: the tables, or all parameters.

        They are new arrays, so that the training step may donate them.
        """
        arrays = self.floating.arrays()
        chosen = [named[name] for named in self.places.values() for name in TRAINED]
        return {place: jnp.array(arrays[place]) for place in [*chosen, *(self.others if everything else ())]}

    def sizes(self, trained: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the size of the entries of each array, to which steps are relative; offsets have their tables'."""
        table = {named["tables_offset"]: named["tables_values"] for named in self.places.values()}
        return {place: _size(trained[table.get(place, place)]) for place in trained}

    def delivered(self, trained: Mapping[str, Array]) -> Model:
        """Returns the model with 8-bit tables again; it has the same structure as the one that was given."""
        arrays = {**self.model.arrays(), **{place: trained[place] for place in self.others if place in trained}}
        for named in self.places.values():
            floats = {name: arrays[place] for name, place in named.items()}
            tables = to_bytes({**floats, **{name: trained[named[name]] for name in TRAINED}})
            if "tables_by_code" in named:
                tables["tables_by_code"] = jnp.moveaxis(tables["tables_values"], -3, -1)
            arrays |= {named[name]: array for name, array in tables.items()}
        return self.model.with_arrays(arrays)


def _size(a: Array) -> Array:
    """Returns the root mean square, or `MIN_SIZE`, if that is larger."""
    return jnp.maximum(jnp.sqrt(jnp.square(a.astype(jnp.float32)).sum() / max(a.size, 1)), MIN_SIZE)


def _weights(owner: str, specs: Mapping[str, Spec], layers: Mapping[str, Layer], op: Mapping[str, Any]) -> Array:
    """Returns the kernels that an op replaces, in the shape of `op.weights`."""
    paths = [path for path, spec in specs.items() if spec.owner == owner]
    paths.sort(key=lambda path: specs[path].part or (0, 0))
    for path in paths:
        if path not in layers or layers[path].form != specs[path].form or layers[path].steps != specs[path].steps:
            raise ValueError(
                f"`teacher` has no such layer as {path!r} of `model` was. Pass the model that `replace` was given."
            )
    weights = np.concatenate([layers[path].weights() for path in paths], -1)
    *lead, outputs = op["tables_offset"].shape
    if weights.shape[-1] != outputs:
        raise ValueError(
            f"{paths[0]!r} has {weights.shape[-1]} outputs in `teacher`, {outputs} in `model`. Pass the model that "
            "`replace` was given."
        )
    return jnp.asarray(weights.reshape(*lead, *weights.shape[2:]))
