"""Arrays that stay in their file: they begin where JAX takes them without a copy, and end before the file does."""

import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_maddness.core import archive, mapped


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


def written(path, rng):
    """Arrays with names and sizes of all kinds in a file."""
    dtypes = (np.float32, np.uint8, np.int8, np.float16, jnp.bfloat16, np.int32)
    arrays = {"n" * (i + 1) * 3: rng.integers(0, 9, (i * 7 % 5, i)).astype(dtypes[i % 6]) for i in range(24)}
    archive.write(path, "kind", 1, {}, arrays)
    return arrays


def read(path, **options):
    return archive.read(path, "kind", 1, "a file", lambda header, arrays: arrays(), **options)


def test_every_array_begins_at_a_multiple_of_64_bytes(path, rng):
    arrays = written(path, rng)
    mapping = read(path, mapped=tuple(arrays))
    for one in (mapping, read(path)):
        for name, array in arrays.items():
            assert one[name].dtype == array.dtype
            np.testing.assert_array_equal(one[name], array)
    for name, array in mapping.items():
        assert array.ctypes.data % mapped.ALIGNMENT == 0
        x = mapped.on_device(array, name)
        assert x.dtype == array.dtype
        np.testing.assert_array_equal(x, array)
        assert not array.flags.writeable
    assert sorted(np.load(path).files) == sorted([*arrays, "header.json"])


def test_members_that_zipfile_calls_large(path, rng, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 150)  # of 2 GiB; it makes headers longer
    test_every_array_begins_at_a_multiple_of_64_bytes(path, rng)


def test_equal_arrays_make_equal_files(path, rng, tmp_path):
    arrays = {"a": rng.random((4, 5)), "b": rng.random(3)}
    arrays = {name: np.float32(array) for name, array in arrays.items()}
    for name in ("one", "two"):
        archive.write(tmp_path / name, "kind", 1, {}, arrays)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_array_stays_when_the_file_is_replaced_or_removed(path, rng):
    arrays = {"a": np.float32(rng.random((1000, 5)))}
    archive.write(path, "kind", 1, {}, arrays)
    x = mapped.on_device(read(path, mapped=("a",))["a"], "a")
    archive.write(path, "kind", 1, {}, {"a": np.zeros((2, 2), np.float32)})
    np.testing.assert_array_equal(x, arrays["a"])
    path.unlink()
    np.testing.assert_array_equal(x, arrays["a"])
    total = jax.jit(lambda x: x + 1, donate_argnums=0)(x)  # nothing writes into the file, which is mapped for reading
    np.testing.assert_array_equal(total, arrays["a"] + 1)


def test_files_of_earlier_versions_are_refused(path, rng):
    array = np.float32(rng.random((3, 5)))
    with zipfile.ZipFile(path, "w") as new:
        header = {"format": "kind", "version": 1, "arrays": {"ab": archive.describe(array)}}
        header["sha256"] = archive.digest_header(header)
        new.writestr("header.json", str(header).replace("'", '"'))
        new.writestr("ab.npy", archive._npy(array))
    np.testing.assert_array_equal(read(path)["ab"], array)
    with pytest.raises(ValueError, match=r"cannot be loaded as a file: ab does not begin at .* save it again"):
        read(path, mapped=("ab",))


def test_damage_is_an_error(path, rng):
    """Every cut, and every changed byte of the headers, is refused or reads what was written; nothing crashes."""
    array = np.float32(rng.random((300, 5)))
    archive.write(path, "kind", 1, {}, {"a": array})
    whole = path.read_bytes()
    start = whole.index(array.tobytes())
    for cut in (0, 1, start - 100, start + 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cannot be loaded"):
            read(path, mapped=("a",))
    refused = 0
    for place in [*range(start - 300, start), *range(start + array.nbytes, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        try:
            found = read(path, mapped=("a",))["a"]
        except ValueError:
            refused += 1
        else:
            assert found.shape == array.shape
            float(found.sum())  # all of it can be read
    assert refused > 100


def test_what_jax_would_copy_is_refused(rng):
    words = np.zeros(1000, np.uint8)
    apart = words[(1 - words.ctypes.data) % 64 :][:100]
    with pytest.raises(ValueError, match="words was copied into memory"):
        mapped.on_device(apart, "words")
