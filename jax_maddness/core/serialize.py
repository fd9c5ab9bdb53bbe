"""save / load: an op as one stable, versioned file.

`archive.py` says what the file is. Its arrays are called `trees.indices` and so on.

Version 1 knows `SplitTrees` alone, version 2 brought `ObliqueTrees`, which have other arrays, version 3 an op's exact
term. An op is written as the oldest version that knows all of it.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core import archive, validate
from jax_maddness.core.trees.base import validate_indices
from jax_maddness.core.types import KINDS, ExactTerm, LookupTables, MaddnessOp, Trees

FORMAT = "jax_maddness.op"
VERSION = 3
_TABLES = ("tables.values", "tables.scale", "tables.offset")
_OPTIONAL = {"weights": 1, "exact.up": 3, "exact.indices": 3, "exact.down": 3}  # the version that added each


def save(path: str | os.PathLike[str], op: MaddnessOp) -> None:
    """Writes `op` to the file `path`, whole or not at all: an existing file is replaced only by a complete one.

    Raises:
      TypeError, ValueError: `op` is not a single, consistent op (a stacked one is not; save its elements).
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(op)):
        raise TypeError("`op` is traced: `save` writes values, so it cannot run inside of jax.jit or jax.vmap.")
    if getattr(getattr(getattr(op, "tables", None), "values", None), "ndim", 0) > 3:
        raise ValueError("`op` is stacked; a file holds one. Save its elements: `jax.tree.map(lambda a: a[i], op)`.")
    validate.op(op)
    fields = (*_tree_fields(type(op.trees)), *_TABLES, *_OPTIONAL)
    arrays = {name: np.asarray(jax.device_get(a)) for name in fields if (a := _get(op, name)) is not None}
    version = max([op.trees.file_version, *(_OPTIONAL.get(name, 1) for name in arrays)])
    for name, array in arrays.items():
        if array.dtype.name not in archive.DTYPES:
            raise TypeError(f"`op.{name}` is {array.dtype}; a file holds {', '.join(archive.DTYPES)}. Cast it first.")
    _validate_values(arrays, type(op.trees), op.num_features)
    archive.write(path, FORMAT, version, {"num_features": op.num_features}, arrays)


def load(path: str | os.PathLike[str]) -> MaddnessOp:
    """Reads an op that `save` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated, damaged, not an op, or of a newer version; the message says which.
    """
    return archive.read(path, FORMAT, VERSION, "an op", _read)


def _read(header: dict[str, Any], read: archive.Reader) -> MaddnessOp:
    kind = _kind(header.get("arrays"), header["version"])
    arrays = read()
    num_features = header.get("num_features")
    if num_features is not None and (type(num_features) is not int or num_features < 1):
        raise ValueError(f"num_features is {num_features!r}; expected a positive integer or null.")
    return _assemble(arrays, kind, num_features)


def _tree_fields(kind: type[Trees]) -> list[str]:
    """The names of the arrays of a kind of trees in a file."""
    return [f"trees.{name}" for name in kind.array_names()]


def _kind(described: object, version: int) -> type[Trees]:
    """The kind of trees whose arrays the header describes."""
    optional = [name for name, since in _OPTIONAL.items() if version >= since]
    known = [kind for kind in KINDS if version >= kind.file_version]
    for kind in known:
        fields = {*_tree_fields(kind), *_TABLES}
        if isinstance(described, dict) and fields <= set(described) <= fields | {*optional}:
            return kind
    expected = " or ".join(", ".join((*_tree_fields(kind), *_TABLES)) for kind in known)
    expected += ", perhaps with " + ", ".join(optional)
    raise ValueError(f"it lists the arrays {described!r:.200}; expected {expected}.")


def _assemble(arrays: dict[str, np.ndarray], kind: type[Trees], num_features: int | None) -> MaddnessOp:
    """The op, if its arrays agree with each other."""
    _validate_values(arrays, kind, num_features)
    data = {name: jnp.asarray(array) for name, array in arrays.items()}
    exact = None
    if any(name.startswith("exact.") for name in data):
        exact = ExactTerm(data["exact.up"], data.get("exact.indices"), data.get("exact.down"))
    op = MaddnessOp(
        kind.of_arrays({name: data[f"trees.{name}"] for name in kind.array_names()}, num_features),
        LookupTables(*(data[name] for name in _TABLES)),
        data.get("weights"),
        exact,
    )
    validate.trees(op.trees)
    validate.op(op)
    return op


def _validate_values(arrays: dict[str, np.ndarray], kind: type[Trees], num_features: int | None) -> None:
    """Raises unless the values of a file's arrays, of which shapes tell nothing, are in their documented ranges."""
    of_trees = {name: arrays[f"trees.{name}"] for name in kind.array_names()}
    limit = kind.validate_values(of_trees, num_features)
    if "exact.indices" in arrays:
        validate_indices("an exact term's", arrays["exact.indices"], limit)


def _get(op: MaddnessOp, name: str) -> Any:
    value: Any = op
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value
