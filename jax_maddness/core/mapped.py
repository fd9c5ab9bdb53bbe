"""Members of a zip archive that are mapped into memory: where they begin, and what aligns them."""

from __future__ import annotations

import mmap
import struct
import zipfile

import jax
import numpy as np

ALIGNMENT = 64
"""JAX takes an array of NumPy without a copy if it begins at a multiple of so many bytes."""
_LOCAL = struct.Struct("<4s22xHH")
"""A local header of the zip format: its signature, the lengths of the name and of the extra field that follow it."""
_ZIP64 = 20
"""Bytes that zipfile adds to the extra field of a large member."""
_FIELD = struct.Struct("<HHH")
"""The start of an extra field as Android's zipalign writes it: identifier, length, alignment; zeros follow."""
_IDENTIFIER = 0xD935


def padding(at: int, name: str, num_bytes: int) -> bytes:
    """Returns an extra field with which the contents of a member begin at a multiple of `ALIGNMENT` bytes.

    An array in a `.npy` file does, too, as NumPy makes the length of its header a multiple of 64.

    Args:
      at: the place of the member in the archive.
      name: its name, in ASCII.
      num_bytes: the number of bytes of its contents.
    """
    large = num_bytes * 1.05 > zipfile.ZIP64_LIMIT  # zipfile's own rule
    begins = at + _LOCAL.size + len(name) + _ZIP64 * large + _FIELD.size
    zeros = -begins % ALIGNMENT
    return _FIELD.pack(_IDENTIFIER, 2 + zeros, ALIGNMENT) + bytes(zeros)


def member(archive: zipfile.ZipFile, name: str) -> memoryview:
    """Maps the contents of a member that is stored as it is, for reading; it may be used when the archive is closed.

    Raises:
      ValueError: the archive is damaged, or ends before the member does.
    """
    info, file = archive.getinfo(name), archive.fp
    assert file is not None
    file.seek(info.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
        raise ValueError(f"{name!r} has no header of its own in the archive.")
    _, of_name, of_extra = _LOCAL.unpack(header)
    start = info.header_offset + _LOCAL.size + of_name + of_extra
    within = start % mmap.ALLOCATIONGRANULARITY
    # A mapping beyond the end of the file, whose pages could not be read, is a ValueError.
    pages = mmap.mmap(file.fileno(), within + info.file_size, access=mmap.ACCESS_READ, offset=start - within)
    # Rows are read here and there. Without this, the kernel read 4 MB around each of them from a disk.
    pages.madvise(mmap.MADV_RANDOM)
    return memoryview(pages)[within:]


def validate_alignment(array: np.ndarray, name: str) -> None:
    """Raises ValueError unless an array begins where JAX takes it without a copy."""
    if array.size and array.ctypes.data % ALIGNMENT:
        raise ValueError(
            f"{name} does not begin at a multiple of {ALIGNMENT} bytes, as in files of earlier versions, and cannot be "
            "mapped. Load the file without `mmap`, and save it again."
        )


def on_device(array: np.ndarray, name: str) -> jax.Array:
    """Returns an array that is mapped as one of JAX, in the same memory.

    Raises:
      ValueError: the default device is no CPU, or JAX copies the array all the same.
    """
    (device,) = jax.device_put(np.zeros(0, np.uint8)).devices()
    if device.platform != "cpu":
        raise ValueError(f"{name} can be mapped into the memory of a CPU, not of {device}. Load it without `mmap`.")
    result = jax.device_put(array, may_alias=True)
    if array.size and result.unsafe_buffer_pointer() != array.ctypes.data:
        raise ValueError(f"{name} was copied into memory by this version of JAX. Load it without `mmap`.")
    return result
