"""The nnx modules that stand in for others, and their exchange in a copy of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from jax_maddness.nn.layers.approximate import Spec, apply
from jax_maddness.nn.models.layer import Hook, first_array, hooked
from jax_maddness.nn.models.places import joined


class Table(nnx.Variable):
    """An array of an op. Not an `nnx.Param`: most are integers, which no optimizer may touch."""


class Tables(nnx.Module):
    """The arrays of one op, by name."""

    def __init__(self, arrays: Mapping[str, Any]):
        self.arrays = nnx.Dict({name: Table(array) for name, array in arrays.items()})

    def add(self, name: str, array: Any) -> None:
        """Adds an array."""
        self.arrays[name] = Table(array)


class Approximate(nnx.Module):
    """Replaces a layer: the same inputs, nearly the same outputs, by look-ups.

    Attributes:
      spec: the static facts.
      tables: the op's arrays. Layers with the same input hold the same `Tables`; nnx keeps shared references as one
        node of its graph, so that the arrays are neither copied nor saved twice.
    """

    def __init__(self, spec: Spec, tables: Tables):
        self.spec = spec
        self.tables = tables

    def __call__(self, inputs: Array, einsum_str: str | None = None, out_sharding: Any = None) -> Array:
        """Computes the layer's output, nearly; it takes the arguments of every kind of layer that it replaces.

        The equation of an einsum is always that of the model that was replaced: the spec has it.
        """
        del einsum_str
        arrays = {name: table[...] for name, table in self.tables.arrays.items()}
        y = apply(inputs, self.spec, arrays)
        return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


class Tapped(nnx.Module):
    """A layer that passes its input to `tap` before it computes."""

    def __init__(self, layer: nnx.Module, path: str, tap: Callable[..., None]):
        self.layer = layer
        self.path = path
        self.tap = tap

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the layer's output."""
        self.tap(self.path, self.layer, first_array(args, kwargs), _equation(args, kwargs))
        return self.layer(*args, **kwargs)


class Hooked(nnx.Module):
    """A module whose calls go to a hook."""

    def __init__(self, module: nnx.Module, hook: Hook):
        self.module = module
        self.hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the hook's result."""
        return hooked(self.hook, self.module, args, kwargs)


def _equation(args: tuple, kwargs: Mapping[str, Any]) -> str | None:
    given = kwargs.get("einsum_str", args[1] if len(args) > 1 else None)
    return given if isinstance(given, str) else None  # the second argument of other layers is something else


def makers_of(specs: Mapping[str, Spec], tables: Mapping[str, Tables]) -> dict[str, Callable[[Any], nnx.Module]]:
    """Returns the `makers` with which `with_modules` replaces layers; `tables` by the specs' owners."""

    def maker(spec: Spec) -> Callable[[Any], nnx.Module]:
        return lambda layer: Approximate(spec, tables[spec.owner])

    return {path: maker(spec) for path, spec in specs.items()}


def with_widths(model: nnx.Module) -> nnx.Module:
    """Sets `out_features` of exact layers to the width of their arrays, in place.

    Flax compares the two when a layer is called, and they differ once a layer has lost outputs.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Linear | nnx.Conv):
            module.out_features = module.kernel.shape[-1]
    return model


def with_modules(model: nnx.Module, makers: Mapping[str, Callable[[Any], nnx.Module]]) -> Any:
    """Returns a copy of `model` in which the modules at some paths are exchanged, wherever they are referred to.

    Args:
      model: stays as it is.
      makers: by path, a function from the old module to the new one.

    Raises:
      ValueError: There is no such module, or one is in a tuple, which cannot be changed.
    """
    clone = nnx.clone(model)
    # By identity, as a module may be in several places. The old modules are kept beside the new ones: an id says
    # nothing once its object is gone.
    exchanged = {}
    paths = set()
    for path, module in nnx.iter_modules(clone):
        paths.add(name := joined(path))
        if name in makers:
            exchanged[id(module)] = (module, makers[name](module))
    if missing := makers.keys() - paths:
        raise ValueError(f"The model has no modules {sorted(missing)}.")
    if id(clone) in exchanged:  # the model itself is a layer
        return exchanged[id(clone)][1]
    # `iter_modules` visits each module once, under one of its paths. All references are in the graph, which also has
    # the lists, dicts and tuples between modules. The new modules must not be visited: a `Tapped` holds the old one.
    for path, node in list(nnx.iter_graph(clone)):
        for key, child in children(node):
            if id(child) in exchanged:
                _put(node, key, exchanged[id(child)][1], path)
    return clone


def children(node: Any) -> list[tuple[Any, Any]]:
    """Returns the keys and the values that a node of nnx's graph holds."""
    if isinstance(node, nnx.List | list | tuple):
        return list(enumerate(node))
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, nnx.Pytree):
        # Attributes with this prefix are nnx's own bookkeeping.
        return [(key, value) for key, value in vars(node).items() if not key.startswith("_pytree__")]
    return []


def _put(node: Any, key: Any, value: Any, path: tuple) -> None:
    if isinstance(node, tuple):
        raise ValueError(f"A layer is in the tuple {joined(path)!r}. Make that an `nnx.List`.")
    if isinstance(node, nnx.List | list | dict):
        node[key] = value
    else:
        setattr(node, key, value)
