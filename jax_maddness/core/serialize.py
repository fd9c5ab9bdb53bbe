"""Saves and loads an op as one stable, versioned file.

`archive.py` describes the format. The arrays of the file are called `trees.indices` and so on, after the fields of
the op.

Version 1 has `SplitTrees` only. Version 2 added `ObliqueTrees`, which have other arrays, and version 3 the exact term
of an op. An op is written in the oldest version that can represent it, so that older releases can read it.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core import archive, validate
from jax_maddness.core.pytrees import register_with_flax
from jax_maddness.core.trees.base import validate_finite, validate_indices
from jax_maddness.core.types import KINDS, ExactTerm, LookupTables, MaddnessOp, Trees

FORMAT = "jax_maddness.op"
VERSION = 3
_TABLES = ("tables.values", "tables.scale", "tables.offset")
_OPTIONAL = {"weights": 1, "exact.up": 3, "exact.indices": 3, "exact.down": 3}  # the version that added each
_FINITE = ("tables.scale", "tables.offset", "weights", "exact.up", "exact.down")


def save(path: str | os.PathLike[str], op: MaddnessOp) -> None:
    """Writes `op` to the file `path`, as a whole or not at all: an existing file is replaced only by a complete one.

    The file is a zip archive of arrays in NumPy's `.npy` format, with a header in JSON and digests of all contents. It
    does not contain the second copy of the tables that `with_small_batch_tables` makes.

    Args:
      path: the file. No suffix is added.
      op: a single op, not a stack of ops, with concrete arrays of uint8, int8, int32, float32, float16 or bfloat16.

    Raises:
      TypeError: `path` is not a path, `op` is traced or not an op, or one of its arrays has another dtype.
      ValueError: `op` is a stack of ops (save its elements), its arrays do not agree with each other, a value is not
        finite or out of its range, or `path` is something other than a file, such as a folder or a device.
      OSError: the file cannot be written; an existing file is unchanged.

    Example:
      >>> import pathlib, tempfile
      >>> from jax_maddness import SplitTrees
      >>> trees = SplitTrees(jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 15)), 8)
      >>> op = MaddnessOp(trees, LookupTables(jnp.zeros((3, 1, 16), jnp.uint8), jnp.ones(3), jnp.zeros(3)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(pathlib.Path(folder) / "op.maddness", op)
      ...     load(pathlib.Path(folder) / "op.maddness")
      MaddnessOp(8 -> 3, 1 codebooks, 148 bytes)
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

    The contents are validated: digests, shapes, dtypes and the ranges of indices. Nothing in the file is executed.

    Args:
      path: the file.

    Returns:
      The op, with its arrays on the default device and in the dtypes in which they were saved. See `save` for an
      example.

    Raises:
      TypeError: `path` is not a path.
      OSError: there is no such file, or it cannot be opened.
      ValueError: the file is truncated, damaged, not an op, or of a newer version; the message says which.
    """
    register_with_flax()
    return archive.read(path, FORMAT, VERSION, "an op", _read)


def _read(header: dict[str, Any], read: archive.Reader) -> MaddnessOp:
    kind = _kind(header.get("arrays"), header["version"])
    arrays = read()
    num_features = header.get("num_features")
    if num_features is not None and (type(num_features) is not int or num_features < 1):
        raise ValueError(f"num_features is {num_features!r}; expected a positive integer or null.")
    return _assemble(arrays, kind, num_features)


def _tree_fields(kind: type[Trees]) -> list[str]:
    """Returns the names that the arrays of a kind of trees have in a file."""
    return [f"trees.{name}" for name in kind.array_names()]


def _kind(described: object, version: int) -> type[Trees]:
    """Returns the kind of trees whose arrays the header describes."""
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
    """Returns the op, if its arrays agree with each other."""
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
    """Raises ValueError unless the values of a file's arrays are in their documented ranges."""
    of_trees = {name: arrays[f"trees.{name}"] for name in kind.array_names()}
    limit = kind.validate_values(of_trees, num_features)
    for name in _FINITE:
        if name in arrays:
            validate_finite(name, arrays[name])
    if "exact.indices" in arrays:
        validate_indices("an exact term's", arrays["exact.indices"], limit)


def _get(op: MaddnessOp, name: str) -> Any:
    value: Any = op
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value
