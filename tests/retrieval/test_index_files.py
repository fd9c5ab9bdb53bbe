"""save_index / load_index: one stable file; whatever happens to it, a clear error or the same index."""

import dataclasses
import json
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import assert_same_contents, fractions
from helpers.ops import random_oblique_trees

from jax_maddness import VectorIndex, load_index, save, save_index, search, shard_index
from jax_maddness.core.archive import digest_header
from jax_maddness.retrieval import files
from jax_maddness.retrieval.lists import Lists
from jax_maddness.retrieval.quantizer import Quantizer

DATA = pathlib.Path(__file__).parents[1] / "data"
GOLDEN = DATA / "golden_v1.index"


def golden_index():
    """The index in the golden file, which `python tests/test_index_files.py` wrote once. Never change either."""
    codes = (jnp.arange(256) * 37 % 256).astype(jnp.uint8).reshape(2, 2, 64)
    numbers = fractions(3 * 16 * 6, 7)
    prototypes, encoder = numbers[: 3 * 16 * 5].reshape(3, 16, 5), numbers.reshape(3, 16, 6)
    quantizer = Quantizer(prototypes, encoder[..., 0], encoder, numbers[:6])
    vectors = fractions(350, 7).reshape(70, 5).astype(jnp.bfloat16)
    recall = ((12, 0.5, 0.25, 0.125), (70, 1.0, 1.0, 1.0))
    return VectorIndex(codes, quantizer, jnp.arange(70) * 3, -jnp.arange(70.0), vectors, None, "l2", 70, recall)


def golden_v2_index():
    """The same with what version 2 added, in `golden_v2.index`."""
    origin = jnp.arange(5, dtype=jnp.float32) - 2
    return dataclasses.replace(golden_index(), bias=None, origin=origin, exponent=5)


def golden_v3_index():
    """The same with what version 3 added, in `golden_v3.index`."""
    return dataclasses.replace(golden_v2_index(), criterion=(0.5,))


def golden_v4_index():
    """The same with what version 4 added, in `golden_v4.index`: lists, the second of which is empty."""
    quantizer, positions = golden_v3_index().quantizer, np.full(128, -1, np.int32)
    positions[:40], positions[64:94] = np.arange(0, 40), np.arange(69, 39, -1)
    ranges = jnp.array([[0, 40], [1, 0], [1, 30]], jnp.int32)
    centers = jnp.arange(3 * quantizer.center.size, dtype=jnp.float32).reshape(3, -1)
    lists = Lists(centers, ranges, jnp.asarray(positions), probe=2, longest=1)
    recall = ((12, 0.5, 0.25, 0.125, 1), (70, 1.0, 1.0, 1.0, 3))
    return dataclasses.replace(golden_v3_index(), criterion=(0.5, 1.0), recall=recall, lists=lists)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vectors.index"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vectors": None},
        {"bias": None, "metric": "cosine"},
        {"trees": True},
        {"recall": ()},
        {"bias": None, "origin": jnp.ones(5), "exponent": -30},
        {"metric": "ip", "exponent": 7},
        {"metric": "ip", "criterion": (0.1, 1 / 3, -1e-30)},
        {"bias": None, "origin": jnp.ones(5), "criterion": (0.5,)},
    ],
)
def test_round_trip(path, rng, changes):
    if "trees" in changes:
        changes = {"trees": random_oblique_trees(rng, 6, 3)}
    index = dataclasses.replace(golden_index(), **changes)
    save_index(path, index)
    assert_same(load_index(path), index)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("golden_v1", golden_index),
        ("golden_v2", golden_v2_index),
        ("golden_v3", golden_v3_index),
        ("golden_v4", golden_v4_index),
    ],
)
def test_the_golden_file_still_loads_and_is_still_written(path, name, make):
    golden = DATA / f"{name}.index"
    assert_same(load_index(golden), make())
    save_index(path, make())
    assert_same_contents(path, golden)


@pytest.mark.parametrize("num_candidates", [12, 100])
def test_an_index_of_version_1_answers_as_before(num_candidates):
    """Its distances are `|q|^2 - 2 (q.v + bias)`, whatever the biases are."""
    index, queries = load_index(GOLDEN), np.float32(np.random.default_rng(0).standard_normal((3, 5)))
    scores, ids = search(queries, index, 4, num_candidates=num_candidates)
    vectors, bias = np.asarray(index.vectors, np.float64), np.asarray(index.bias, np.float64)
    by_formula = np.minimum(2 * (queries @ vectors.T + bias) - (queries**2).sum(1, keepdims=True), 0)
    np.testing.assert_allclose(scores, np.take_along_axis(by_formula, np.asarray(ids) // 3, 1), rtol=1e-4)
    if num_candidates == 100:
        np.testing.assert_array_equal(ids, 3 * np.argsort(-by_formula, axis=1, kind="stable")[:, :4])


def test_a_sharded_index_is_written_whole(path):
    mesh = jax.make_mesh((4,), ("v",))
    save_index(path, shard_index(golden_index(), mesh, "v"))
    assert_same(load_index(path), golden_index())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "jax_maddness.op"}, "does not say 'jax_maddness.index'"),
        ({"version": 5}, "version 5, this jax_maddness reads up to 4"),
        ({"exponent": 200}, "exponent is 200"),
        ({"exponent": None}, "exponent is None"),
        ({"metric": "dot"}, "metric is 'dot'"),
        ({"count": 69}, "codes is|ids is"),
        ({"count": -1}, "count -1"),
        ({"recall": [[1, 2]]}, "recall"),
        ({"criterion": [0.5, 0.5]}, "criterion"),
        ({"criterion": ["0.5"]}, "criterion"),
        ({"criterion": 0.5}, "criterion"),
        ({"arrays": {}}, "lists the arrays"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(path, changes, match):
    with zipfile.ZipFile(DATA / "golden_v2.index") as old, zipfile.ZipFile(path, "w") as new:
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


def with_trees(**changes):
    trees = random_oblique_trees(np.random.default_rng(0), 6, 3)
    changed = {name: getattr(trees, name).at[0].set(value) for name, value in changes.items()}
    return {"trees": dataclasses.replace(trees, **changed)}


def prototype(value):
    quantizer = golden_index().quantizer
    return {"quantizer": quantizer._replace(prototypes=quantizer.prototypes.at[1].set(value))}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ids": jnp.arange(70)[::-1]}, "ascend"),
        ({"ids": jnp.arange(70) - 1}, "negative"),
        ({"ids": jnp.arange(70) // 2}, "ascend"),
        ({"ids": jnp.arange(70.0)}, "ids is"),
        ({"codes": jnp.zeros((2, 2, 64), jnp.int8)}, "codes is"),
        ({"codes": jnp.zeros((3, 2, 64), jnp.uint8)}, "codes is"),
        ({"bias": jnp.full(70, jnp.nan)}, "bias is not finite"),
        ({"vectors": jnp.full((70, 5), jnp.inf)}, "vectors is not finite"),
        ({"vectors": jnp.zeros((70, 5), jnp.int8)}, "vectors is"),
        ({"bias": None, "origin": jnp.full(5, jnp.nan)}, "origin is not finite"),
        (prototype(jnp.nan), "quantizer.prototypes is not finite"),
        ({"recall": ((12, 0.5, 0.25, 1.5),)}, "recall"),
        ({"recall": ((12, 0.5, 0.25, float("nan")),)}, "recall"),
        ({"capacity": 69}, "codes is|ids is"),
        ({"exponent": 128, "metric": "ip"}, "exponent"),
        ({"bias": None}, "origin"),
        ({"origin": jnp.ones(5)}, "origin"),
        ({"origin": jnp.ones(5), "metric": "ip"}, "origin"),
        ({"criterion": (float("nan"),)}, "criterion"),
        ({"metric": "ip", "criterion": (0.5,)}, "criterion"),
        (with_trees(features=-1), "split index"),
        (with_trees(features=6), "split index"),
        (with_trees(projections=-128), "-128"),
        (with_trees(scale=jnp.nan), "trees.scale"),
        (with_trees(center=jnp.inf), "trees.center"),
        ({"trees": random_oblique_trees(np.random.default_rng(0), 6, 2)}, "2 codebooks"),
    ],
)
def test_what_no_index_can_have_is_neither_written_nor_read(path, changes, match, monkeypatch):
    index = dataclasses.replace(golden_index(), **changes)
    with pytest.raises(ValueError, match=f"cannot be saved.*({match})"):
        save_index(path, index)
    assert not path.exists()
    with monkeypatch.context() as unchecked:
        unchecked.setattr(files, "_validate", lambda *_: None)
        save_index(path, index)
    with pytest.raises(ValueError, match=f"cannot be loaded.*({match})"):
        load_index(path)


def test_an_op_is_no_index(path, op):
    save(path, op)
    with pytest.raises(ValueError, match=r"holds an op. `jax_maddness.load` reads it"):
        load_index(path)


def test_what_is_no_index_is_not_saved(path):
    with pytest.raises(TypeError, match="VectorIndex"):
        save_index(path, None)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda i: save_index(path, i))(golden_index())
    assert not path.exists()


if __name__ == "__main__":
    save_index(GOLDEN, golden_index())
    save_index(DATA / "golden_v2.index", golden_v2_index())
    save_index(DATA / "golden_v3.index", golden_v3_index())
    save_index(DATA / "golden_v4.index", golden_v4_index())
