"""save_index / load_index: one stable file; whatever happens to it, a clear error or the same index."""

import dataclasses
import json
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import random_oblique_trees

from jax_maddness import VectorIndex, load_index, save_index, shard_index
from jax_maddness.core.archive import digest_header
from jax_maddness.retrieval.quantizer import Quantizer

GOLDEN = pathlib.Path(__file__).parents[1] / "data" / "golden_v1.index"


def golden_index():
    """The index in the golden file, which `python tests/test_index_files.py` wrote once. Never change either."""
    codes = (jnp.arange(256) * 37 % 256).astype(jnp.uint8).reshape(2, 2, 64)
    numbers = jnp.arange(3 * 16 * 6, dtype=jnp.float32) / 7
    prototypes, encoder = numbers[: 3 * 16 * 5].reshape(3, 16, 5), numbers.reshape(3, 16, 6)
    quantizer = Quantizer(prototypes, encoder[..., 0], encoder, numbers[:6])
    vectors = (jnp.arange(350, dtype=jnp.float32) / 7).reshape(70, 5).astype(jnp.bfloat16)
    recall = ((12, 0.5, 0.25, 0.125), (70, 1.0, 1.0, 1.0))
    return VectorIndex(codes, quantizer, jnp.arange(70) * 3, -jnp.arange(70.0), vectors, None, "l2", 70, recall)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vectors.index"


@pytest.mark.parametrize(
    "changes", [{}, {"vectors": None}, {"bias": None, "metric": "cosine"}, {"trees": True}, {"recall": ()}]
)
def test_round_trip(path, rng, changes):
    if "trees" in changes:
        changes = {"trees": random_oblique_trees(rng, 6, 3)}
    index = dataclasses.replace(golden_index(), **changes)
    save_index(path, index)
    assert_same(load_index(path), index)


def test_the_golden_file_still_loads_and_is_still_written(path):
    assert_same(load_index(GOLDEN), golden_index())
    save_index(path, golden_index())
    assert path.read_bytes() == GOLDEN.read_bytes()


def test_a_sharded_index_is_written_whole(path):
    mesh = jax.make_mesh((4,), ("v",))
    save_index(path, shard_index(golden_index(), mesh, "v"))
    assert_same(load_index(path), golden_index())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "jax_maddness.op"}, "does not say 'jax_maddness.index'"),
        ({"version": 2}, "version 2, this jax_maddness reads up to 1"),
        ({"metric": "dot"}, "metric is 'dot'"),
        ({"count": 69}, "codes is|ids is"),
        ({"count": -1}, "count -1"),
        ({"recall": [[1, 2]]}, "recall"),
        ({"arrays": {}}, "lists the arrays"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(path, changes, match):
    with zipfile.ZipFile(GOLDEN) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "header.json":
                header = json.loads(data) | changes
                data = json.dumps(header | {"sha256": digest_header(header)}).encode()
            new.writestr(zipfile.ZipInfo(name), data)
    with pytest.raises(ValueError, match=match):
        load_index(path)


def test_damage_is_found(path):
    data = bytearray(GOLDEN.read_bytes())
    data[len(data) // 2] ^= 1
    for bad in (data, data[: len(data) // 2], b""):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="cannot be loaded as an index"):
            load_index(path)
    with pytest.raises(FileNotFoundError):
        load_index(path.with_name("other"))


def test_ids_that_do_not_ascend_are_refused(path):
    index = golden_index()
    save_index(path, dataclasses.replace(index, ids=index.ids[::-1]))
    with pytest.raises(ValueError, match="ascend"):
        load_index(path)


def test_what_is_no_index_is_not_saved(path):
    with pytest.raises(TypeError, match="VectorIndex"):
        save_index(path, None)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda i: save_index(path, i))(golden_index())
    assert not path.exists()


if __name__ == "__main__":
    save_index(GOLDEN, golden_index())
