"""Saves and loads an op as one stable, versioned file.

`archive.py` describes the format. The arrays of the file are called `trees.indices` and so on, after the fields of
the op.

Version 1 has `SplitTrees` only. Version 2 added `ObliqueTrees`, which have other arrays, version 3 the exact term of an
op, and version 4 terms in int8. An op is written in the oldest version that can represent it, so that older releases
can read it.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core import archive, validate
from jax_maddness.core.pytrees import register_with_flax
from jax_maddness.core.terms.kinds import TERMS
from jax_maddness.core.trees.base import validate_finite
from jax_maddness.core.types import KINDS, LookupTables, MaddnessOp, Term, Trees

FORMAT = "jax_maddness.op"
VERSION = 4
_TABLES = ("tables.values", "tables.scale", "tables.offset")
_FINITE = ("tables.scale", "tables.offset", "weights")


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
    arrays = {name: np.asarray(jax.device_get(a)) for name, a in _arrays(op).items()}
    version = max(op.trees.file_version, op.term.file_version if op.term is not None else 1)
    for name, array in arrays.items():
        if array.dtype.name not in archive.DTYPES:
            raise TypeError(f"`op.{name}` is {array.dtype}; a file holds {', '.join(archive.DTYPES)}. Cast it first.")
    _validate_values(arrays, type(op.trees), type(op.term) if op.term is not None else None, op.num_features)
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
    kinds = _kinds(header.get("arrays"), header["version"])
    arrays = read()
    num_features = header.get("num_features")
    if num_features is not None and (type(num_features) is not int or num_features < 1):
        raise ValueError(f"num_features is {num_features!r}; expected a positive integer or null.")
    return _assemble(arrays, *kinds, num_features)


def _arrays(op: MaddnessOp) -> dict[str, Any]:
    """Returns the arrays of `op` by the names that they have in a file."""
    arrays = {f"trees.{name}": getattr(op.trees, name) for name in op.trees.array_names()}
    arrays |= {name: getattr(op.tables, name.removeprefix("tables.")) for name in _TABLES}
    if op.weights is not None:
        arrays["weights"] = op.weights
    if op.term is not None:
        arrays |= {f"{op.term.name}.{name}": array for name, array in op.term.arrays().items()}
    return arrays


def _kinds(described: object, version: int) -> tuple[type[Trees], type[Term] | None]:
    """Returns the kinds of trees and of the term whose arrays the header describes."""
    known = [kind for kind in KINDS if version >= kind.file_version]
    terms = [None, *(term for term in TERMS if version >= term.file_version)]
    for kind in known:
        for term in terms:
            needed = {f"trees.{name}" for name in kind.array_names()} | {*_TABLES}
            optional = {"weights"}
            for name in term.array_names() if term is not None else ():
                (optional if name in term.optional else needed).add(f"{term.name}.{name}")  # type: ignore[union-attr]
            if isinstance(described, dict) and needed <= set(described) <= needed | optional:
                return kind, term
    expected = " or ".join(", ".join((*(f"trees.{name}" for name in kind.array_names()), *_TABLES)) for kind in known)
    expected += ", perhaps with weights" + "".join(
        f", or with {', '.join(f'{term.name}.{name}' for name in term.array_names())}" for term in terms if term
    )
    raise ValueError(f"it lists the arrays {described!r:.200}; expected {expected}.")


def _assemble(
    arrays: dict[str, np.ndarray], kind: type[Trees], term: type[Term] | None, num_features: int | None
) -> MaddnessOp:
    """Returns the op, if its arrays agree with each other."""
    _validate_values(arrays, kind, term, num_features)
    data = {name: jnp.asarray(array) for name, array in arrays.items()}
    op = MaddnessOp(
        kind.of_arrays(_part("trees", data), num_features),
        LookupTables(*(data[name] for name in _TABLES)),
        data.get("weights"),
        None if term is None else term(**_part(term.name, data)),
    )
    validate.op(op)
    return op


def _part(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns the arrays of one part of an op by the names of their fields."""
    return {name.split(".")[1]: array for name, array in arrays.items() if name.startswith(f"{prefix}.")}


def _validate_values(
    arrays: dict[str, np.ndarray], kind: type[Trees], term: type[Term] | None, num_features: int | None
) -> None:
    """Raises ValueError unless the values of a file's arrays are in their documented ranges."""
    limit = kind.validate_values(_part("trees", arrays), num_features)
    for name in _FINITE:
        if name in arrays:
            validate_finite(name, arrays[name])
    if term is not None:
        term.validate_values(_part(term.name, arrays), limit, arrays["tables.values"].shape[-2])
