"""save / load: one stable file, the same op."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import (
    GOLDEN,
    GOLDEN_EXACT,
    GOLDEN_FACTORS,
    GOLDEN_OBLIQUE,
    assert_equal_ops,
    assert_same_contents,
    golden_exact_op,
    golden_factors_op,
    golden_oblique_op,
    golden_op,
)
from helpers.ops import random_oblique_trees, random_op, random_rows, random_term

from jax_maddness import MaddnessOp, amm, load, save


@pytest.fixture
def op(rng):
    return random_op(rng, 7, 3, 5, weights=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.maddness"


@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16, jnp.float16])
def test_round_trip(path, op, dtype):
    op = MaddnessOp(op.trees, op.tables, None if dtype is None else op.weights.astype(dtype))
    save(path, op)
    assert_equal_ops(load(path), op)
    save(path, load(path))
    assert_equal_ops(load(str(path)), op)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_golden_file_still_loads_and_is_still_written(path):
    assert_equal_ops(load(GOLDEN), golden_op())
    save(path, golden_op())
    assert_same_contents(path, GOLDEN)


@pytest.mark.parametrize(
    ("golden", "make"),
    [(GOLDEN_OBLIQUE, golden_oblique_op), (GOLDEN_EXACT, golden_exact_op), (GOLDEN_FACTORS, golden_factors_op)],
)
def test_golden_files_of_later_versions_still_load_and_are_still_written(path, golden, make):
    assert_equal_ops(load(golden), make())
    save(path, make())
    assert_same_contents(path, golden)


@pytest.mark.parametrize(("chosen", "directions"), [(2, 0), (0, 3), (2, 3)])
def test_round_trip_with_an_exact_term(path, rng, op, chosen, directions):
    op = dataclasses.replace(op, term=random_term(rng, 7, 5, chosen, directions))
    save(path, op)
    assert_equal_ops(load(path), op)


@pytest.mark.parametrize("num_features", [7, None])
def test_round_trip_with_oblique_trees(path, rng, num_features):
    op = random_op(rng, 7, 3, 5, weights=True, make_trees=random_oblique_trees)
    op = dataclasses.replace(op, trees=dataclasses.replace(op.trees, num_features=num_features))
    save(path, op)
    assert_equal_ops(load(path), op)


def test_a_loaded_op_computes_the_same(path, rng, op):
    save(path, op)
    x = random_rows(rng, 9, 7)
    np.testing.assert_array_equal(amm(x, load(path)), amm(x, op))


def test_readable_with_numpy_alone(path, op):
    save(path, op)
    with np.load(path, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["tables.values"], op.tables.values)
        assert json.loads(arrays["header.json"])["format"] == "jax_maddness.op"


def test_a_missing_file_is_a_missing_file(path):
    with pytest.raises(FileNotFoundError):
        load(path)


def test_a_failed_save_leaves_the_old_file(path, op):
    save(path, op)
    before = path.read_bytes()
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), op)
    with pytest.raises(ValueError, match="Save its elements"):
        save(path, stacked)
    with pytest.raises(TypeError, match="`op` is NoneType"):
        save(path, None)
    assert path.read_bytes() == before
