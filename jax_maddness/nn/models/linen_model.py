"""linen models, `(module, variables)`: their layers, taps on their inputs, and what stands in for a layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jax_maddness.nn.layers.approximate import Spec, apply
from jax_maddness.nn.models.layer import Call, Hook, Layer, first_array, hooked

KINDS = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv)
"""What can be replaced; subclasses may do more than these, and cannot."""
COLLECTION = "maddness"
"""Where the arrays of ops are. Those of layers in a scan, which hands on its own collections only, are in "params"."""
_OP = "op"


class Replaced(nn.Module):
    """A module some of whose layers are look-ups. Its parameters have the paths that they had.

    Attributes:
      inner: the original module.
      specs: path and spec of each layer that is replaced.
    """

    inner: nn.Module
    specs: tuple[tuple[str, Spec], ...]

    def setup(self) -> None:
        """Nothing of its own: the scope is that of the module inside."""
        nn.share_scope(self, self.inner)

    def __call__(self, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """What `inner` returns, nearly; `method` names another method of it."""
        with nn.intercept_methods(_stand_in(dict(self.specs))):
            return getattr(self.inner, method)(*args, **kwargs)


def _stand_in(specs: Mapping[str, Spec]) -> Callable[..., Any]:
    pruned = any(spec.pruned for spec in specs.values())

    def intercept(
        following: Callable[..., Any], args: tuple, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        path = "/".join(context.module.path)
        if path not in specs or not _is_layer(context):
            return (_narrower(context.module, following) if pruned else following)(*args, **kwargs)
        spec = specs[path]
        return apply(first_array(args, kwargs), spec, _arrays(context.module, path, spec))

    return intercept


def _narrower(module: nn.Module, following: Callable[..., Any]) -> Callable[..., Any]:
    """An exact layer with as many outputs as its parameters have: linen's own wants as many as its code says."""
    params = module.scope.variables().get("params", {}) if module.scope else {}
    if not isinstance(module, nn.Dense | nn.Conv) or "kernel" not in params:
        return following
    features = jax.tree.leaves(params["kernel"])[0].shape[-1]
    if features == module.features:
        return following
    return functools.partial(module.clone(features=features, parent=None, name=None).apply, {"params": params})


def _is_layer(context: nn.module.InterceptorContext) -> bool:
    return context.method_name == "__call__" and isinstance(context.module, KINDS)


def _arrays(module: nn.Module, path: str, spec: Spec) -> dict[str, Any]:
    """The op's arrays: in the scope of the layer, or for layers with the same input in that of their parent."""
    scope = module.scope if spec.owner == path else module.scope and module.scope.parent
    assert scope is not None
    arrays = scope.get_variable("params" if spec.steps else COLLECTION, _key(path, spec))
    if arrays is None:
        raise ValueError(
            f"The variables have no op for {path!r}. A replaced model is not initialised: pass the variables that "
            "`replace` or `load_model` returned with it."
        )
    return arrays


def _key(path: str, spec: Spec) -> str:
    return _OP if spec.owner == path else spec.owner.rpartition("/")[2]


def place_of(path: str, spec: Spec) -> tuple[str, ...]:
    """Where in the variables the arrays are."""
    scope = path if spec.owner == path else spec.owner.rpartition("/")[0]
    return ("params" if spec.steps else COLLECTION, *scope.split("/") * bool(scope), _key(path, spec))


class LinenModel:
    """A linen module with its variables, and how it is called: what capture, calibration and replacement need."""

    def __init__(self, model: tuple[nn.Module, Any], call: Callable[[Any, Any], Any]):
        self.model = model
        self._call = call

    def layers(self, batch: Any) -> list[Layer]:
        """Every layer with a kernel, in the order in which a run on `batch`, which is only traced, calls them."""
        kernels = {path[:-1]: value for path, value in self._params().items() if path[-1] == "kernel"}
        found: dict[str, Layer] = {}

        def tap(path: str, module: nn.Module, x: Any, equation: str | None) -> None:
            where = tuple(path.split("/")) if path else ()
            if where not in kernels or not isinstance(module, nn.Module):
                return
            if path not in found:
                bias = self._params().get((*where, "bias"))
                name = type(module).__name__ if type(module) in KINDS else f"{type(module).__name__} (not flax's own)"
                found[path] = Layer(path, name, module.clone(parent=None), kernels[where], bias)
            scope = module.scope
            assert scope is not None
            shape = jax.tree.leaves(scope.get_variable("params", "kernel"))[0].shape
            found[path].calls.append(Call(x, tuple(shape), equation))

        run = self._tapped(tap)
        jax.eval_shape(run, self.model[1], batch)
        for where in kernels.keys() - {tuple(path.split("/")) if path else () for path in found}:
            found["/".join(where)] = Layer("/".join(where), "?", None, kernels[where], None)
        for layer in found.values():
            layer.complete()
        return list(found.values())

    def modules(self, batch: Any) -> list[str]:
        """Paths of all modules inside of the model that a run on `batch`, which is only traced, calls."""
        found: dict[str, None] = {}

        def intercept(following: Callable[..., Any], args: tuple, kwargs: Any, context: Any) -> Any:
            if context.method_name == "__call__" and context.module.path:
                found["/".join(context.module.path)] = None
            return following(*args, **kwargs)

        def run(variables: Any, batch: Any) -> None:
            with nn.intercept_methods(intercept):
                self._call((self.model[0], variables), batch)

        jax.eval_shape(run, self.model[1], batch)
        return list(found)

    def run(self) -> Callable[[Any], Any]:
        """The model, compiled."""
        compiled = jax.jit(lambda variables, batch: self._call((self.model[0], variables), batch))
        return lambda batch: compiled(self.model[1], batch)

    def tapped(self, paths: list[str], tap: Callable[[str, Any], None]) -> Callable[[Any], None]:
        """A compiled run of the model that computes what `tap(path, x)` asks for, and nothing else."""

        def chosen(path: str, module: nn.Module, x: Any, equation: str | None) -> None:
            del module, equation
            if path in paths:
                tap(path, x)

        compiled = jax.jit(self._tapped(chosen))
        return lambda batch: compiled(self.model[1], batch)

    def arrays(self) -> dict[str, Any]:
        """All arrays of the model by place, as text."""
        return {"/".join(place): array for place, array in flat(nn.meta.unbox(self.model[1])).items()}

    def with_arrays(self, arrays: Mapping[str, Any]) -> LinenModel:
        """The model with other arrays, all of them."""
        new = unflatten_dict(dict(arrays), sep="/")
        variables = nn.meta.replace_boxed(nn.FrozenDict(self.model[1]).unfreeze(), new)
        return LinenModel((self.model[0], variables), self._call)

    def outputs(self, arrays: Mapping[str, Any], batch: Any, hooks: Mapping[str, Hook] | None = None) -> Any:
        """What the model with other arrays says; hooks are in place of modules, replaced or not, by path."""
        inside: set[str] = set()  # a lifted module calls another one with the same path

        def intercept(following: Callable[..., Any], args: tuple, kwargs: Any, context: Any) -> Any:
            path = "/".join(context.module.path)
            if not hooks or path not in hooks or context.method_name != "__call__" or path in inside:
                return following(*args, **kwargs)
            inside.add(path)
            try:
                return hooked(hooks[path], following, args, kwargs)
            finally:
                inside.discard(path)

        with nn.intercept_methods(intercept):
            return self._call(self.with_arrays(arrays).model, batch)

    def _tapped(self, tap: Callable[..., None]) -> Callable[[Any, Any], None]:
        def intercept(following: Callable[..., Any], args: tuple, kwargs: Any, context: Any) -> Any:
            module = context.module
            if context.method_name == "__call__" and (args or "inputs" in kwargs) and module.scope is not None:
                equation = kwargs.get("einsum_str", args[1] if isinstance(module, nn.Einsum) and args[1:] else None)
                tap("/".join(module.path), module, first_array(args, kwargs), equation)
            return following(*args, **kwargs)

        def run(variables: Any, batch: Any) -> None:
            with nn.intercept_methods(intercept):
                self._call((self.model[0], variables), batch)

        return run

    def _params(self) -> dict[tuple[str, ...], Any]:
        return flat(nn.meta.unbox(self.model[1]).get("params", {}))

    def narrowed(self, specs: Mapping[str, Spec], arrays: Mapping[str, Any]) -> LinenModel:
        """The model with other specs and arrays."""
        module, variables = self.with_arrays(arrays).model
        return LinenModel((Replaced(module.inner, (*specs.items(),)), variables), self._call)

    def replaced(self, specs: Mapping[str, Spec], arrays: Mapping[str, Mapping[str, Any]]) -> LinenModel:
        """The model with ops in place of layers; `arrays` by the specs' owners."""
        module, variables = self.model
        inner, before = (module.inner, dict(module.specs)) if isinstance(module, Replaced) else (module, {})
        gone = {("params", *path.split("/") * bool(path), name) for path in specs for name in ("kernel", "bias")}
        kept = {path: value for path, value in flat(variables).items() if path not in gone}
        for path, spec in specs.items():
            kept |= {(*place_of(path, spec), name): array for name, array in arrays[spec.owner].items()}
        return LinenModel((Replaced(inner, (*{**before, **specs}.items(),)), unflatten_dict(kept)), self._call)


def flat(variables: Any) -> dict[tuple[str, ...], Any]:
    """Variables by path."""
    return flatten_dict(nn.FrozenDict(variables).unfreeze())
