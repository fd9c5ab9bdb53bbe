"""Saves and loads an index as one stable, versioned file; `core/archive.py` describes the format.

Version 2 added `origin` and `exponent`, version 3 `criterion`, version 4 lists. An index is written in the oldest
version that can represent it, so that older releases can read it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core import archive, arguments, mapped, validate
from jax_maddness.core.pytrees import register_with_flax
from jax_maddness.core.trees.base import validate_finite
from jax_maddness.core.types import LEAVES, ObliqueTrees
from jax_maddness.retrieval import scan
from jax_maddness.retrieval.calibrate import TOPS
from jax_maddness.retrieval.capacity import with_capacity
from jax_maddness.retrieval.index import METRICS, VectorIndex
from jax_maddness.retrieval.lists import Lists, longest_of, validate_lists
from jax_maddness.retrieval.quantizer import Quantizer
from jax_maddness.retrieval.second_term import SecondTerm

FORMAT = "jax_maddness.index"
VERSION = 4
_REQUIRED = ("codes", *(f"quantizer.{name}" for name in Quantizer._fields), "ids")
_TREES = tuple(field.name for field in dataclasses.fields(ObliqueTrees) if field.name != "num_features")
_LISTS = ("centers", "ranges", "positions")
_OPTIONAL = ("bias", "vectors", "origin")
_FLOATS = (*(f"quantizer.{name}" for name in Quantizer._fields), "bias", "origin", "lists.centers")
_IN_FILE = ("vectors",)
"""Arrays that stay in the file with `mmap=True`."""
_LARGEST = np.iinfo(np.int32).max


def save_index(path: str | os.PathLike[str], index: VectorIndex) -> None:
    """Writes `index` to the file `path`, as a whole or not at all: an existing file is replaced only by a complete one.

    The file is a zip archive of arrays in NumPy's `.npy` format, with a header in JSON and digests of all contents.

    Args:
      path: the file. No suffix is added.
      index: an index that `build_index` made. A sharded index is gathered first, and its sharding is not saved; nor
        is the room that `with_capacity` gave.

    Raises:
      TypeError: `path` is not a path, or `index` is not an index, or is traced.
      ValueError: the arrays of `index` do not agree with each other, or a value is not finite or out of its range; or
        `path` is something other than a file, such as a folder or a device.
      OSError: the file cannot be written; an existing file is unchanged.

    Example:
      >>> import pathlib, tempfile
      >>> from jax_maddness import build_index
      >>> index = build_index(np.random.default_rng(0).standard_normal((1000, 8)), 4)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_index(pathlib.Path(folder) / "vectors.index", index)
      ...     load_index(pathlib.Path(folder) / "vectors.index").count
      1000
    """
    index = with_capacity(index, None)
    arrays: dict[str, Any] = {
        "codes": index.codes,
        **{f"quantizer.{name}": a for name, a in index.quantizer._asdict().items()},
        "ids": index.ids,
        **{name: a for name in _OPTIONAL if (a := getattr(index, name)) is not None},
    }
    if index.lists is not None:
        arrays |= {f"lists.{name}": getattr(index.lists, name) for name in _LISTS}
    if index.trees is not None:
        arrays |= {f"trees.{name}": getattr(index.trees, name) for name in _TREES}
    static = {"metric": index.metric, "count": index.count, "recall": index.recall}
    if index.measured not in (0, index.count):
        static["measured"] = index.measured
    version = 1
    if index.origin is not None or index.exponent:
        version, static["exponent"] = 2, index.exponent
    if index.criterion:
        version, static["exponent"], static["criterion"] = 3, index.exponent, index.criterion
    if index.lists is not None:
        version = 4
        static |= {"exponent": index.exponent, "criterion": index.criterion, "probe": index.lists.probe}
    on_host = {name: np.asarray(jax.device_get(a)) for name, a in arrays.items()}
    try:
        _validate(on_host, static)
    except ValueError as error:
        raise ValueError(f"`index` cannot be saved: {error}") from None
    archive.write(path, FORMAT, version, static, on_host)


def load_index(path: str | os.PathLike[str], *, mmap: bool = False) -> VectorIndex:
    """Reads an index that `save_index` wrote.

    The contents are validated: digests, shapes, dtypes and the ranges of values. Nothing in the file is executed.

    With `mmap=True` the exact vectors stay in the file, which may be larger than the memory, and a search on CPUs reads
    those of its candidates alone. Codes and everything else are in memory as always. Of the vectors, shape, dtype and
    size are then validated, but neither their digest nor that they are finite, for which all of them would have to be
    read: load the file without `mmap` once to validate it. Pass the index to compiled functions as an argument; a
    function that only refers to it would hold a copy. The file must not be changed as long as the index is used;
    writing another index to its path (`save_index`) or removing it is safe.

    Args:
      path: the file.
      mmap: whether the exact vectors stay in the file.

    Returns:
      The index, on the default device; `shard_index` shards it. See `save_index` for an example.

    Raises:
      TypeError: `path` is not a path.
      OSError: there is no such file, or it cannot be opened.
      ValueError: the file is truncated, damaged, not an index, or of a newer version; the message says which. With
        `mmap`, the default device is no CPU, or a version before this argument wrote the file: save it again.
    """
    register_with_flax()
    in_file = _IN_FILE if arguments.flag(mmap, "mmap") else ()
    try:
        return archive.read(
            path, FORMAT, VERSION, "an index", functools.partial(_assemble, in_file=in_file), mapped=in_file
        )
    except ValueError:
        if _is_op(path):
            raise ValueError(
                f"{os.fspath(path)!r} cannot be loaded as an index: it does not say {FORMAT!r}, but holds an op. "
                "`jax_maddness.load` reads it."
            ) from None
        raise


def _is_op(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file has the header of an op, of any version."""
    try:
        return archive.read(path, "jax_maddness.op", 1 << 30, "an op", lambda header, read: True)
    except (ValueError, OSError):
        return False


def _assemble(header: dict[str, Any], read: archive.Reader, in_file: tuple[str, ...]) -> VectorIndex:
    described = header.get("arrays")
    of_trees, of_lists = {f"trees.{name}" for name in _TREES}, {f"lists.{name}" for name in _LISTS}
    names = set(described) - set(_OPTIONAL) if isinstance(described, dict) else set()
    if names not in ({*_REQUIRED, *trees, *lists} for trees in (set(), of_trees) for lists in (set(), of_lists)):
        raise ValueError(f"it lists the arrays {described!r:.200}; expected {', '.join(_REQUIRED)}.")
    arrays = read()
    _validate(arrays, header, in_file)
    data = {name: mapped.on_device(a, name) if name in in_file else jnp.asarray(a) for name, a in arrays.items()}
    return VectorIndex(
        data["codes"],
        Quantizer(*(data[f"quantizer.{name}"] for name in Quantizer._fields)),
        data["ids"],
        data.get("bias"),
        data.get("vectors"),
        _trees(data),
        header["metric"],
        header["count"],
        tuple(map(tuple, header["recall"])),
        data.get("origin"),
        header.get("exponent", 0),
        tuple(header.get("criterion", ())),
        lists=_lists(data, header),
        measured=header.get("measured", 0),
    )


def _lists(arrays: dict[str, Any], header: dict[str, Any]) -> Lists | None:
    """Returns the lists of an index, if it has any."""
    if "lists.ranges" not in arrays:
        return None
    longest = longest_of(np.asarray(arrays["lists.ranges"])[:, 1])
    of_centers, ranges, positions = (jnp.asarray(arrays[f"lists.{name}"]) for name in _LISTS)
    return Lists(of_centers, ranges, positions, header["probe"], longest)


def _trees(arrays: dict[str, Any]) -> ObliqueTrees | None:
    """Returns the trees of an index, if it has any."""
    named = {name: arrays[f"trees.{name}"] for name in _TREES if f"trees.{name}" in arrays}
    return ObliqueTrees.of_arrays(named, arrays["quantizer.center"].size) if named else None


def _validate(arrays: dict[str, np.ndarray], static: dict[str, Any], in_file: tuple[str, ...] = ()) -> None:
    """Raises ValueError unless an index with these arrays and static fields is one that `build_index` could make.

    The values of arrays that stay in the file are not read.
    """
    metric, count, exponent = static.get("metric"), static.get("count"), static.get("exponent", 0)
    if metric not in METRICS or type(count) is not int or not 0 <= count <= _LARGEST:
        raise ValueError(f"its metric is {metric!r} and its count {count!r}; expected {METRICS} and an integer.")
    if type(exponent) is not int or not -150 < exponent < 128:
        raise ValueError(f"its exponent is {exponent!r}; expected an integer between -149 and 127.")
    if type(measured := static.get("measured", 0)) is not int or not 0 <= measured <= _LARGEST:
        raise ValueError(f"its recall was measured with {measured!r} vectors; expected an integer.")
    has_lists = "lists.ranges" in arrays
    _validate_recall(static.get("recall"), has_lists)
    _validate_criterion(static.get("criterion", ()), metric, has_lists)
    _validate_shapes({name: (a.dtype.name, a.shape) for name, a in arrays.items()}, metric, count)
    criterion = static.get("criterion", ())
    if has_lists and metric == "l2" and criterion and criterion[1] not in range(len(arrays["quantizer.prototypes"])):
        raise ValueError(f"its criterion is {criterion!r}; expected a number of codebooks as the second number.")
    for name, a in arrays.items():
        if name in {*_FLOATS, "vectors"} - {*in_file}:
            validate_finite(name, a.astype(np.float32))
    if has_lists:
        named = {name: arrays[f"lists.{name}"] for name in _LISTS}
        validate_lists(named, static.get("probe"), count, arrays["quantizer.center"].size)
    ids = arrays["ids"]
    if np.any(np.diff(ids) <= 0) or (ids.size and ids[0] < 0):
        raise ValueError("its ids do not ascend, or are negative.")
    if (trees := _trees(arrays)) is not None:
        validate.trees(trees)
        if trees.num_codebooks != len(arrays["quantizer.prototypes"]):
            raise ValueError(f"its trees have {trees.num_codebooks} codebooks, unlike its prototypes.")
        ObliqueTrees.validate_values({name: getattr(trees, name) for name in _TREES}, trees.num_features)


def _validate_shapes(stored: dict[str, tuple[str, tuple[int, ...]]], metric: str, count: int) -> None:
    """Raises unless all arrays have the dtypes and shapes that the prototypes and the number of vectors require."""
    shape = stored["quantizer.prototypes"][1]
    if len(shape) != 3 or shape[1] != LEAVES or not 1 <= shape[0] <= scan.MAX_CODEBOOKS:
        raise ValueError(f"its prototypes have the shape {shape}; expected [codebooks, {LEAVES}, features].")
    codebooks, _, features = shape
    places = stored["lists.positions"][1][0] if "lists.positions" in stored else count
    expected = {
        "codes": ("uint8", (-(-places // scan.BLOCK), -(-codebooks // 2), scan.BLOCK)),
        "quantizer.prototypes": ("float32", shape),
        "quantizer.constants": ("float32", shape[:2]),
        "quantizer.encoder": ("float32", (codebooks, LEAVES, features + 1)),
        "quantizer.center": ("float32", (features + 1,)),
        "ids": ("int32", (count,)),
        "bias": ("float32", (count,)),
        "origin": ("float32", (features,)),
    }
    for name, described in expected.items():
        if name in stored and stored[name] != described:
            raise ValueError(f"{name} is {stored[name]}; expected {described}.")
    if "vectors" in stored and (
        stored["vectors"][1] != (count, features) or jnp.dtype(stored["vectors"][0]) not in validate.ROW_DTYPES
    ):
        raise ValueError(f"vectors is {stored['vectors']}; expected floats of the shape {(count, features)}.")
    if metric == "l2" and ("bias" in stored) == ("origin" in stored):
        raise ValueError("distances need either the lengths, `bias`, as in version 1, or `origin`.")
    if metric != "l2" and "origin" in stored:
        raise ValueError(f"it has an `origin`, which {metric!r} does not use.")


def _validate_criterion(criterion: Any, metric: str, has_lists: bool) -> None:
    """Raises unless `criterion` has finite numbers, as many as that for `metric` has, or none."""
    numbers: Any = criterion if isinstance(criterion, list | tuple) else [None]
    known = 1 + has_lists if metric == "l2" else len(SecondTerm._fields)
    if len(numbers) not in (0, known) or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise ValueError(
            f"its criterion is {criterion!r:.200}; expected {known} finite numbers for {metric!r}, or none."
        )


def _validate_recall(recall: Any, has_lists: bool) -> None:
    """Raises unless `recall` has rows of a number of candidates and a share for each of `TOPS`, and of lists if any."""
    rows = recall if isinstance(recall, list | tuple) else [None]
    if not all(
        isinstance(row, list | tuple)
        and len(row) == 1 + len(TOPS) + has_lists
        and all(type(x) in (int, float) for x in row)
        and row[0] >= 0
        and all(0 <= share <= 1 for share in row[1 : 1 + len(TOPS)])
        and (not has_lists or (type(row[-1]) is int and row[-1] >= 1))
        for row in rows
    ):
        raise ValueError(
            f"its recall is {recall!r:.200}; expected rows of a number of candidates and {len(TOPS)} shares."
        )
