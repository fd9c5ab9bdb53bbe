"""Writes a file as a whole or not at all, whatever fails meanwhile and whoever else writes it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import stat
from collections.abc import Callable
from typing import Any, BinaryIO


def replace_file(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file by `write(file)`; an existing file is replaced only by a complete one that is on the disk.

    Several threads or processes may write the same path: each has a partial file of its own, and the last one to finish
    wins. A symbolic link is kept, and its target replaced. An existing file keeps its permissions.

    Args:
      path: the file.
      write: is called with a new binary file that can be written and sought in.

    Raises:
      TypeError: `path` is not a path.
      ValueError: `path` is something other than a file, such as a folder or a device.
      OSError: the file cannot be written; the error names `path`.
    """
    name = path_name(path)
    target = pathlib.Path(os.path.realpath(name))
    try:
        mode = _mode(target, name)
        partial = target.with_name(f".{secrets.token_hex(8)}.partial")  # short, whatever the length of the name
        try:
            with open(partial, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())  # else a crash after the renaming could leave an empty file
            if mode is not None:
                os.chmod(partial, mode)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None  # the user has never seen the partial file's name
    _sync_folder(target.parent)


def path_name(path: Any, argument: str = "path") -> str:
    """Returns `path`, the argument of that name, as a string.

    Raises:
      TypeError: it is neither a string nor a path.
    """
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str):
        raise TypeError(f"`{argument}` is {type(path).__name__}; expected the path of a file, as str or pathlib.Path.")
    return name


def validate_regular(status: os.stat_result, name: str) -> None:
    """Raises ValueError unless the file `name`, which has this status, is a regular one."""
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "device, a pipe or a socket"
        raise ValueError(f"`path` is {name!r}, which is a {kind}; expected a regular file.")


def _mode(target: pathlib.Path, name: str) -> int | None:
    """Returns the permissions of an existing regular file; None if there is no file."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    validate_regular(status, name)
    return stat.S_IMODE(status.st_mode)


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes the renaming last through a crash, on file systems that can: the file is whole either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
