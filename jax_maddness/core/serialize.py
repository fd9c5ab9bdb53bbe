"""save / load: an op as one stable, versioned file.

The file is a zip archive of plain members, stored without compression, as NumPy's `.npz` is:

    header.json                    format, version, static fields, for each array dtype, shape and SHA-256, and the
                                   SHA-256 of the header itself (as JSON with sorted keys, without that entry)
    trees.indices.npy, ...         each array in NumPy's `.npy` format

Version 1 knows `SplitTrees` alone, version 2 brought `ObliqueTrees`, which have other arrays, version 3 an op's exact
term. An op is written as the oldest version that knows all of it.

Why: every language has a zip and a JSON reader, `numpy.load(path)` opens the arrays without this package, and
nothing in it can execute (no pickle). bfloat16, which `.npy` does not know, is stored as its bits in uint16 with the
true dtype in the header. The digests find damage; they are no signature.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core import checks
from jax_maddness.core.types import ExactTerm, LookupTables, MaddnessOp, ObliqueTrees, SplitTrees

FORMAT = "jax_maddness.op"
VERSION = 3
_HEADER = "header.json"
_TREES: dict[type[Any], tuple[int, tuple[str, ...]]] = {  # the version that added them, their arrays in order
    SplitTrees: (1, ("trees.indices", "trees.thresholds")),
    ObliqueTrees: (2, ("trees.features", "trees.projections", "trees.thresholds", "trees.center", "trees.scale")),
}
_TABLES = ("tables.values", "tables.scale", "tables.offset")
_OPTIONAL = {"weights": 1, "exact.up": 3, "exact.indices": 3, "exact.down": 3}  # the version that added each
_DTYPES = ("uint8", "int8", "int32", "float32", "float16", "bfloat16")
_MAX_HEADER_BYTES = 1 << 20


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
    fields = (*of_trees, *_TABLES, *_OPTIONAL)
    arrays = {name: np.asarray(jax.device_get(a)) for name in fields if (a := _get(op, name)) is not None}
    version = max([version, *(_OPTIONAL.get(name, 1) for name in arrays)])
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise TypeError(f"`op.{name}` is {array.dtype}; a file holds {', '.join(_DTYPES)}. Cast it first.")
    _check_contents(arrays, op.num_features)
    header = {
        "format": FORMAT,
        "version": version,
        "num_features": op.num_features,
        "arrays": {name: describe(array) for name, array in arrays.items()},
    }
    header["sha256"] = digest_header(header)
    path = pathlib.Path(path).resolve()  # a link stays a link
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            write(archive, _HEADER, json.dumps(header, indent=1).encode())
            for name, array in arrays.items():
                write(archive, f"{name}.npy", npy(array))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> MaddnessOp:
    """Reads an op that `save` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated, damaged, not an op, or of a newer version; the message says which.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except FileNotFoundError:
        raise
    except (
        zipfile.BadZipFile,
        EOFError,
        KeyError,
        TypeError,
        OSError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be loaded as an op: {error}") from error


def _read(archive: zipfile.ZipFile) -> MaddnessOp:
    header = _header(archive)
    described: Any = header.get("arrays")
    kind = _kind(described, header["version"])
    members = {_HEADER, *(f"{name}.npy" for name in described)}
    if sorted(archive.namelist()) != sorted(members):
        raise ValueError(f"it has the members {archive.namelist()!r:.200}; expected {sorted(members)}.")
    arrays = {name: read_array(archive, name, described[name]) for name in described}
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
    checks.trees(op.trees)
    checks.op(op)
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


def _header(archive: zipfile.ZipFile) -> dict[str, Any]:
    if archive.getinfo(_HEADER).file_size > _MAX_HEADER_BYTES:
        raise ValueError(f"its {_HEADER} is larger than {_MAX_HEADER_BYTES} bytes.")
    header = json.loads(archive.read(_HEADER))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"its {_HEADER} does not say {FORMAT!r}.")
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise ValueError(f"its version is {version!r}; expected a positive integer.")
    if version > VERSION:
        raise ValueError(f"it has format version {version}, this jax_maddness reads up to {VERSION}. Upgrade it.")
    if header.get("sha256") != digest_header(header):
        raise ValueError(f"its {_HEADER} does not have the digest that it states: it was changed.")
    return header


def digest_header(header: dict[str, Any]) -> str:
    """SHA-256 of all that the header says besides."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_array(
    archive: zipfile.ZipFile, name: str, described: dict[str, Any], dtypes: tuple[str, ...] = _DTYPES
) -> np.ndarray:
    """The member `name`, if it is what its header describes."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed; expected it stored.")
    stored = np.lib.format.read_array(io.BytesIO(archive.read(info)), allow_pickle=False)
    if described.get("dtype") not in dtypes:
        raise ValueError(f"{name} has dtype {described.get('dtype')!r}; expected one of {', '.join(dtypes)}.")
    dtype = jnp.dtype(described["dtype"])
    if stored.dtype != _stored_dtype(dtype):
        raise ValueError(f"{name} is stored as {stored.dtype}; expected {_stored_dtype(dtype)} for {dtype}.")
    array = stored.view(dtype)
    if describe(array) != described:
        raise ValueError(f"{name} does not have the shape and digest that its header states: it was changed.")
    return array


def describe(array: np.ndarray) -> dict[str, Any]:
    """What a header says of an array."""
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}


def _stored_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint16) if dtype == jnp.bfloat16 else dtype


def npy(array: np.ndarray) -> bytes:
    """The array in NumPy's format."""
    buffer = io.BytesIO()
    array = np.ascontiguousarray(array).reshape(array.shape)
    np.lib.format.write_array(buffer, array.view(_stored_dtype(array.dtype)), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def write(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """A member with a fixed date, so that equal ops make equal files."""
    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)


def _get(op: MaddnessOp, name: str) -> Any:
    value: Any = op
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value
