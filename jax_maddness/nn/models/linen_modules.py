"""The linen module that replaces layers of another one, and the places of its arrays in the variables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jax_maddness.nn.layers.approximate import Spec, apply
from jax_maddness.nn.models.layer import first_array
from jax_maddness.nn.models.places import parts_of

KINDS = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv)
"""The layers that can be replaced. Subclasses may compute more than these, and cannot."""
COLLECTION = "maddness"
"""Collection of the arrays of ops. A scan only hands on the collections that it was written for, so the ops of layers
in a scan are in "params"."""
_OP = "op"


class Replaced(nn.Module):
    """A module some of whose layers are look-ups. Its parameters have the paths that they had.

    Attributes:
      inner: the original module.
      specs: path and spec of each layer that is replaced; a tuple, since linen's attributes must be hashable.
    """

    inner: nn.Module
    specs: tuple[tuple[str, Spec], ...]

    def setup(self) -> None:
        """Makes the scope that of the module inside, so that no path gets longer."""
        nn.share_scope(self, self.inner)

    def __call__(self, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """Computes the result of `inner`, nearly; `method` names another method of it."""
        with nn.intercept_methods(_interceptor(dict(self.specs))):
            return getattr(self.inner, method)(*args, **kwargs)


def _interceptor(specs: Mapping[str, Spec]) -> Callable[..., Any]:
    """Returns an interceptor that computes replaced layers in place of linen's calls."""
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
    return context.method_name == "__call__" and isinstance(context.module, KINDS)


def _arrays(module: nn.Module, path: str, spec: Spec) -> dict[str, Any]:
    """Returns the op's arrays, from the scope of the layer, or of its parent for layers with the same input."""
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
    """Returns the name of the op in its scope."""
    return _OP if spec.owner == path else spec.owner.rpartition("/")[2]


def place_of(path: str, spec: Spec) -> tuple[str, ...]:
    """Returns the place of an op's arrays in the variables."""
    scope = path if spec.owner == path else spec.owner.rpartition("/")[0]
    return ("params" if spec.steps else COLLECTION, *parts_of(scope), _key(path, spec))


def flat(variables: Any) -> dict[tuple[str, ...], Any]:
    """Returns variables by place."""
    return flatten_dict(nn.FrozenDict(variables).unfreeze())
