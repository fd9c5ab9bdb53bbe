"""Places of arrays in a model: keys of `Model.arrays`, names joined by "/"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from jax_maddness.nn.layers.approximate import Spec


def joined(names: Iterable[Any]) -> str:
    """Returns the place for the names, or positions, that lead to it."""
    return "/".join(map(str, names))


def parts_of(path: str) -> tuple[str, ...]:
    """Returns the names of a path; the path "" has none."""
    return tuple(path.split("/")) if path else ()


def op_places(
    specs: Mapping[str, Spec], arrays: Iterable[str], folder_of: Callable[[str, Spec], str]
) -> dict[str, dict[str, str]]:
    """Finds the arrays of ops.

    Args:
      specs: of the replaced layers by path.
      arrays: all places of the model.
      folder_of: returns the folder of the op of a layer, by its path and spec.

    Returns:
      By the specs' owners, the place of each of the op's arrays, by name.
    """
    places: dict[str, dict[str, str]] = {spec.owner: {} for spec in specs.values()}
    owner_of = {folder_of(path, spec): spec.owner for path, spec in specs.items()}
    for place in arrays:
        folder, _, name = place.rpartition("/")
        if folder in owner_of:
            places[owner_of[folder]][name] = place
    return places


def floating(places: Iterable[str], arrays: Mapping[str, Any]) -> list[str]:
    """Returns the places whose arrays are floats."""
    return [place for place in places if jnp.issubdtype(arrays[place].dtype, jnp.floating)]
