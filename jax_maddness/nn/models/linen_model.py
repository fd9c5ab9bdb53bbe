"""`LinenModel`: the view of a model for linen modules with their variables, `(module, variables)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.models.layer import Call, Hook, Layer, first_array, hooked
from jax_maddness.nn.models.linen_modules import KINDS, Replaced, flat, place_of
from jax_maddness.nn.models.places import floating, joined, op_places, parts_of


class LinenModel:
    """A linen module with its variables, and the function that calls it; see `Model` for the methods."""

    kind: ClassVar[str] = "linen"

    def __init__(self, model: tuple[nn.Module, Any], call: Callable[[Any, Any], Any]):
        self.model = model
        self._call = call

    def layers(self, batch: Any) -> list[Layer]:
        params = flat(nn.meta.unbox(self.model[1]).get("params", {}))
        kernels = {place[:-1]: value for place, value in params.items() if place[-1] == "kernel"}
        layers: dict[str, Layer] = {}

        def tap(path: str, module: nn.Module, x: Any, equation: str | None) -> None:
            place = parts_of(path)
            if place not in kernels or not isinstance(module, nn.Module):
                return
            if path not in layers:
                name = type(module).__name__
                name = name if type(module) in KINDS else f"{name} (not flax's own)"
                bias = params.get((*place, "bias"))
                layers[path] = Layer(path, name, module.clone(parent=None), kernels[place], bias)
            scope = module.scope
            assert scope is not None
            # Inside of a scan, this is the kernel of one step: its shape tells whether the layer is in a scan.
            shape = jax.tree.leaves(scope.get_variable("params", "kernel"))[0].shape
            layers[path].calls.append(Call(x, tuple(shape), equation))

        jax.eval_shape(self._tapped(tap), self.model[1], batch)  # the model is traced, nothing is computed
        for place in kernels.keys() - {parts_of(path) for path in layers}:
            layers[joined(place)] = Layer(joined(place), "?", None, kernels[place], None)
        for layer in layers.values():
            layer.complete()
        return list(layers.values())

    def modules(self, batch: Any) -> list[str]:
        paths: dict[str, None] = {}

        def intercept(following: Callable[..., Any], args: tuple, kwargs: Any, context: Any) -> Any:
            if context.method_name == "__call__" and context.module.path:
                paths[joined(context.module.path)] = None
            return following(*args, **kwargs)

        def run(variables: Any, batch: Any) -> None:
            with nn.intercept_methods(intercept):
                self._call((self.model[0], variables), batch)

        jax.eval_shape(run, self.model[1], batch)
        return list(paths)

    def run(self) -> Callable[[Any], Any]:
        compiled = jax.jit(lambda variables, batch: self._call((self.model[0], variables), batch))
        return lambda batch: compiled(self.model[1], batch)

    def tapped(self, paths: list[str], tap: Callable[[str, Any], None]) -> Callable[[Any], None]:
        def tap_chosen(path: str, module: nn.Module, x: Any, equation: str | None) -> None:
            del module, equation
            if path in paths:
                tap(path, x)

        compiled = jax.jit(self._tapped(tap_chosen))
        return lambda batch: compiled(self.model[1], batch)

    def _tapped(self, tap: Callable[..., None]) -> Callable[[Any, Any], None]:
        def intercept(following: Callable[..., Any], args: tuple, kwargs: Any, context: Any) -> Any:
            module = context.module
            if context.method_name == "__call__" and (args or "inputs" in kwargs) and module.scope is not None:
                equation = kwargs.get("einsum_str", args[1] if isinstance(module, nn.Einsum) and args[1:] else None)
                tap(joined(module.path), module, first_array(args, kwargs), equation)
            return following(*args, **kwargs)

        def run(variables: Any, batch: Any) -> None:  # returns nothing, so that XLA drops all that no tap needs
            with nn.intercept_methods(intercept):
                self._call((self.model[0], variables), batch)

        return run

    def arrays(self) -> dict[str, Any]:
        return {joined(place): array for place, array in self.file_arrays().items()}

    def with_arrays(self, arrays: Mapping[str, Any]) -> LinenModel:
        new = unflatten_dict(dict(arrays), sep="/")
        # Boxes carry metadata, such as the axes of a sharding, that the new arrays keep.
        variables = nn.meta.replace_boxed(nn.FrozenDict(self.model[1]).unfreeze(), new)
        return LinenModel((self.model[0], variables), self._call)

    def outputs(self, arrays: Mapping[str, Any], batch: Any, hooks: Mapping[str, Hook] | None = None) -> Any:
        inside: set[str] = set()  # a lifted module calls another one with the same path

        def intercept(following: Callable[..., Any], args: tuple, kwargs: Any, context: Any) -> Any:
            path = joined(context.module.path)
            if not hooks or path not in hooks or context.method_name != "__call__" or path in inside:
                return following(*args, **kwargs)
            inside.add(path)
            try:
                return hooked(hooks[path], following, args, kwargs)
            finally:
                inside.discard(path)

        with nn.intercept_methods(intercept):
            return self._call(self.with_arrays(arrays).model, batch)

    def narrowed(self, specs: Mapping[str, Spec], arrays: Mapping[str, Any]) -> LinenModel:
        module, variables = self.with_arrays(arrays).model
        return LinenModel((Replaced(module.inner, (*specs.items(),)), variables), self._call)

    def replaced(self, specs: Mapping[str, Spec], arrays: Mapping[str, Mapping[str, Any]]) -> LinenModel:
        module, variables = self.model
        inner, before = (module.inner, dict(module.specs)) if isinstance(module, Replaced) else (module, {})
        dropped = {("params", *parts_of(path), name) for path in specs for name in ("kernel", "bias")}
        kept = {place: value for place, value in flat(variables).items() if place not in dropped}
        for path, spec in specs.items():
            kept |= {(*place_of(path, spec), name): array for name, array in arrays[spec.owner].items()}
        return LinenModel((Replaced(inner, (*{**before, **specs}.items(),)), unflatten_dict(kept)), self._call)

    def specs(self) -> dict[str, Spec]:
        module = self.model[0]
        return dict(module.specs) if isinstance(module, Replaced) else {}

    def op_places(self) -> dict[str, dict[str, str]]:
        return op_places(self.specs(), self.arrays(), lambda path, spec: joined(place_of(path, spec)))

    def parameter_places(self) -> list[str]:
        arrays = self.arrays()
        return floating([place for place in arrays if place.startswith("params/")], arrays)

    def layer_places(self, path: str) -> list[str]:
        arrays = self.arrays()
        places = [joined(("params", *parts_of(path), name)) for name in ("kernel", "bias")]
        return [place for place in places if place in arrays]

    def file_arrays(self) -> dict[tuple[Any, ...], Any]:
        return {**flat(nn.meta.unbox(self.model[1]))}

    @classmethod
    def from_file(
        cls, model: Any, specs: Mapping[str, Spec], arrays: Mapping[tuple[Any, ...], Any], file: str
    ) -> tuple[nn.Module, Any]:
        if not isinstance(model, nn.Module):
            raise ValueError(f"{file!r} is a linen model; `model` must be its module, without variables.")
        return Replaced(model, tuple(specs.items())), unflatten_dict(dict(arrays))
