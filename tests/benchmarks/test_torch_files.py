"""benchmarks/layers/torch_files.py: both formats of torch's files are read, without torch."""

import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from benchmarks.layers import torch_files


class Storage:
    """Numbers that are written elsewhere; pickles name them by a key."""

    def __init__(self, key, numbers):
        self.key, self.numbers = key, numbers


class Tensor:
    """Pickles as torch's tensors do, as a function of a storage."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.arguments, False, None)


class Pickler(pickle.Pickler):
    """Names storages instead of writing them."""

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return "storage", sys.modules["torch"].FloatStorage, obj.key, "cpu", obj.numbers.size
        return None


def pickled(*objects):
    file = io.BytesIO()
    for obj in objects:
        Pickler(file, 2).dump(obj)
    return file.getvalue()


@pytest.fixture
def storages(rng, monkeypatch):
    """Two storages; torch, whose names pickles mention, is a stand-in."""

    def _rebuild_tensor_v2():
        """Would make a tensor."""

    for module, thing in (("torch", type("FloatStorage", (), {})), ("torch._utils", _rebuild_tensor_v2)):
        thing.__module__, thing.__qualname__ = module, thing.__name__
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{thing.__name__: thing}))
    return [Storage(key, rng.standard_normal(size).astype(np.float32)) for key, size in (("70", 6), ("8", 21))]


def saved(storages):
    """Tensors to save: all of a storage, and a transposed one that begins at its second number."""
    first, second = storages
    return {"first": Tensor(first, 0, (2, 3), (3, 1)), "second": Tensor(second, 1, (4, 5), (1, 4))}


def check(path, storages):
    first, second = (storage.numbers for storage in storages)
    tensors = torch_files.load(path)
    assert list(tensors) == ["first", "second"]
    np.testing.assert_array_equal(tensors["first"], first.reshape(2, 3))
    np.testing.assert_array_equal(tensors["second"], second[1:].reshape(5, 4).T)


def test_archives_are_read(storages, tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(saved(storages)))
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.numbers.tobytes())
    check(path, storages)


def test_the_older_format_is_read(storages, tmp_path):
    path = tmp_path / "weights.pth"
    keys = [storage.key for storage in reversed(storages)]
    numbers = b"".join(s.numbers.size.to_bytes(8, "little") + s.numbers.tobytes() for s in reversed(storages))
    path.write_bytes(pickled(0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, saved(storages), keys) + numbers)
    check(path, storages)


@pytest.mark.parametrize("content", [print, 5], ids=["code", "no file of weights"])
def test_other_pickles_are_refused(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(pickle.UnpicklingError, match="of weights"):
        torch_files.load(path)
