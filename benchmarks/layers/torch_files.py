"""Files of weights that torch wrote, read without torch: archives, and the format before them.

Only tensors are read, and nothing that such a file says is executed: a file that needs more is refused.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np

_STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
_MAGIC = 0x1950A86A20F9469CFC6C
"""First object of a file that is no archive."""


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A part of a storage, which is named by its key."""

    key: str
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, storage: bytes) -> np.ndarray:
        size = self.dtype.itemsize
        strides = [size * stride for stride in self.strides]
        return np.ascontiguousarray(np.ndarray(self.shape, self.dtype, storage, size * self.offset, strides))


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries of tensors, without their values."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not read from files of weights.")

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype[Any]]:
        return str(pid[2]), pid[1]


def _tensor(
    storage: tuple[str, np.dtype[Any]], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    return _Tensor(*storage, offset, shape, strides)


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by name."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            described = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(described) as file:
                tensors = _Unpickler(file).load()
            folder = described.removesuffix(".pkl")
            return {name: t.of(archive.read(f"{folder}/{t.key}")) for name, t in tensors.items()}
    with path.open("rb") as file:
        if _Unpickler(file).load() != _MAGIC:
            raise pickle.UnpicklingError(f"{path.name} is no file of weights.")
        _, _, tensors, keys = (_Unpickler(file).load() for _ in range(4))
        dtypes = {tensor.key: tensor.dtype for tensor in tensors.values()}
        # The number of elements, then these, for each of the keys.
        storages = {key: file.read(int.from_bytes(file.read(8), "little") * dtypes[key].itemsize) for key in keys}
    return {name: tensor.of(storages[tensor.key]) for name, tensor in tensors.items()}
