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
from jax_maddness.core.types import ExactTerm, LookupTables, MaddnessOp, ObliqueTrees, SplitTrees

FORMAT = "jax_maddness.op"
VERSION = 3
_TREES: dict[type[Any], tuple[int, tuple[str, ...]]] = {  # the version that added them, their arrays in order
    SplitTrees: (1, ("trees.indices", "trees.thresholds")),
    ObliqueTrees: (2, ("trees.features", "trees.projections", "trees.thresholds", "trees.center", "trees.scale")),
}
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
    version, of_trees = _TREES[type(op.trees)]
    fields = (*of_trees, *_TABLES, *_OPTIONAL)
    arrays = {name: np.asarray(jax.device_get(a)) for name in fields if (a := _get(op, name)) is not None}
    version = max([version, *(_OPTIONAL.get(name, 1) for name in arrays)])
    for name, array in arrays.items():
        if array.dtype.name not in archive.DTYPES:
            raise TypeError(f"`op.{name}` is {array.dtype}; a file holds {', '.join(archive.DTYPES)}. Cast it first.")
    _check_contents(arrays, op.num_features)
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


def _kind(described: object, version: int) -> type[Any]:
    """The trees whose arrays the header describes."""
    optional = [name for name, since in _OPTIONAL.items() if version >= since]
    for kind, (since, of_trees) in _TREES.items():
        fields = {*of_trees, *_TABLES}
        if version >= since and isinstance(described, dict) and fields <= set(described) <= fields | {*optional}:
            return kind
    expected = " or ".join(", ".join((*fields, *_TABLES)) for since, fields in _TREES.values() if version >= since)
    expected += ", perhaps with " + ", ".join(optional)
    raise ValueError(f"it lists the arrays {described!r:.200}; expected {expected}.")


def _assemble(arrays: dict[str, np.ndarray], kind: type[Any], num_features: int | None) -> MaddnessOp:
    """The op, if its arrays agree with each other."""
    _check_contents(arrays, num_features)
    data = {name: jnp.asarray(array) for name, array in arrays.items()}
    exact = None
    if any(name.startswith("exact.") for name in data):
        exact = ExactTerm(data["exact.up"], data.get("exact.indices"), data.get("exact.down"))
    op = MaddnessOp(
        kind(*(data[name] for name in _TREES[kind][1]), num_features),
        LookupTables(*(data[name] for name in _TABLES)),
        data.get("weights"),
        exact,
    )
    validate.trees(op.trees)
    validate.op(op)
    return op


def _check_contents(arrays: dict[str, np.ndarray], num_features: int | None) -> None:
    """What the shapes do not tell: indices in range, and what `ObliqueTrees` says of its centers and scales."""
    oblique = "trees.features" in arrays
    indices = arrays["trees.features" if oblique else "trees.indices"]
    limit = num_features or (arrays["trees.center"].size if oblique else np.iinfo(np.int32).max)
    for of, found in (("a split", indices), ("an exact term's", arrays.get("exact.indices", indices))):
        if found.size and not (found.dtype == np.int32 and found.min() >= 0 and found.max() < limit):
            raise ValueError(f"{of} index is not an int32 in [0, {limit}).")
    if oblique:
        center, scale = np.float32(arrays["trees.center"]), np.float32(arrays["trees.scale"])
        if not np.all(np.isfinite(center)):
            raise ValueError("an entry of trees.center is not finite.")
        if not np.all((scale == 0) | (scale >= np.float32(2.0**-100)) & (scale <= np.float32(2.0**100))):
            raise ValueError("an entry of trees.scale is neither 0 nor in [2**-100, 2**100].")


def _get(op: MaddnessOp, name: str) -> Any:
    value: Any = op
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value
