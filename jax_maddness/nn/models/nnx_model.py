"""`NnxModel`: the view of a model for `nnx.Module`s. The module that is passed is never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.models.layer import Call, Hook, Layer, Tap, equation_of, first_array, hooked
from jax_maddness.nn.models.nnx_modules import (
    Approximate,
    Around,
    Tables,
    children,
    kernel_of,
    makers_of,
    step_of,
    with_calls,
    with_modules,
    with_widths,
)
from jax_maddness.nn.models.places import floating, joined, op_places, parts_of
from jax_maddness.nn.models.traces import apart

KINDS = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv, nnx.Embed)
"""The layers that can be replaced. Subclasses may compute more than these, and cannot."""


class NnxModel:
    """An nnx model, and the function that calls it; see `Model` for the methods.

    Compiled functions take the state as an argument and merge it with the graph inside. `nnx.jit` would write updated
    state, as of random keys or batch statistics, back into the user's model.
    """

    kind: ClassVar[str] = "nnx"

    def __init__(self, model: nnx.Module, call: Callable[[Any, Any], Any]):
        self.model = model
        self._call = call

    def layers(self, batch: Any) -> list[Layer]:
        layers = {}
        # Modules are visited once, under one path, even where several attributes refer to them.
        for path, module in nnx.iter_modules(self.model):
            if kernel_of(module) is not None:
                layers[joined(path)] = _layer(joined(path), module)
        for place, layer in _all_places(self.model, layers.values()):
            layer.others += (place,)
        called: dict[str, None] = {}  # a dict keeps the order of the first calls

        def tap(path: str, call: Call) -> None:
            layers[path].calls.append(call)
            called[path] = None

        jax.eval_shape(*self.tapped(dict.fromkeys(layers, 0), tap), batch)  # the model is traced, nothing is computed
        layers = {path: layer for path, layer in layers.items() if path in called or not _only_looked_up(layer)}
        for layer in layers.values():
            layer.complete()
        return [layers[path] for path in [*called, *(path for path in layers if path not in called)]]

    def modules(self, batch: Any) -> list[str]:
        del batch  # all modules are attributes; linen makes its modules in a call
        return [joined(path) for path, _ in nnx.iter_modules(self.model) if path]

    def run(self) -> Callable[[Any], Any]:
        graph, state = nnx.split(self.model)
        compiled = jax.jit(lambda state, batch: self._call(nnx.merge(graph, state), batch))
        return lambda batch: compiled(state, batch)

    def tapped(self, steps: Mapping[str, int], tap: Tap) -> tuple[Callable[[Any, Any], None], Any]:
        def around_of(path: str) -> Around:
            def around(module: Any, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
                kernel, bias = kernel_of(module)[...], getattr(module, "bias", None)
                bias = bias[...] if isinstance(bias, nnx.Variable) else None
                y = call(*args, **kwargs)
                x, equation = first_array(args, kwargs), equation_of(args, kwargs)
                tap(path, Call(x, y, kernel, bias, step_of(module), equation))
                return y

            return around

        graph, state = nnx.split(with_calls(self.model, {path: around_of(path) for path in steps}, steps))

        def run(state: Any, batch: Any) -> None:  # returns nothing, so that XLA drops all that no tap needs
            with apart():
                self._call(nnx.merge(graph, state), batch)

        return run, state

    def arrays(self) -> dict[str, Any]:
        return {joined(place): array for place, array in self.file_arrays().items()}

    def weights(self) -> dict[str, Any]:
        leaves = nnx.to_flat_state(nnx.state(self.model))
        return {joined(place): _value(v) for place, v in leaves if not isinstance(v, nnx.RngState)}

    def with_arrays(self, arrays: Mapping[str, Any]) -> NnxModel:
        graph, state = nnx.split(self.model)
        # `replace` keeps a variable's type and metadata. `merge` makes new modules: the given model is unchanged.
        variables = [(place, _with_value(v, arrays[joined(place)])) for place, v in nnx.to_flat_state(state)]
        return NnxModel(nnx.merge(graph, nnx.from_flat_state(variables)), self._call)

    def outputs(
        self, arrays: Mapping[str, Any], batch: Any, hooks: Mapping[str, Hook] | None = None, of_layers: bool = False
    ) -> Any:
        model = self.with_arrays(arrays).model
        if not hooks:
            return self._call(model, batch)

        def around_of(hook: Hook) -> Around:
            return lambda module, call, args, kwargs: hooked(hook, call, args, kwargs)

        arounds = {path: around_of(hook) for path, hook in hooks.items()}
        with apart():
            return self._call(with_calls(model, arounds, of_layers=of_layers), batch)

    def replaced(self, specs: Mapping[str, Spec], arrays: Mapping[str, Mapping[str, Any]]) -> NnxModel:
        tables = {owner: Tables(named) for owner, named in arrays.items()}
        return NnxModel(with_modules(self.model, makers_of(specs, tables)), self._call)

    def narrowed(self, specs: Mapping[str, Spec], arrays: Mapping[str, Any]) -> NnxModel:
        model = self.with_arrays(arrays).model  # a copy, so its modules may be changed
        for path, module in nnx.iter_modules(model):
            if isinstance(module, Approximate):
                module.spec = specs[joined(path)]
        return NnxModel(with_widths(model), self._call)

    def specs(self) -> dict[str, Spec]:
        modules = nnx.iter_modules(self.model)
        return {joined(path): module.spec for path, module in modules if isinstance(module, Approximate)}

    def op_places(self) -> dict[str, dict[str, str]]:
        # Tables that layers share are in the state once, under the path of one of these layers.
        return op_places(self.specs(), self.arrays(), lambda path, spec: joined((*parts_of(path), "tables", "arrays")))

    def parameter_places(self) -> list[str]:
        places = [joined(place) for place, _ in nnx.to_flat_state(nnx.state(self.model, nnx.Param))]
        return floating(places, self.arrays())

    def layer_places(self, path: str) -> list[str]:
        arrays = self.arrays()
        places = [joined((*parts_of(path), name)) for name in ("kernel", "bias")]
        return [place for place in places if place in arrays]

    def file_arrays(self) -> dict[tuple[Any, ...], Any]:
        return {tuple(place): _value(v) for place, v in nnx.to_flat_state(nnx.state(self.model))}

    @classmethod
    def from_file(
        cls, model: Any, specs: Mapping[str, Spec], arrays: Mapping[tuple[Any, ...], Any], file: str
    ) -> nnx.Module:
        if not isinstance(model, nnx.Module):
            raise ValueError(f"{file!r} is an nnx model; `model` must be an nnx.Module.")
        tables = {spec.owner: Tables({}) for spec in specs.values()}
        for path, spec in specs.items():
            for place, array in arrays.items():
                if joined(place[:-3]) == path and place[-3:-1] == ("tables", "arrays"):
                    tables[spec.owner].add(str(place[-1]), array)
        graph, state = nnx.split(with_modules(model, makers_of(specs, tables)))
        variables = dict(nnx.to_flat_state(state))
        fits = _fits_pruned if any(spec.pruned for spec in specs.values()) else _fits
        common = variables.keys() & arrays.keys()
        wrong = [place for place in common if not fits(arrays[place].shape, _value(variables[place]).shape)]
        if wrong or variables.keys() != arrays.keys():
            different = sorted(joined(place) for place in {*wrong, *(variables.keys() ^ arrays.keys())})
            raise ValueError(f"The file is of another model: {different} differ. Pass one of the same architecture.")
        filled = [(place, _with_value(v, arrays[place])) for place, v in variables.items()]
        return with_widths(nnx.merge(graph, nnx.from_flat_state(filled)))


def _value(leaf: Any) -> Any:
    """Returns the array of a leaf of a state: a variable, or the array itself, as `WeightNorm` holds it."""
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _with_value(leaf: Any, array: Any) -> Any:
    return leaf.replace(array) if isinstance(leaf, nnx.Variable) else array


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return tuple(shape) == tuple(expected)


def _fits_pruned(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether the shape is the expected one, or smaller: exact layers of a pruned model may have lost features."""
    return len(shape) == len(expected) and all(a <= b for a, b in zip(shape, expected, strict=True))


def _layer(path: str, module: Any) -> Layer:
    kind, bias = type(module).__name__, getattr(module, "bias", None)
    if type(module) not in KINDS and isinstance(module, KINDS):
        kind = f"{kind} (not flax's own)"  # and so none of the supported kinds
    kernel, is_table = kernel_of(module).get_value(), isinstance(module, nnx.Embed)
    return Layer(path, kind, module, kernel, None if bias is None else bias.get_value(), keeps_kernel=is_table)


def _only_looked_up(layer: Layer) -> bool:
    """Whether a layer that is not called is a table of embeddings, which is then none."""
    return isinstance(layer.module, nnx.Embed)


def _all_places(model: nnx.Module, layers: Iterable[Layer]) -> Iterator[tuple[str, Layer]]:
    """Yields every reference to a layer: a layer that two attributes hold can be named by both in rules."""
    layer_of = {id(layer.module): layer for layer in layers}
    for path, node in nnx.iter_graph(model):
        for key, child in children(node):
            if id(child) in layer_of:
                yield joined((*path, key)), layer_of[id(child)]
