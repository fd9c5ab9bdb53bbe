"""A stable, versioned file of arrays: the format that `save`, `save_index` and `save_model` share.

The file is a zip archive of plain members, stored without compression, as NumPy's `.npz` is:

    header.json         format, version, static fields, for each array dtype, shape and SHA-256, and the SHA-256 of the
                        header itself (as JSON with sorted keys, without that entry)
    NAME.npy, ...       each array in NumPy's `.npy` format

The reasons for this format: every language can read zip and JSON, `numpy.load(path)` opens the arrays without this
package, and nothing in the file can be executed (it has no pickle). bfloat16, which `.npy` does not know, is stored as
its bits in uint16, with the true dtype in the header. The digests detect damage; they are not a signature.

Members start such that the entries of an array begin at a multiple of 64 bytes, by an extra field of the zip format
that every reader skips: arrays can be mapped into memory (`mapped.py`), and JAX takes them from there without a copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, TypeVar

import jax.numpy as jnp
import numpy as np

from jax_maddness.core import mapped as mapping
from jax_maddness.core.atomic import path_name, replace_file, validate_regular

DTYPES = ("uint8", "int8", "int32", "float32", "float16", "bfloat16")
"""The dtypes that a file may hold."""
Reader = Callable[[], dict[str, np.ndarray]]
"""Reads all arrays of a file; raises ValueError if one is damaged."""
_HEADER = "header.json"
_MAX_HEADER_BYTES = 1 << 20
_READERS = {"jax_maddness.op": "load", "jax_maddness.index": "load_index", "jax_maddness.model": "load_model"}
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<descr>[<|][a-zA-Z]\d{0,2})', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[\d, ]{0,999})\), \} *\n",
    re.DOTALL,
)
_T = TypeVar("_T")


def write(
    path: str | os.PathLike[str], kind: str, version: int, static: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """Writes a file as a whole or not at all: an existing file is replaced only by a complete one.

    Args:
      path: the file.
      kind: the name of the format, which `read` compares.
      version: the version of the format, from 1.
      static: further entries of the header, which JSON can represent.
      arrays: the arrays by name, of `DTYPES`.
    """
    header = {
        "format": kind,
        "version": version,
        **static,
        "arrays": {name: describe(array) for name, array in arrays.items()},
    }
    header["sha256"] = digest_header(header)

    def write_members(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _write(archive, _HEADER, json.dumps(header, indent=1).encode())
            for name, array in arrays.items():
                _write(archive, f"{name}.npy", _npy(array))

    replace_file(path, write_members)


def read(
    path: str | os.PathLike[str],
    kind: str,
    newest: int,
    noun: str,
    assemble: Callable[[dict[str, Any], Reader], _T],
    dtypes: tuple[str, ...] = DTYPES,
    mapped: Collection[str] = (),
) -> _T:
    """Reads a file that `write` wrote, and returns the result of `assemble(header, reader)`.

    Args:
      path: the file.
      kind: the name of the format that is expected.
      newest: the newest version of the format that is understood.
      noun: the word for the contents in error messages, such as "an op".
      assemble: is called with the validated header, and a function that reads and validates all arrays. It may raise
        ValueError.
      dtypes: the dtypes that are allowed.
      mapped: names of arrays that stay in the file: they are mapped into memory, and their digests are not compared.

    Raises:
      TypeError: `path` is not a path.
      OSError: there is no such file, or it cannot be opened.
      ValueError: the file is damaged, of another format or newer, or `assemble` raised an error.
    """
    name = path_name(path)
    validate_regular(os.stat(name), name)  # before it is opened, which waits where it is a pipe
    with open(name, "rb") as file:
        with _one_error(name, noun, lacks_memory=False):
            archive = zipfile.ZipFile(file)
            validate_sizes(archive, os.fstat(file.fileno()).st_size)
            header = _header(archive, kind, newest)
        with _one_error(name, noun, lacks_memory=True):
            return assemble(header, lambda: _arrays(archive, header["arrays"], dtypes, mapped))


@contextlib.contextmanager
def _one_error(name: str, noun: str, lacks_memory: bool) -> Iterator[None]:
    """Raises one kind of error for whatever a damaged file causes in zipfile, json, NumPy and this package.

    Args:
      name: the file.
      noun: the word for its contents.
      lacks_memory: whether a MemoryError is the machine's: all sizes have been compared with that of the file.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) and lacks_memory:
            raise
        raise ValueError(f"{name!r} cannot be loaded as {noun}: {error or type(error).__name__}") from error


def validate_sizes(archive: zipfile.ZipFile, num_bytes: int) -> None:
    """Raises unless all members are stored as they are and have room in the file, so that reading allocates no more."""
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"{info.filename!r:.200} is compressed; expected it stored.")
    if sum(info.file_size for info in archive.infolist()) > num_bytes:
        raise ValueError("its members are larger than the file.")


def _arrays(
    archive: zipfile.ZipFile, described: dict[str, Any], dtypes: tuple[str, ...], mapped: Collection[str]
) -> dict[str, np.ndarray]:
    members = {_HEADER, *(f"{name}.npy" for name in described)}
    if sorted(archive.namelist()) != sorted(members):
        raise ValueError(f"it has the members {archive.namelist()!r:.200}; expected {sorted(members)!r:.200}.")
    return {name: _array(archive, name, described[name], dtypes, name in mapped) for name in described}


def _header(archive: zipfile.ZipFile, kind: str, newest: int) -> dict[str, Any]:
    if archive.getinfo(_HEADER).file_size > _MAX_HEADER_BYTES:
        raise ValueError(f"its {_HEADER} is larger than {_MAX_HEADER_BYTES} bytes.")
    header = json.loads(archive.read(_HEADER))
    stated = header.get("format") if isinstance(header, dict) else None
    if stated != kind:
        reader = _READERS.get(stated) if isinstance(stated, str) else None
        hint = f" It says {stated!r}: read it with `{reader}`." if reader else ""
        raise ValueError(f"its {_HEADER} does not say {kind!r}.{hint}")
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise ValueError(f"its version is {version!r}; expected a positive integer.")
    if version > newest:
        raise ValueError(f"it has format version {version}, this jax_maddness reads up to {newest}. Upgrade it.")
    if header.get("sha256") != digest_header(header):
        raise ValueError(f"its {_HEADER} does not have the digest that it states: it was changed.")
    return header


def digest_header(header: dict[str, Any]) -> str:
    """Returns the SHA-256 of `header`, as JSON with sorted keys, without its entry `sha256`."""
    content = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _array(archive: zipfile.ZipFile, name: str, described: Any, dtypes: tuple[str, ...], is_mapped: bool) -> np.ndarray:
    if not isinstance(described, dict) or described.get("dtype") not in dtypes:
        raise ValueError(f"{name} is described by {described!r:.200}; expected a dtype of {', '.join(dtypes)}.")
    dtype = jnp.dtype(described["dtype"])
    if is_mapped:
        array = parsed(mapping.member(archive, f"{name}.npy"), name, dtype)
        mapping.validate_alignment(array, name)
        if [array.dtype.name, list(array.shape)] != [described["dtype"], described.get("shape")]:
            raise ValueError(f"{name} does not have the shape that its header states: it was changed.")
        return array
    array = parsed(archive.read(f"{name}.npy"), name, dtype)
    if describe(array) != described:
        raise ValueError(f"{name} does not have the shape and digest that its header states: it was changed.")
    return array


def parsed(data: bytes | memoryview, name: str, dtype: np.dtype) -> np.ndarray:
    """Returns the array in a `.npy` file of version 1.0, in C order, without a copy.

    NumPy's own reader evaluates the header as Python, and allocates what it asks for, before it compares the size.
    """
    match = _NPY.match(data)
    if match is None or match.end() != 10 + int.from_bytes(data[8:10], "little"):
        raise ValueError(f"{name} is not a .npy file of version 1.0 in C order.")
    descr, dims = match["descr"].decode(), [int(n) for n in match["shape"].split(b",") if n.strip()]
    if descr != np.lib.format.dtype_to_descr(_stored_dtype(dtype)):
        stated = "a pickle" if descr == "|O" else np.dtype(descr).name
        raise ValueError(f"{name} is stored as {stated}; expected {_stored_dtype(dtype)} for {dtype}.")
    if math.prod(dims) * dtype.itemsize != len(data) - match.end():
        raise ValueError(f"{name} has {len(data) - match.end()} bytes, which are not an array of the shape {dims}.")
    return np.frombuffer(data, _stored_dtype(dtype), offset=match.end()).view(dtype).reshape(dims)


def describe(array: np.ndarray) -> dict[str, Any]:
    """Returns the entry of `array` in a header: its dtype, shape and SHA-256."""
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}


def _stored_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint16) if dtype == jnp.bfloat16 else dtype


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    array = np.ascontiguousarray(array).reshape(array.shape)
    np.lib.format.write_array(buffer, array.view(_stored_dtype(array.dtype)), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _write(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Adds a member with a fixed date, so that equal contents make equal files."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.extra = mapping.padding(archive.start_dir, name, len(data))
    archive.writestr(info, data)
