"""save / load: an op as one stable, versioned file.

`archive.py` says what the file is. Its arrays are called `trees.indices` and so on.

Version 1 knows `SplitTrees` alone, and ops with such trees are still written as version 1; those with `ObliqueTrees`,
which have other arrays, are version 2.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core import archive, checks
from jax_maddness.core.types import LookupTables, MaddnessOp, ObliqueTrees, SplitTrees

FORMAT = "jax_maddness.op"
VERSION = 2
_TREES: dict[type[Any], tuple[int, tuple[str, ...]]] = {  # the version that added them, their arrays in order
    SplitTrees: (1, ("trees.indices", "trees.thresholds")),
    ObliqueTrees: (2, ("trees.features", "trees.projections", "trees.thresholds", "trees.center", "trees.scale")),
}
_OTHERS = ("tables.values", "tables.scale", "tables.offset", "weights")


def save(path: str | os.PathLike[str], op: MaddnessOp) -> None:
    """Writes `op` to the file `path`, whole or not at all: an existing file is replaced only by a complete one.

    Raises:
      TypeError, ValueError: `op` is not a single, consistent op (a stacked one is not; save its elements).
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(op)):
        raise TypeError("`op` is traced: `save` writes values, so it cannot run inside of jax.jit or jax.vmap.")
    if getattr(getattr(getattr(op, "tables", None), "values", None), "ndim", 0) > 3:
        raise ValueError("`op` is stacked; a file holds one. Save its elements: `jax.tree.map(lambda a: a[i], op)`.")
    checks.op(op)
    version, of_trees = _TREES[type(op.trees)]
    fields = (*of_trees, *_OTHERS)
    arrays = {name: np.asarray(jax.device_get(a)) for name in fields if (a := _get(op, name)) is not None}
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
    for kind, (since, of_trees) in _TREES.items():
        fields = {*of_trees, *_OTHERS}
        if version >= since and isinstance(described, dict) and fields - {"weights"} <= set(described) <= fields:
            return kind
    expected = " or ".join(", ".join((*fields, *_OTHERS)) for since, fields in _TREES.values() if version >= since)
    raise ValueError(f"it lists the arrays {described!r:.200}; expected {expected}.")


def _assemble(arrays: dict[str, np.ndarray], kind: type[Any], num_features: int | None) -> MaddnessOp:
    """The op, if its arrays agree with each other."""
    _check_contents(arrays, num_features)
    data = {name: jnp.asarray(array) for name, array in arrays.items()}
    op = MaddnessOp(
        kind(*(data[name] for name in _TREES[kind][1]), num_features),
        LookupTables(data["tables.values"], data["tables.scale"], data["tables.offset"]),
        data.get("weights"),
    )
    checks.trees(op.trees)
    checks.op(op)
    return op


def _check_contents(arrays: dict[str, np.ndarray], num_features: int | None) -> None:
    """What the shapes do not tell: indices in range, and what `ObliqueTrees` says of its centers and scales."""
    oblique = "trees.features" in arrays
    indices = arrays["trees.features" if oblique else "trees.indices"]
    limit = num_features or (arrays["trees.center"].size if oblique else np.iinfo(np.int32).max)
    if indices.size and not (indices.dtype == np.int32 and indices.min() >= 0 and indices.max() < limit):
        raise ValueError(f"a split index is not an int32 in [0, {limit}).")
    if oblique:
        center, scale = np.float32(arrays["trees.center"]), np.float32(arrays["trees.scale"])
        if not np.all(np.isfinite(center)):
            raise ValueError("an entry of trees.center is not finite.")
        if not np.all((scale == 0) | (scale >= np.float32(2.0**-100)) & (scale <= np.float32(2.0**100))):
            raise ValueError("an entry of trees.scale is neither 0 nor in [2**-100, 2**100].")


def _get(op: MaddnessOp, name: str) -> Any:
    value: Any = op
    for part in name.split("."):
        value = getattr(value, part)
    return value
