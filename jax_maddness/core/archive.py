"""A stable, versioned file of arrays: the format that `save`, `save_index` and `save_model` share.

The file is a zip archive of plain members, stored without compression, as NumPy's `.npz` is:

    header.json         format, version, static fields, for each array dtype, shape and SHA-256, and the SHA-256 of the
                        header itself (as JSON with sorted keys, without that entry)
    NAME.npy, ...       each array in NumPy's `.npy` format

The reasons for this format: every language can read zip and JSON, `numpy.load(path)` opens the arrays without this
package, and nothing in the file can be executed (it has no pickle). bfloat16, which `.npy` does not know, is stored as
its bits in uint16, with the true dtype in the header. The digests detect damage; they are not a signature.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

DTYPES = ("uint8", "int8", "int32", "float32", "float16", "bfloat16")
"""The dtypes that a file may hold."""
Reader = Callable[[], dict[str, np.ndarray]]
"""Reads all arrays of a file; raises ValueError if one is damaged."""
_HEADER = "header.json"
_MAX_HEADER_BYTES = 1 << 20
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
    path = pathlib.Path(path).resolve()  # a symbolic link is kept, and its target replaced
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            _write(archive, _HEADER, json.dumps(header, indent=1).encode())
            for name, array in arrays.items():
                _write(archive, f"{name}.npy", _npy(array))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(
    path: str | os.PathLike[str],
    kind: str,
    newest: int,
    noun: str,
    assemble: Callable[[dict[str, Any], Reader], _T],
    dtypes: tuple[str, ...] = DTYPES,
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

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, of another format or newer, or `assemble` raised an error.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = _header(archive, kind, newest)
            return assemble(header, lambda: _arrays(archive, header["arrays"], dtypes))
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
        raise ValueError(f"{os.fspath(path)!r} cannot be loaded as {noun}: {error}") from error


def _arrays(archive: zipfile.ZipFile, described: dict[str, Any], dtypes: tuple[str, ...]) -> dict[str, np.ndarray]:
    members = {_HEADER, *(f"{name}.npy" for name in described)}
    if sorted(archive.namelist()) != sorted(members):
        raise ValueError(f"it has the members {archive.namelist()!r:.200}; expected {sorted(members)}.")
    return {name: _array(archive, name, described[name], dtypes) for name in described}


def _header(archive: zipfile.ZipFile, kind: str, newest: int) -> dict[str, Any]:
    if archive.getinfo(_HEADER).file_size > _MAX_HEADER_BYTES:
        raise ValueError(f"its {_HEADER} is larger than {_MAX_HEADER_BYTES} bytes.")
    header = json.loads(archive.read(_HEADER))
    if not isinstance(header, dict) or header.get("format") != kind:
        raise ValueError(f"its {_HEADER} does not say {kind!r}.")
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


def _array(archive: zipfile.ZipFile, name: str, described: dict[str, Any], dtypes: tuple[str, ...]) -> np.ndarray:
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
    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
