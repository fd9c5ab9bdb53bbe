"""A replaced model, taken apart for training: float tables in place of 8-bit ones, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_maddness.nn.layers.approximate import TREES, Spec
from jax_maddness.nn.layers.float_tables import to_bytes, to_floats
from jax_maddness.nn.models.files import take_apart
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.models.linen_model import place_of
from jax_maddness.nn.models.model import Model, adapt

if TYPE_CHECKING:
    from jaxtyping import Array

TRAINED = ("tables_values", "tables_offset")
"""Arrays of an op that are trained, as floats."""
FLOOR = 1e-3
"""The least that the entries of an array are taken to be, when they are changed by a share of their size."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """What `finetune` needs of a model that `replace` returned.

    Attributes:
      model: with 8-bit tables, as it was given.
      floating: the same with float tables, and with the kernels that were, for gradients.
      specs: of the replaced layers by path.
      places: of the arrays of each op, by owner and name.
      others: places of the parameters that are no op's.
    """

    model: Model
    floating: Model
    specs: dict[str, Spec]
    places: dict[str, dict[str, str]]
    others: tuple[str, ...]

    @classmethod
    def of(cls, fast: Any, layers: Mapping[str, Layer], call: Callable[[Any, Any], Any] | None) -> Parts:
        """Takes `fast` apart; `layers` are those of the model that it was made from.

        Raises:
          ValueError: no layer of `fast` is replaced, or one is not in `layers`, or has another shape there.
        """
        model = adapt(fast, call)
        kind, every, _ = take_apart(fast)
        specs = {path: spec for path, spec in every.items() if spec.trees in TREES}  # others have no tables
        if not specs:
            raise ValueError("No layer of `model` is replaced: there is nothing to tune. Pass what `replace` returned.")
        if any(spec.pruned for spec in specs.values()):
            raise ValueError("`model` is pruned, and no longer has the teacher's shapes. Tune first, prune then.")
        arrays = model.arrays()
        places = places_of_ops(kind, specs, arrays)
        floats = {}
        for owner, named in places.items():
            op = {name: jnp.asarray(arrays[place]) for name, place in named.items()}
            floats[owner] = {**to_floats(op), "weights": _weights(owner, specs, layers, op)}
        of_ops = {place for named in places.values() for place in named.values()}
        others = [place for place in _parameters(fast, kind, arrays) if place not in of_ops]
        return cls(model, model.replaced(specs, floats), specs, places, tuple(others))

    def trained(self, everything: bool) -> dict[str, Array]:
        """What is trained, by place: the tables, or all parameters. New arrays, which may be donated."""
        arrays = self.floating.arrays()
        chosen = [named[name] for named in self.places.values() for name in TRAINED]
        return {place: jnp.array(arrays[place]) for place in [*chosen, *(self.others if everything else ())]}

    def sizes(self, trained: Mapping[str, Array]) -> dict[str, Array]:
        """How large the entries of each array are, to which steps are relative: those of its op's tables."""
        table = {named["tables_offset"]: named["tables_values"] for named in self.places.values()}
        return {place: _size(trained[table.get(place, place)]) for place in trained}

    def delivered(self, trained: Mapping[str, Array]) -> Model:
        """The model with 8-bit tables again; the same structure as the one that was given."""
        arrays = {**self.model.arrays(), **{place: trained[place] for place in self.others if place in trained}}
        for named in self.places.values():
            tables = to_bytes(*(trained[named[name]] for name in TRAINED))
            if "tables_by_code" in named:
                tables["tables_by_code"] = jnp.moveaxis(tables["tables_values"], -3, -1)
            arrays |= {named[name]: array for name, array in tables.items()}
        return self.model.with_arrays(arrays)


def _size(a: Array) -> Array:
    """Root mean square, or `FLOOR`, if that is larger."""
    return jnp.maximum(jnp.sqrt(jnp.square(a.astype(jnp.float32)).mean()), FLOOR)


def places_of_ops(kind: str, specs: Mapping[str, Spec], arrays: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Where the arrays of each op are, by owner and name."""
    found: dict[str, dict[str, str]] = {spec.owner: {} for spec in specs.values()}
    for path, spec in specs.items():
        inside = place_of(path, spec) if kind == "linen" else (*path.split("/") * bool(path), "tables", "arrays")
        for place in arrays:
            folder, _, name = place.rpartition("/")
            if folder == "/".join(inside):
                found[spec.owner][name] = place
    return found


def _parameters(model: Any, kind: str, arrays: Mapping[str, Any]) -> list[str]:
    """Places of floating parameters."""
    if kind == "linen":
        places = [place for place in arrays if place.startswith("params/")]
    else:
        places = ["/".join(map(str, place)) for place, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    return [place for place in places if jnp.issubdtype(arrays[place].dtype, jnp.floating)]


def _weights(owner: str, specs: Mapping[str, Spec], layers: Mapping[str, Layer], op: Mapping[str, Any]) -> Array:
    """The kernels that the op stands for, in the shape of `op.weights`."""
    mine = [path for path, spec in specs.items() if spec.owner == owner]
    mine.sort(key=lambda path: specs[path].part or (0, 0))
    for path in mine:
        if path not in layers or layers[path].form != specs[path].form or layers[path].steps != specs[path].steps:
            raise ValueError(
                f"`teacher` has no such layer as {path!r} of `model` was. Pass the model that `replace` was given."
            )
    weights = np.concatenate([layers[path].weights() for path in mine], -1)
    *lead, outputs = op["tables_offset"].shape
    if weights.shape[-1] != outputs:
        raise ValueError(
            f"{mine[0]!r} has {weights.shape[-1]} outputs in `teacher`, {outputs} in `model`. Pass the model that "
            "`replace` was given."
        )
    return jnp.asarray(weights.reshape(*lead, *weights.shape[2:]))
