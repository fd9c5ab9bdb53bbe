"""`LinenModel`: the view of a model for linen modules with their variables, `(module, variables)`."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.models.layer import Call, Hook, Layer, Tap, equation_of, first_array, hooked
from jax_maddness.nn.models.linen_modules import KINDS, Replaced, flat, kernel_of, place_of, product_method
from jax_maddness.nn.models.places import floating, joined, op_places, parts_of
from jax_maddness.nn.models.traces import apart

_STEP = "maddness_step"
_WEIGHTS, _TABLE = ("kernel", "bias"), "embedding"


class LinenModel:
    """A linen module with its variables, and the function that calls it; see `Model` for the methods."""

    kind: ClassVar[str] = "linen"

    def __init__(self, model: tuple[nn.Module, Any], call: Callable[[Any, Any], Any]):
        self.model = model
        self._call = call

    def layers(self, batch: Any) -> list[Layer]:
        params = flat(nn.meta.unbox(self.model[1]).get("params", {}))
        kernels = {place[:-1]: value for place, value in params.items() if place[-1] in ("kernel", _TABLE)}
        layers: dict[str, Layer] = {}

        def tap(path: str, call: Call, module: nn.Module) -> None:
            if path not in layers:
                name = type(module).__name__
                name = name if type(module) in KINDS else f"{name} (not flax's own)"
                place, is_table = parts_of(path), isinstance(module, nn.Embed)
                bias = params.get((*place, "bias"))
                layers[path] = Layer(path, name, module.clone(parent=None), kernels[place], bias, keeps_kernel=is_table)
            layers[path].calls.append(call)

        run = self._tapped({joined(place): 0 for place in kernels}, tap)
        jax.eval_shape(run, self.model[1], batch)  # the model is traced, nothing is computed
        uncalled = {place[:-1] for place in params if place[-1] == "kernel"} - {parts_of(path) for path in layers}
        for place in uncalled:  # tables of embeddings whose rows are only looked up are no layers
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
            with nn.intercept_methods(intercept), apart():
                self._call((self.model[0], variables), batch)

        jax.eval_shape(run, self.model[1], batch)
        return list(paths)

    def run(self) -> Callable[[Any], Any]:
        compiled = jax.jit(lambda variables, batch: self._call((self.model[0], variables), batch))
        return lambda batch: compiled(self.model[1], batch)

    def tapped(self, steps: Mapping[str, int], tap: Tap) -> tuple[Callable[[Any, Any], None], Any]:
        numbers = {
            ("params", *parts_of(path), _STEP): jnp.arange(count, dtype=jnp.float32)
            for path, count in steps.items()
            if count
        }
        # A variable beside the kernel is sliced wherever the kernel is. Floats, so that it has a gradient.
        variables = unflatten_dict({**flat(self.model[1]), **numbers})
        return self._tapped(steps, lambda path, call, module: tap(path, call)), variables

    def _tapped(self, paths: Container[str], tap: Callable[[str, Call, nn.Module], None]) -> Callable[[Any, Any], None]:
        def intercept(following: Callable[..., Any], args: tuple, kwargs: Any, context: Any) -> Any:
            module, y = context.module, following(*args, **kwargs)
            is_product = context.method_name == product_method(module)
            if not is_product or joined(module.path) not in paths or module.scope is None:
                return y
            bias, step = (nn.meta.unbox(module.scope.get_variable("params", name)) for name in ("bias", _STEP))
            if (kernel := kernel_of(module)) is not None:
                equation = equation_of(args, kwargs) if isinstance(module, nn.Einsum) else None
                tap(joined(module.path), Call(first_array(args, kwargs), y, kernel, bias, step, equation), module)
            return y

        def run(variables: Any, batch: Any) -> None:  # returns nothing, so that XLA drops all that no tap needs
            with nn.intercept_methods(intercept), apart():
                self._call((self.model[0], variables), batch)

        return run

    def arrays(self) -> dict[str, Any]:
        return {joined(place): array for place, array in self.file_arrays().items()}

    def weights(self) -> dict[str, Any]:
        return self.arrays()  # random states are no variables in linen

    def with_arrays(self, arrays: Mapping[str, Any]) -> LinenModel:
        # Names may contain "/", too, as those of the statistics of `SpectralNorm` do.
        new = unflatten_dict({place: arrays[joined(place)] for place in self.file_arrays()})
        # Boxes carry metadata, such as the axes of a sharding, that the new arrays keep.
        variables = nn.meta.replace_boxed(nn.FrozenDict(self.model[1]).unfreeze(), new)
        return LinenModel((self.model[0], variables), self._call)

    def outputs(
        self, arrays: Mapping[str, Any], batch: Any, hooks: Mapping[str, Hook] | None = None, of_layers: bool = False
    ) -> Any:
        inside: set[str] = set()  # a lifted module calls another one with the same path

        def intercept(following: Callable[..., Any], args: tuple, kwargs: Any, context: Any) -> Any:
            path = joined(context.module.path)
            method = product_method(context.module) if of_layers else "__call__"
            if not hooks or path not in hooks or context.method_name != method or path in inside:
                return following(*args, **kwargs)
            inside.add(path)
            try:
                return hooked(hooks[path], following, args, kwargs)
            finally:
                inside.discard(path)

        with nn.intercept_methods(intercept), apart():
            return self._call(self.with_arrays(arrays).model, batch)

    def narrowed(self, specs: Mapping[str, Spec], arrays: Mapping[str, Any]) -> LinenModel:
        module, variables = self.with_arrays(arrays).model
        return LinenModel((Replaced.of(module.inner, specs), variables), self._call)

    def replaced(self, specs: Mapping[str, Spec], arrays: Mapping[str, Mapping[str, Any]]) -> LinenModel:
        module, variables = self.model
        inner, before = (module.inner, dict(module.specs)) if isinstance(module, Replaced) else (module, {})
        unread = [path for path, spec in specs.items() if not spec.keeps_kernel]
        dropped = {("params", *parts_of(path), name) for path in unread for name in _WEIGHTS}
        kept = {place: value for place, value in flat(variables).items() if place not in dropped}
        for path, spec in specs.items():
            kept |= {(*place_of(path, spec), name): array for name, array in arrays[spec.owner].items()}
        return LinenModel((Replaced.of(inner, {**before, **specs}), unflatten_dict(kept)), self._call)

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
        places = [joined(("params", *parts_of(path), name)) for name in _WEIGHTS]
        return [place for place in places if place in arrays]

    def file_arrays(self) -> dict[tuple[Any, ...], Any]:
        return {**flat(nn.meta.unbox(self.model[1]))}

    @classmethod
    def from_file(
        cls, model: Any, specs: Mapping[str, Spec], arrays: Mapping[tuple[Any, ...], Any], file: str
    ) -> tuple[nn.Module, Any]:
        if not isinstance(model, nn.Module):
            raise ValueError(f"{file!r} is a linen model; `model` must be its module, without variables.")
        return Replaced.of(model, specs), unflatten_dict(dict(arrays))
