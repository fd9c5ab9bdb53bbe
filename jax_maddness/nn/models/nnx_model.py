"""nnx models: their layers, taps on their inputs, and what stands in for a layer. The model passed is never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from jax_maddness.nn.layers.approximate import Spec, apply
from jax_maddness.nn.models.layer import Call, Hook, Layer, first_array, hooked

if TYPE_CHECKING:
    from jaxtyping import Array

KINDS = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv)
"""What can be replaced; subclasses may do more than these, and cannot."""


class Table(nnx.Variable):
    """An array of an op. Not an `nnx.Param`: most are integers, which no optimizer may touch."""


class Tables(nnx.Module):
    """The arrays of one op, by name."""

    def __init__(self, arrays: Mapping[str, Any]):
        self.arrays = nnx.Dict({name: Table(array) for name, array in arrays.items()})

    def add(self, name: str, array: Any) -> None:
        """One array more."""
        self.arrays[name] = Table(array)


class Approximate(nnx.Module):
    """Stands in for a layer: the same inputs, nearly the same outputs, by look-ups.

    Attributes:
      spec: all that is static.
      tables: the op's arrays; layers with the same input hold the same `Tables`.
    """

    def __init__(self, spec: Spec, tables: Tables):
        self.spec = spec
        self.tables = tables

    def __call__(self, inputs: Array, einsum_str: str | None = None, out_sharding: Any = None) -> Array:
        """The layer's output, nearly; an einsum's equation is always that of the model that was replaced."""
        del einsum_str
        arrays = {name: table[...] for name, table in self.tables.arrays.items()}
        y = apply(inputs, self.spec, arrays)
        return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


class Tapped(nnx.Module):
    """A layer that shows its input to `tap` before it does its work."""

    def __init__(self, layer: nnx.Module, path: str, tap: Callable[..., None]):
        self.layer = layer
        self.path = path
        self.tap = tap

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output."""
        self.tap(self.path, self.layer, first_array(args, kwargs), _equation(args, kwargs))
        return self.layer(*args, **kwargs)


class Hooked(nnx.Module):
    """A module in a hook."""

    def __init__(self, module: nnx.Module, hook: Hook):
        self.module = module
        self.hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the hook returns."""
        return hooked(self.hook, self.module, args, kwargs)


def _equation(args: tuple, kwargs: Mapping[str, Any]) -> str | None:
    given = kwargs.get("einsum_str", args[1] if len(args) > 1 else None)
    return given if isinstance(given, str) else None


def _layer(path: str, module: Any) -> Layer:
    kind, bias = type(module).__name__, getattr(module, "bias", None)
    if type(module) not in KINDS and isinstance(module, KINDS):
        kind = f"{kind} (not flax's own)"
    return Layer(path, kind, module, module.kernel.get_value(), bias.get_value() if bias is not None else None)


class NnxModel:
    """An nnx model, and how it is called: what capture, calibration and replacement need."""

    def __init__(self, model: nnx.Module, call: Callable[[Any, Any], Any]):
        self.model = model
        self._call = call

    def layers(self, batch: Any) -> list[Layer]:
        """Every layer with a kernel, in the order in which a run on `batch`, which is only traced, calls them."""
        found = {}
        for path, module in nnx.iter_modules(self.model):
            if isinstance(getattr(module, "kernel", None), nnx.Variable):
                layer = _layer("/".join(map(str, path)), module)
                found[layer.path] = layer
        for name, layer in _names(self.model, found.values()):
            layer.others += (name,)
        called: dict[str, None] = {}

        def tap(path: str, module: Any, x: Any, equation: str | None) -> None:
            found[path].calls.append(Call(x, tuple(module.kernel.shape), equation))
            called[path] = None

        run, state = self._tapped(list(found), tap)
        jax.eval_shape(run, state, batch)
        for layer in found.values():
            layer.complete()
        return [found[path] for path in [*called, *(path for path in found if path not in called)]]

    def modules(self, batch: Any) -> list[str]:
        """Paths of all modules inside of the model."""
        del batch
        return [_name(path) for path, _ in nnx.iter_modules(self.model) if path]

    def run(self) -> Callable[[Any], Any]:
        """The model, compiled."""
        graph, state = nnx.split(self.model)
        compiled = jax.jit(lambda state, batch: self._call(nnx.merge(graph, state), batch))
        return lambda batch: compiled(state, batch)

    def tapped(self, paths: list[str], tap: Callable[[str, Any], None]) -> Callable[[Any], None]:
        """A compiled run of the model that computes what `tap(path, x)` asks for, and nothing else."""
        run, state = self._tapped(paths, lambda path, layer, x, equation: tap(path, x))
        compiled = jax.jit(run)
        return lambda batch: compiled(state, batch)

    def _tapped(self, paths: list[str], tap: Callable[..., None]) -> tuple[Callable[..., None], Any]:
        taps = {path: lambda layer, path=path: Tapped(layer, path, tap) for path in paths}
        graph, state = nnx.split(with_modules(self.model, taps))

        def run(state: Any, batch: Any) -> None:
            self._call(nnx.merge(graph, state), batch)

        return run, state

    def arrays(self) -> dict[str, Any]:
        """All arrays of the model by place, as text."""
        return {_name(place): v.get_value() for place, v in nnx.to_flat_state(nnx.state(self.model))}

    def with_arrays(self, arrays: Mapping[str, Any]) -> NnxModel:
        """The model with other arrays, all of them."""
        graph, state = nnx.split(self.model)
        variables = [(place, v.replace(arrays[_name(place)])) for place, v in nnx.to_flat_state(state)]
        return NnxModel(nnx.merge(graph, nnx.from_flat_state(variables)), self._call)

    def outputs(self, arrays: Mapping[str, Any], batch: Any, hooks: Mapping[str, Hook] | None = None) -> Any:
        """What the model with other arrays says; hooks are in place of modules, replaced or not, by path."""
        makers = {path: lambda module, hook=hook: Hooked(module, hook) for path, hook in (hooks or {}).items()}
        model = self.with_arrays(arrays).model
        return self._call(with_modules(model, makers) if makers else model, batch)

    def replaced(self, specs: Mapping[str, Spec], arrays: Mapping[str, Mapping[str, Any]]) -> NnxModel:
        """The model with ops in place of layers; `arrays` by the specs' owners."""
        tables = {owner: Tables(named) for owner, named in arrays.items()}
        return NnxModel(with_modules(self.model, stand_ins(specs, tables)), self._call)

    def narrowed(self, specs: Mapping[str, Spec], arrays: Mapping[str, Any]) -> NnxModel:
        """The model with other specs and arrays; exact layers have as many outputs as their arrays."""
        model = self.with_arrays(arrays).model
        for path, module in nnx.iter_modules(model):
            if isinstance(module, Approximate):
                module.spec = specs[_name(path)]
        return NnxModel(with_widths(model), self._call)


def _name(place: Iterable[Any]) -> str:
    return "/".join(map(str, place))


def _names(model: nnx.Module, layers: Iterable[Layer]) -> Iterator[tuple[str, Layer]]:
    """All places of all layers."""
    of = {id(layer.module): layer for layer in layers}
    for path, node in nnx.iter_graph(model):
        for key, child in _children(node):
            if id(child) in of:
                yield "/".join(map(str, (*path, key))), of[id(child)]


def stand_ins(specs: Mapping[str, Spec], tables: Mapping[str, Tables]) -> dict[str, Callable[[Any], nnx.Module]]:
    """What `with_modules` puts in place of layers; `tables` by the specs' owners."""

    def made(spec: Spec) -> Callable[[Any], nnx.Module]:
        return lambda layer: Approximate(spec, tables[spec.owner])

    return {path: made(spec) for path, spec in specs.items()}


def with_widths(model: nnx.Module) -> nnx.Module:
    """`model`, whose exact layers say how many outputs their arrays have."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Linear | nnx.Conv):
            module.out_features = module.kernel.shape[-1]
    return model


def with_modules(model: nnx.Module, makers: Mapping[str, Callable[[Any], nnx.Module]]) -> Any:
    """A copy of `model` in which the modules at some paths are replaced, wherever they are referred to.

    Raises:
      ValueError: a module is in a tuple, which cannot be changed.
    """
    clone = nnx.clone(model)
    made = {}
    for path, module in nnx.iter_modules(clone):
        name = "/".join(map(str, path))
        if name in makers:
            made[id(module)] = (module, makers[name](module))
    if missing := makers.keys() - {"/".join(map(str, path)) for path, _ in nnx.iter_modules(clone)}:
        raise ValueError(f"The model has no modules {sorted(missing)}.")
    if id(clone) in made:
        return made[id(clone)][1]
    for path, node in list(nnx.iter_graph(clone)):
        for key, child in _children(node):
            if id(child) in made:
                _put(node, key, made[id(child)][1], path)
    return clone


def _children(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, nnx.List | list | tuple):
        return list(enumerate(node))
    if isinstance(node, dict):
        return list(node.items())
    return (
        [(k, v) for k, v in vars(node).items() if not k.startswith("_pytree__")] if isinstance(node, nnx.Pytree) else []
    )


def _put(node: Any, key: Any, value: Any, path: tuple) -> None:
    if isinstance(node, tuple):
        raise ValueError(f"A layer is in the tuple {'/'.join(map(str, path))!r}. Make that an `nnx.List`.")
    if isinstance(node, nnx.List | list | dict):
        node[key] = value
    else:
        setattr(node, key, value)
