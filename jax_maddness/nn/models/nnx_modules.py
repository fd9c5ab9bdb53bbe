"""The nnx modules that stand in for others, and their exchange in a copy of a model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jax_maddness.nn.layers.approximate import Spec, apply
from jax_maddness.nn.layers.int8_low_rank import with_table
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


@dataclasses.dataclass(frozen=True)
class Settings:
    """The static attributes of a replaced layer, such as `out_features`, which other modules may read."""

    values: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, layer: nnx.Module) -> Settings:
        """Reads the attributes of a layer, or of an `Approximate` in its place."""
        if isinstance(layer, Approximate):
            return layer.settings
        return cls(tuple((k, v) for k, v in vars(layer).items() if not k.startswith("_") and _is_static(v)))


def _is_static(value: Any) -> bool:
    if isinstance(value, nnx.Variable | nnx.Pytree | jax.Array):
        return False
    try:
        hash(value)
    except TypeError:
        return False
    return True


class Approximate(nnx.Module):
    """Replaces a layer: the same inputs, nearly the same outputs, by look-ups.

    Attributes:
      spec: the static facts.
      tables: the op's arrays. Layers with the same input hold the same `Tables`; nnx keeps shared references as one
        node of its graph, so that the arrays are neither copied nor saved twice.
      settings: the attributes of the layer, which are this module's, too.
      kernel, bias: only if others read them (`Spec.keeps_kernel`).
    """

    def __init__(self, spec: Spec, tables: Tables, layer: nnx.Module):
        self.spec = spec
        self.tables = tables
        self.settings = Settings.of(layer)
        for name in ("kernel", "bias") if spec.keeps_kernel else ():
            if isinstance(variable := getattr(layer, name, None), nnx.Variable):
                setattr(self, name, variable)

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute that the replaced layer had."""
        # Everything that this class has is found without this method; `vars` cannot call it again.
        if not name.startswith("_") and isinstance(settings := vars(self).get("settings"), Settings):
            found = dict(settings.values)
            if name in found:
                return found[name]
            if name in ("kernel", "bias"):
                raise AttributeError(
                    f"The replacement of the layer {self.spec.owner!r} has no {name!r}, which `replace` dropped. If "
                    "you need it, leave the layer as it is: "
                    f"`Rule({self.spec.owner!r}, skip=True)`, before the other rules."
                )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __call__(self, inputs: Array, einsum_str: str | None = None, out_sharding: Any = None) -> Array:
        """Computes the layer's output, nearly; it takes the arguments of every kind of layer that it replaces.

        The equation of an einsum is always that of the model that was replaced: the spec has it.
        """
        del einsum_str
        return _sharded(apply(inputs, self.spec, self._arrays()), out_sharding)

    def _arrays(self) -> dict[str, Any]:
        return {name: table[...] for name, table in self.tables.arrays.items()}


class ApproximateEmbed(Approximate):
    """Replaces `attend` of a table of embeddings by look-ups; calls look up its rows as before.

    Attributes:
      embedding: the table. Where the greatest outputs are exact, they are products with its rows.
    """

    def __init__(self, spec: Spec, tables: Tables, layer: Any):
        super().__init__(spec, tables, layer)
        self.embedding = layer.embedding

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        """Looks up rows of the table, exactly."""
        itself: Any = self
        return nnx.Embed.__call__(itself, *args, **kwargs)

    def attend(self, query: Array, out_sharding: Any = None) -> Array:
        """Computes the products of `query` with all rows of the table, nearly."""
        return _sharded(apply(query, self.spec, with_table(self._arrays(), self.embedding[...])), out_sharding)


def _sharded(y: Array, out_sharding: Any) -> Array:
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


def kernel_of(module: Any) -> Any:
    """Returns the variable that a layer multiplies by, its kernel or its table of embeddings; None if it has none."""
    kernel = getattr(module, "embedding" if isinstance(module, nnx.Embed) else "kernel", None)
    return kernel if isinstance(kernel, nnx.Variable) else None


def _product_method(kind: type) -> str:
    """Returns the name of the method that computes the product of a layer."""
    return "attend" if issubclass(kind, nnx.Embed | ApproximateEmbed) else "__call__"


Around = Callable[[nnx.Module, Callable[..., Any], tuple, dict[str, Any]], Any]
"""`around(module, call, args, kwargs)` is called in place of `call(*args, **kwargs)`, a method of the module."""
_STEP = "maddness_step"


@functools.cache
def _intercepted(kind: type, method: str) -> type:
    """Returns a subclass one method of which goes through the attribute `maddness_around`; nothing else differs."""

    def intercepted(self: Any, *args: Any, **kwargs: Any) -> Any:
        around = vars(self).get("maddness_around")
        call = functools.partial(getattr(kind, method), self)
        return call(*args, **kwargs) if around is None else around(self, call, args, kwargs)

    names = {method: intercepted, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), names)


def with_calls(
    model: nnx.Module, arounds: Mapping[str, Around], steps: Mapping[str, int] | None = None, of_layers: bool = True
) -> Any:
    """Returns a copy of `model` in which calls of the modules at some paths are intercepted.

    The modules keep their attributes, their arrays and their class, of which they are a subclass.

    Args:
      model: stays as it is.
      arounds: by path.
      steps: by path, the number of members of modules whose arrays are stacked; `step_of` then tells which one is
        called.
      of_layers: the products are intercepted: for a table of embeddings, `attend`, and not calls.

    Raises:
      ValueError: There is no such module.
    """
    clone = nnx.clone(model)
    modules = {joined(path): module for path, module in nnx.iter_modules(clone)}
    if missing := arounds.keys() - modules.keys():
        raise ValueError(f"The model has no modules {sorted(missing)}.")
    for path, around in arounds.items():
        module: Any = modules[path]
        kind: Any = type(module)
        module.__class__ = _intercepted(kind, _product_method(kind) if of_layers else "__call__")
        module.maddness_around = around
        if count := (steps or {}).get(path):
            # A variable of the kernel's type is sliced wherever the kernel is. Floats, so that it has a gradient.
            setattr(module, _STEP, type(kernel_of(module))(jnp.arange(count, dtype=jnp.float32)))
    return clone


def step_of(module: nnx.Module) -> Array | None:
    """Returns the number of the member whose arrays a module holds while it is called; None if it was not asked for."""
    variable = vars(module).get(_STEP)
    return None if variable is None else variable[...]


def makers_of(specs: Mapping[str, Spec], tables: Mapping[str, Tables]) -> dict[str, Callable[[Any], nnx.Module]]:
    """Returns the `makers` with which `with_modules` replaces layers; `tables` by the specs' owners."""

    def maker(spec: Spec) -> Callable[[Any], nnx.Module]:
        def make(layer: Any) -> nnx.Module:
            kind = ApproximateEmbed if isinstance(layer, nnx.Embed | ApproximateEmbed) else Approximate
            return kind(spec, tables[spec.owner], layer)

        return make

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
    # the lists, dicts and tuples between modules. The new modules must not be visited.
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
