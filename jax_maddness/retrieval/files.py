"""Saves and loads an index as one stable, versioned file; `core/archive.py` describes the format."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core import archive, validate
from jax_maddness.core.types import LEAVES, ObliqueTrees
from jax_maddness.retrieval import scan
from jax_maddness.retrieval.calibrate import TOPS
from jax_maddness.retrieval.index import METRICS, VectorIndex, whole
from jax_maddness.retrieval.quantizer import Quantizer

FORMAT = "jax_maddness.index"
VERSION = 1
_REQUIRED = ("codes", *(f"quantizer.{name}" for name in Quantizer._fields), "ids")
_TREES = tuple(field.name for field in dataclasses.fields(ObliqueTrees) if field.name != "num_features")
_OPTIONAL = ("bias", "vectors")


def save_index(path: str | os.PathLike[str], index: VectorIndex) -> None:
    """Writes `index` to the file `path`, as a whole or not at all: an existing file is replaced only by a complete one.

    The file is a zip archive of arrays in NumPy's `.npy` format, with a header in JSON and digests of all contents.

    Args:
      path: the file. No suffix is added.
      index: an index that `build_index` made. A sharded index is gathered first, and its sharding is not saved.

    Raises:
      TypeError: `index` is not an index, or is traced.

    Example:
      >>> import pathlib, tempfile
      >>> from jax_maddness import build_index
      >>> index = build_index(np.random.default_rng(0).standard_normal((1000, 8)), 4)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_index(pathlib.Path(folder) / "vectors.index", index)
      ...     load_index(pathlib.Path(folder) / "vectors.index").count
      1000
    """
    index = whole(index)
    arrays: dict[str, Any] = {
        "codes": index.codes,
        **{f"quantizer.{name}": a for name, a in index.quantizer._asdict().items()},
        "ids": index.ids,
        **{name: a for name in _OPTIONAL if (a := getattr(index, name)) is not None},
    }
    if index.trees is not None:
        arrays |= {f"trees.{name}": getattr(index.trees, name) for name in _TREES}
    static = {"metric": index.metric, "count": index.count, "recall": index.recall}
    on_host = {name: np.asarray(jax.device_get(a)) for name, a in arrays.items()}
    archive.write(path, FORMAT, VERSION, static, on_host)


def load_index(path: str | os.PathLike[str]) -> VectorIndex:
    """Reads an index that `save_index` wrote.

    The contents are validated: digests, shapes, dtypes and the order of ids. Nothing in the file is executed.

    Args:
      path: the file.

    Returns:
      The index, on the default device; `shard_index` shards it. See `save_index` for an example.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated, damaged, not an index, or of a newer version; the message says which.
    """
    return archive.read(path, FORMAT, VERSION, "an index", _assemble)


def _assemble(header: dict[str, Any], read: archive.Reader) -> VectorIndex:
    described, of_trees = header.get("arrays"), {f"trees.{name}" for name in _TREES}
    if not isinstance(described, dict) or set(described) - set(_OPTIONAL) not in (
        set(_REQUIRED),
        {*_REQUIRED, *of_trees},
    ):
        raise ValueError(f"it lists the arrays {described!r:.200}; expected {', '.join(_REQUIRED)}.")
    arrays = read()
    metric, count, recall = header.get("metric"), header.get("count"), header.get("recall")
    if metric not in METRICS or type(count) is not int or count < 0:
        raise ValueError(f"its metric is {metric!r} and its count {count!r}; expected {METRICS} and an integer.")
    _validate_shapes({name: (a.dtype.name, a.shape) for name, a in arrays.items()}, metric, count)
    if np.any(np.diff(arrays["ids"]) <= 0):
        raise ValueError("its ids do not ascend.")
    data = {name: jnp.asarray(a) for name, a in arrays.items()}
    trees = None
    if of_trees <= set(arrays):
        trees = ObliqueTrees(
            **{name: data[f"trees.{name}"] for name in _TREES}, num_features=len(arrays["trees.center"])
        )
        validate.trees(trees)
    return VectorIndex(
        data["codes"],
        Quantizer(*(data[f"quantizer.{name}"] for name in Quantizer._fields)),
        data["ids"],
        data.get("bias"),
        data.get("vectors"),
        trees,
        metric,
        count,
        _measured(recall),
    )


def _validate_shapes(stored: dict[str, tuple[str, tuple[int, ...]]], metric: str, count: int) -> None:
    """Raises unless all arrays have the dtypes and shapes that the prototypes and the number of vectors require."""
    shape = stored["quantizer.prototypes"][1]
    if len(shape) != 3 or shape[1] != LEAVES or not 1 <= shape[0] <= scan.MAX_CODEBOOKS:
        raise ValueError(f"its prototypes have the shape {shape}; expected [codebooks, {LEAVES}, features].")
    codebooks, _, features = shape
    expected = {
        "codes": ("uint8", (-(-count // scan.BLOCK), -(-codebooks // 2), scan.BLOCK)),
        "quantizer.prototypes": ("float32", shape),
        "quantizer.constants": ("float32", shape[:2]),
        "quantizer.encoder": ("float32", (codebooks, LEAVES, features + 1)),
        "quantizer.center": ("float32", (features + 1,)),
        "ids": ("int32", (count,)),
        "bias": ("float32", (count,)),
    }
    for name, described in expected.items():
        if name in stored and stored[name] != described:
            raise ValueError(f"{name} is {stored[name]}; expected {described}.")
    if "vectors" in stored and stored["vectors"][1] != (count, features):
        raise ValueError(f"vectors have the shape {stored['vectors'][1]}; expected {(count, features)}.")
    if metric == "l2" and "bias" not in stored:
        raise ValueError("it lacks the lengths, `bias`, that distances need.")


def _measured(recall: Any) -> tuple[tuple[float, ...], ...]:
    if not isinstance(recall, list) or not all(
        isinstance(row, list) and len(row) == 1 + len(TOPS) and all(type(x) in (int, float) for x in row)
        for row in recall
    ):
        raise ValueError(f"its recall is {recall!r:.200}; expected rows of {1 + len(TOPS)} numbers.")
    return tuple(tuple(row) for row in recall)
