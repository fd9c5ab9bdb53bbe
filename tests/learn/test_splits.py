"""The split search against the paper's loops, and the thresholds that it leaves behind."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import references
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jax_maddness import SplitTrees, encode
from jax_maddness.learn.methods import groups as groups_of
from jax_maddness.learn.methods import splits

FACTOR = np.float32(1)


def grow(x, groups, num_split_features=4, factor=FACTOR, filling=0):
    """Trees for `groups`, and the codes that `encode` gives the training rows."""
    groups = np.asarray(groups)
    columns = x[:, np.maximum(groups, 0)].transpose(1, 0, 2)
    columns = np.pad(columns, ((0, 0), (0, filling), (0, 0)))
    counted = np.arange(columns.shape[1]) < len(x)
    positions, thresholds = splits.grow_trees(columns, groups >= 0, counted, factor, num_split_features)
    trees = SplitTrees(jnp.asarray(np.take_along_axis(groups, np.asarray(positions), 1)), thresholds, x.shape[1])
    return trees, np.asarray(encode(x, trees))


@pytest.mark.parametrize("values", ["normal", "large mean", "few values", "duplicate rows"])
def test_trees_leave_the_same_error_as_the_exhaustive_search(rng, values):
    x = rng.standard_normal((60, 7)) * np.linspace(0.5, 1.5, 7)
    if values == "large mean":
        x += 1000
    elif values == "few values":
        x = np.round(2 * x)
    elif values == "duplicate rows":
        x = np.repeat(x[:20], 3, axis=0)
    x = x.astype(np.float32)
    groups = groups_of.contiguous(7, 2)
    trees, codes = grow(x, groups)
    for c, group in enumerate(groups):
        own = x[:, group[group >= 0]]
        features, expected = references.grow_tree(own, 4)
        # float32 sums of 60 rows: relative errors around 60 * 2**-24
        np.testing.assert_allclose(
            references.squared_error(own.astype(np.float64), codes[:, c]),
            references.squared_error(own.astype(np.float64), expected),
            rtol=1e-5,
        )
        if values in ("normal", "large mean"):  # elsewhere several features may split alike
            np.testing.assert_array_equal(trees.indices[c], group[features])
            np.testing.assert_array_equal(codes[:, c], expected)


@pytest.mark.slow
def test_few_candidates_are_tried_where_asked(rng):
    x = rng.standard_normal((60, 7)).astype(np.float32)
    for num_split_features in (1, 7):
        _, codes = grow(x, [np.arange(7)], num_split_features)
        np.testing.assert_array_equal(codes[:, 0], references.grow_tree(x, num_split_features)[1])


def test_neighboring_floats_are_told_apart():
    x = np.float32(1) + np.arange(16, dtype=np.float32) * np.float32(2**-23)
    _, codes = grow(x[:, None], [[0]])
    np.testing.assert_array_equal(codes[:, 0], np.arange(16))


def test_rows_that_fill_the_arrays_change_nothing(rng):
    x = rng.standard_normal((60, 7)).astype(np.float32) + 3
    groups = groups_of.contiguous(7, 2)
    trees, codes = grow(x, groups)
    filled, filled_codes = grow(x, groups, filling=40)
    np.testing.assert_array_equal(filled.indices, trees.indices)
    np.testing.assert_array_equal(filled.thresholds, trees.thresholds)
    np.testing.assert_array_equal(filled_codes, codes)


def test_constant_features_go_left_whole():
    trees, codes = grow(np.full((60, 7), 3, np.float32), groups_of.contiguous(7, 2))
    assert not codes.any()
    assert np.isfinite(trees.thresholds).all()


floats = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, (24, 3), elements=floats | st.sampled_from([0.0, -0.0, 1.0, 1e-45, -1e-45, 3.4028235e38]))
)
def test_any_finite_rows_give_trees_that_split_them_as_searched(x):
    largest = np.abs(x).max()
    factor = np.ldexp(np.float32(1), -np.clip(np.frexp(largest)[1], -126, 126) if largest else 0)
    trees, codes = grow(x, [[0, 1], [2, -1]], factor=factor)
    assert np.isfinite(trees.thresholds).all()
    assert (np.asarray(trees.indices)[1] == 2).all()
    np.testing.assert_array_equal(codes, references.encode(x, np.asarray(trees.indices), np.asarray(trees.thresholds)))
    for c in range(2):  # no side is empty where a threshold was chosen: it lies between two rows of its bucket
        for node, threshold in enumerate(np.asarray(trees.thresholds[c])):
            level = (node + 1).bit_length() - 1
            inside = codes[:, c] >> (4 - level) == node + 1 - 2**level
            right = x[inside, trees.indices[c, level]] > threshold
            assert right.any() == (threshold < np.finfo(np.float32).max)
            assert not right.all() or not inside.any()


@pytest.mark.parametrize("key_bits", [32, 31, 13, 1])
@pytest.mark.parametrize("rows", [1, 2, 5, 33, 5000, 70_000])
def test_bucket_order_sorts_by_bucket_then_key_then_row(rng, rows, key_bits):
    keys = rng.integers(0, 2**key_bits, (2, rows), np.uint32) >> rng.integers(0, 32, (2, rows), np.uint32)
    buckets = rng.integers(0, 9, (2, rows), np.int32)
    order = splits.bucket_order(jnp.asarray(keys), jnp.asarray(buckets), key_bits)
    for i in range(2):
        np.testing.assert_array_equal(order[i], np.lexsort((keys[i], buckets[i])))


@settings(deadline=None)
@given(hnp.arrays(np.float32, 8, elements=floats))
def test_sort_keys_compare_as_ieee_floats(x):
    keys = np.asarray(splits.sort_keys(jnp.asarray(x)))
    np.testing.assert_array_equal(keys[:, None] < keys, x[:, None] < x)
    np.testing.assert_array_equal(keys[:, None] == keys, x[:, None] == x)


@pytest.mark.parametrize(("features", "codebooks"), [(1, 1), (7, 2), (7, 7), (384, 32), (75, 16)])
def test_subspaces_deal_out_every_feature_once(features, codebooks):
    groups = groups_of.contiguous(features, codebooks)
    np.testing.assert_array_equal(groups[groups >= 0], np.arange(features))
    sizes = (groups >= 0).sum(1)
    assert sizes.max() - sizes.min() <= 1
