"""Reader of CTranslate2's `model.bin`, which holds the named arrays of a model.

All numbers are little-endian. A string is its length (uint16) and its bytes, of which the last is zero.

    uint32 version, string model, uint32 revision
    uint32 number of arrays; for each: string name, uint8 rank, uint32 shape [rank], uint8 dtype, uint32 size, the bytes
    uint32 number of aliases; for each: string alias, string name

Matrices of weights are [outputs, features]. In int8 and int16 they come with an array of the same name and the ending
`_scale`, by which the float weights were multiplied: one number for each row in int8, one for the matrix in int16.
"""

from __future__ import annotations

import pathlib
import struct

import ml_dtypes
import numpy as np

DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16, ml_dtypes.bfloat16)
"""The dtypes of arrays, by their numbers in the file."""
SCALE = "_scale"


class _Cursor:
    """Position in the bytes of a file."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        """Returns the next bytes, and moves behind them."""
        if count > len(self.data) - self.at:
            raise ValueError(f"The file ends at byte {len(self.data)}, inside of an array or a name: it is not whole.")
        self.at += count
        return self.data[self.at - count : self.at]

    def integers(self, layout: str) -> tuple[int, ...]:
        """Returns the next integers, in a layout of `struct`."""
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def string(self) -> str:
        """Returns the next string."""
        return self.take(*self.integers("H"))[:-1].decode()


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Returns all arrays by their names and aliases; weights in int8 or int16 are dequantised to float32.

    Raises:
      ValueError: the file is not whole, or has another format.
    """
    file = _Cursor(pathlib.Path(path).read_bytes())
    if (version := file.integers("I")) != (6,):
        raise ValueError(f"{path} has version {version[0]} of the format; expected 6.")
    file.string(), file.integers("I")
    arrays: dict[str, np.ndarray] = {}
    for _ in range(*file.integers("I")):
        name, (rank,) = file.string(), file.integers("B")
        shape = file.integers(f"{rank}I")
        dtype, size = file.integers("BI")
        if dtype >= len(DTYPES):
            raise ValueError(f"The array {name!r} in {path} has dtype {dtype}; expected 0 to {len(DTYPES) - 1}.")
        arrays[name] = np.frombuffer(file.take(size), DTYPES[dtype]).reshape(shape)
    for _ in range(*file.integers("I")):
        alias, name = file.string(), file.string()
        arrays[alias] = arrays[name]
    return {name: _dequantised(name, arrays) for name in arrays if not name.endswith(SCALE)}


def _dequantised(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    array, scale = arrays[name], arrays.get(name + SCALE)
    if scale is None:
        return array
    return array.astype(np.float32) / scale.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
