"""Dataclasses of arrays that JAX, `jax.export` and Flax can take apart, store and put together again."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, TypeVar

import jax
from jax import export

T = TypeVar("T", bound=type)

_FLAX = "flax.serialization"
_classes: list[type] = []


def pytree(cls: T) -> T:
    """Registers a dataclass as a pytree whose structure `jax.export` can serialize; a decorator.

    Fields whose metadata is `{"static": True}` are part of the structure; all others are children. Where JSON can
    represent the static fields, a function that takes or returns an instance can be exported and serialized.
    `register_with_flax` makes `flax.serialization` know the class.
    """
    jax.tree_util.register_dataclass(cls)
    export.register_pytree_node_serialization(
        cls,
        serialized_name=f"jax_maddness.{cls.__name__}",
        serialize_auxdata=lambda static: _to_json(cls, static),
        deserialize_auxdata=lambda data: tuple(map(_hashable, json.loads(data))),
        from_children=lambda static, children: _assembled(cls, static, children),
    )
    _classes.append(cls)
    return cls


def register_with_flax() -> None:
    """Registers all pytrees of this package with `flax.serialization`, if Flax has been imported.

    Flax finds the functions for a class in a table of its own. Importing Flax takes as long as importing this package,
    so that it is not imported for this alone; the function is cheap, and called wherever users get an op.
    """
    serialization = sys.modules.get(_FLAX)
    if not hasattr(serialization, "from_state_dict"):  # not imported, or only half of it by another thread
        return
    while _classes:
        cls = _classes.pop()
        serialization.register_serialization_state(cls, _to_state_dict, _from_state_dict, override=True)  # type: ignore[union-attr]


def _fields(cls: type, static: bool) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if bool(f.metadata.get("static")) == static]


def _assembled(cls: type, static: Any, children: Any) -> Any:
    names = (*_fields(cls, static=True), *_fields(cls, static=False))
    return cls(**dict(zip(names, (*static, *children), strict=True)))


def _to_json(cls: type, static: Any) -> bytes:
    try:
        return json.dumps(static).encode()
    except TypeError:
        fields = ", ".join(name for name, value in zip(_fields(cls, True), static, strict=True) if not _is_json(value))
        raise ValueError(
            f"A {cls.__name__} whose `{fields}` is set cannot be serialized, as it belongs to this process. Export a "
            "function of one that is on a single device."
        ) from None


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | tuple)


def _hashable(value: Any) -> Any:
    """Converts the lists of JSON back to tuples, at any depth."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _to_state_dict(value: Any) -> dict[str, Any]:
    from_flax: Any = sys.modules[_FLAX]
    return {name: from_flax.to_state_dict(getattr(value, name)) for name in _fields(type(value), static=False)}


def _from_state_dict(target: Any, state: Any) -> Any:
    """Returns `target` with the arrays of `state`, as `flax.struct.dataclass` does."""
    from_flax: Any = sys.modules[_FLAX]
    names = _fields(type(target), static=False)
    if not isinstance(state, dict) or set(state) != set(names):
        raise ValueError(
            f"The state of a {type(target).__name__} has {', '.join(state) if isinstance(state, dict) else repr(state)}"
            f" at path {from_flax.current_path()}; expected {', '.join(names)}. Pass a target of the same kind."
        )
    restored = {name: from_flax.from_state_dict(getattr(target, name), state[name], name=name) for name in names}
    return dataclasses.replace(target, **restored)
