"""JSON -> dataclasses, with every value of the type that its field has: a file may hold anything."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any


def restored(hint: Any, value: Any, name: str) -> Any:
    """Returns `value`, which JSON has, as the type `hint`: lists as tuples, and objects as dataclasses.

    Args:
      hint: an annotation: bool, int, float, str, None, Any, a dataclass, a mapping from str, a tuple or a union.
      value: what `json.loads` returned.
      name: of the value, for errors.

    Raises:
      ValueError: `value` is of another type; the message names the field.

    Example:
      >>> restored(tuple[int, ...], [1, 2], "shape")
      (1, 2)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _any_of(args, value, name)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints, stored = typing.get_type_hints(hint), {f.name for f in dataclasses.fields(hint) if f.compare}
        if value.keys() - stored:
            raise ValueError(f"{name} has the unknown fields {sorted(value.keys() - stored)!r:.100}")
        return typing.cast(Any, hint)(**{key: restored(hints[key], v, key) for key, v in value.items()})
    if origin is tuple and isinstance(value, list):
        each = (args[0],) * len(value) if args[1:] == (...,) else args
        if len(each) == len(value):
            return tuple(restored(h, v, name) for h, v in zip(each, value, strict=True))
    if origin in (Mapping, dict) and isinstance(value, dict):
        return {key: restored(args[1], v, f"{name}.{key}") for key, v in value.items()}
    if type(value) is hint or (hint is float and type(value) is int):
        return value
    if dataclasses.is_dataclass(value) and isinstance(hint, type) and isinstance(value, hint):
        return value  # restored before
    raise ValueError(f"{name} is {value!r:.100}, which is not {getattr(hint, '__name__', hint)}")


def _any_of(hints: tuple[Any, ...], value: Any, name: str) -> Any:
    """Returns `value` as the first of several types that it has."""
    for hint in hints[:-1]:
        try:
            return restored(hint, value, name)
        except ValueError:
            continue
    return restored(hints[-1], value, name)
