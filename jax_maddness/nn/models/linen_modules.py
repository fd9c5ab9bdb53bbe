"""The linen module that replaces layers of another one, and the places of its arrays in the variables."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jax_maddness.nn.layers.approximate import Spec, apply
from jax_maddness.nn.layers.int8_low_rank import with_table
from jax_maddness.nn.models.layer import first_array
from jax_maddness.nn.models.places import parts_of
from jax_maddness.nn.models.traces import apart

KINDS = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv, nn.Embed)
"""The layers that can be replaced. Subclasses may compute more than these, and cannot."""
COLLECTION = "maddness"
"""Collection of the arrays of ops. A lifted transform only hands on the collections that it was written for: stacked
ops are in "params", and others are read outside of the transform where they are not handed on."""
_OP = "op"


@dataclasses.dataclass(frozen=True)
class Held:
    """A module that linen does not see: as an attribute, it would get a name and paths below that of its holder."""

    module: nn.Module


class Replaced(nn.Module):
    """A module some of whose layers are look-ups. Its parameters have the paths that they had.

    Attributes:
      held: the original module.
      specs: path and spec of each layer that is replaced; a tuple, since linen's attributes must be hashable.
    """

    held: Held
    specs: tuple[tuple[str, Spec], ...]

    @classmethod
    def of(cls, module: nn.Module, specs: Mapping[str, Spec]) -> Replaced:
        """Returns `module` with some of its layers replaced, by path."""
        return cls(Held(module), tuple(specs.items()))

    @property
    def inner(self) -> nn.Module:
        """The original module."""
        return self.held.module

    def setup(self) -> None:
        """Binds the original module to this one's scope, so that its paths are those that it has alone."""
        # Not by assignment, which would make it a submodule with a name, and modules in its attributes with longer
        # paths than those it makes itself.
        object.__setattr__(self, "_bound", self.inner.clone(parent=self.scope, _deep_clone=True))

    def __call__(self, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """Computes the result of `inner`, nearly; `method` names another method of it."""
        assert self.scope is not None
        with nn.intercept_methods(_interceptor(dict(self.specs), len(self.scope.path))), apart(self.specs):
            return getattr(self._bound, method)(*args, **kwargs)


def _interceptor(specs: Mapping[str, Spec], depth: int) -> Callable[..., Any]:
    """Returns an interceptor that computes replaced layers in place of linen's calls.

    Args:
      specs: of the replaced layers, by path from the replaced model.
      depth: length of the replaced model's own path, where it is a part of another module.
    """
    pruned = any(spec.pruned for spec in specs.values())
    around: list[tuple[tuple[str, ...], Any]] = []  # paths and collections of the modules that are being called

    def intercept(
        following: Callable[..., Any], args: tuple, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        path = "/".join(module.path[depth:])
        if path in specs and _is_layer(context):
            arrays = _arrays(module, path, specs[path], around)
            if isinstance(module, nn.Embed):
                arrays = with_table(arrays, kernel_of(module))
            return apply(first_array(args, kwargs), specs[path], arrays)
        following = _narrower(module, following) if pruned else following
        ops = module.scope.variables().get(COLLECTION) if module.scope else None
        if not ops:
            return following(*args, **kwargs)
        around.append((module.path[depth:], ops))
        try:
            return following(*args, **kwargs)
        finally:
            around.pop()

    return intercept


def _narrower(module: nn.Module, following: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the call of an exact layer with as many outputs as its parameters have.

    linen compares the parameters with the number of outputs in the model's code, which pruning cannot change.
    """
    params = module.scope.variables().get("params", {}) if module.scope else {}
    if not isinstance(module, nn.Dense | nn.Conv) or "kernel" not in params:
        return following
    features = jax.tree.leaves(params["kernel"])[0].shape[-1]
    if features == module.features:
        return following
    return functools.partial(module.clone(features=features, parent=None, name=None).apply, {"params": params})


def _is_layer(context: nn.module.InterceptorContext) -> bool:
    return context.method_name == product_method(context.module) and isinstance(context.module, KINDS)


def product_method(module: nn.Module) -> str:
    """Returns the name of the method that computes the product of a layer."""
    return "attend" if isinstance(module, nn.Embed) else "__call__"


def kernel_of(module: nn.Module) -> Any:
    """Returns what a bound layer multiplies by, its kernel or its table of embeddings; None if it has none."""
    assert module.scope is not None
    return nn.meta.unbox(module.scope.get_variable("params", "embedding" if isinstance(module, nn.Embed) else "kernel"))


def _arrays(
    module: nn.Module, path: str, spec: Spec, around: Sequence[tuple[tuple[str, ...], Any]]
) -> Mapping[str, Any]:
    """Returns the op's arrays.

    They are in the scope of the layer, or of its parent for layers with the same input. If a lifted transform does not
    hand them on, they are in the collection of a module around it; the innermost is the one that is traced with it.
    """
    scope = module.scope if spec.owner == path else module.scope and module.scope.parent
    *folder, key = place_of(path, spec)[1:]
    if scope and (spec.steps or not spec.keeps_kernel):
        arrays = scope.get_variable("params" if spec.steps else COLLECTION, key)
        if arrays is not None:
            return arrays
    for parents, ops in () if spec.steps else reversed(around):
        inside = tuple(folder[: len(parents)]) == parents
        for name in (*folder[len(parents) :], key) if inside else ():
            ops = ops.get(name) if ops is not None else None
        if inside and ops is not None:
            return ops
    raise ValueError(
        f"The variables have no op for {path!r}. A replaced model is not initialised: pass the variables that "
        "`replace` or `load_model` returned with it."
    )


def place_of(path: str, spec: Spec) -> tuple[str, ...]:
    """Returns the place of an op's arrays in the variables."""
    if spec.keeps_kernel and not spec.steps:
        # `SpectralNorm` changes all variables of the layer in it, so the op must not be among them.
        return COLLECTION, f"{_OP} of {spec.owner.replace('/', '.')}"
    own = spec.owner == path
    scope, key = (path, _OP) if own else (spec.owner.rpartition("/")[0], spec.owner.rpartition("/")[2])
    return ("params" if spec.steps else COLLECTION, *parts_of(scope), key)


def flat(variables: Any) -> dict[tuple[str, ...], Any]:
    """Returns variables by place."""
    return flatten_dict(nn.FrozenDict(variables).unfreeze())
