"""Arguments of the wrong kind or shape are refused in words that name the argument and the remedy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import random_op

from jax_maddness import (
    add_vectors,
    amm_with_exact_rows,
    build_index,
    fit_outlier_rows,
    max_over_positions,
    remove_vectors,
    search,
    top_k,
)

COUNT, FEATURES, OUTPUTS = 65, 8, 12


@pytest.fixture(scope="module")
def rows():
    return np.float32(np.random.default_rng(0).standard_normal((COUNT, FEATURES)))


@pytest.fixture(scope="module")
def index(rows):
    return build_index(rows, 4)


@pytest.fixture(scope="module")
def op():
    return random_op(np.random.default_rng(1), FEATURES, 4, OUTPUTS, weights=True)


class Foreign:
    """An array of a library with dtypes of its own."""

    dtype = "foreign.float32"

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        (["17"], TypeError, "`ids` is <U2; expected integers"),
        (np.arange(COUNT) < 3, TypeError, r"np\.flatnonzero\(mask\)"),
        ([1.0], TypeError, "`ids` is float64; expected integers"),
        ([np.nan], TypeError, "`ids` is float64"),
        ([None], TypeError, "`ids` is list"),
        (None, TypeError, "`ids` is NoneType"),
        (slice(3), TypeError, "`ids` is slice"),
        (5, ValueError, r"Pass one id as `\[id\]`"),
        ([[1, 2]], ValueError, r"expected \[removed\]"),
        ([5, 5], ValueError, "more than once, such as 5"),
        ([-1], ValueError, "not in `index`, such as -1"),
        ([2**40], ValueError, "not in `index`"),
        (np.ma.array([1, 2], mask=[0, 1]), TypeError, "masked array"),
    ],
)
def test_ids_to_remove(index, ids, error, match):
    with pytest.raises(error, match=match):
        remove_vectors(index, ids)


def test_ids_of_every_integer_dtype_are_removed(index):
    for ids in ([], [3], np.uint8([3]), np.int64([3]), jnp.array([3]), search(np.zeros(FEATURES), index, 1)[1]):
        assert remove_vectors(index, ids).count == COUNT - len(ids)


@pytest.mark.parametrize(
    ("ids", "error"), [(["a"] * 2, TypeError), ([True, False], TypeError), ([0.5, 1.5], TypeError), ([7], ValueError)]
)
def test_ids_to_add(index, rows, ids, error):
    with pytest.raises(error, match="`ids`"):
        add_vectors(index, rows[:2], ids)


def test_vectors_to_add(index, rows):
    last = build_index(rows, 4, ids=np.r_[np.arange(COUNT - 1), 2**31 - 1])
    for i, vectors, match in [
        (index, rows[0], r"Pass one vector as `vectors\[None\]`"),
        (index, rows[:0], "`vectors` has shape"),
        (index, rows[:1] * np.nan, "`vectors` has 8 NaN"),
        (last, rows[:1], "beyond int32"),
    ]:
        with pytest.raises(ValueError, match=match):
            add_vectors(i, vectors)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"k": True}, TypeError, "`k` is True"),
        ({"k": 3.0}, TypeError, "`k` is 3.0"),
        ({"k": "3"}, TypeError, "`k` is '3'"),
        ({"num_candidates": 12.5}, TypeError, "`num_candidates` is 12.5"),
        ({"num_candidates": np.True_}, TypeError, "`num_candidates`"),
        ({"recall": "0.9"}, TypeError, "`recall` is '0.9'; expected a number"),
        ({"recall": True}, TypeError, "`recall` is True"),
        ({"recall": np.nan}, ValueError, "`recall` is nan"),
        ({"recall": 0}, ValueError, "`recall` is 0"),
        ({"recall": 0.9, "k": 3000}, ValueError, "k <= 100"),
    ],
)
def test_numbers_of_search(index, rows, options, error, match):
    with pytest.raises(error, match=match):
        search(rows, index, **options)


def test_recall_of_more_neighbors_than_there_are(index, rows):
    scores, ids = search(rows[:2], index, 100, recall=0.9)
    assert (np.sort(np.asarray(ids)[:, :COUNT], axis=1) == np.arange(COUNT)).all()
    assert np.isneginf(np.asarray(scores)[:, COUNT:]).all()


def test_a_traced_number_is_no_static_one(index, rows):
    with pytest.raises(TypeError, match="static under"):
        jax.jit(search)(rows, index, 3)


@pytest.mark.parametrize("keep", [1, 0, 1.0, "yes", "int8", np.int32])
def test_keep_vectors(rows, keep):
    with pytest.raises(ValueError, match="`keep_vectors` is"):
        build_index(rows, 4, keep_vectors=keep)


def test_arrays_of_other_libraries_are_taken(rows, index):
    other = build_index(Foreign(rows), 4, keep_vectors=np.True_, queries=Foreign(rows), bias=Foreign(np.zeros(COUNT)))
    assert other.vectors.dtype == jnp.float32
    np.testing.assert_array_equal(search(Foreign(rows), index, 1)[1], search(rows, index, 1)[1])
    with pytest.raises(TypeError, match="`database` is a masked array"):
        build_index(np.ma.array(rows), 4)
    with pytest.raises(TypeError, match="`queries` is"):
        search(object(), index)


def test_lists_and_wrong_arrays_for_the_maximum_and_top_k(rows, op):
    weights, rule = np.asarray(op.weights), fit_outlier_rows(rows)
    bare = dataclasses.replace(op, weights=None)
    for function in (
        lambda x, op, w=None, b=None: top_k(x, op, w, k=3, bias=b, num_candidates=4),
        lambda x, op, w=None, b=None: max_over_positions(x, op, w, b),
        lambda x, op, w=None, b=None: amm_with_exact_rows(x, op, rule, 3, w, b),
    ):
        want = function(rows, op, weights, np.ones(OUTPUTS, np.float32))
        got = function(rows.tolist(), bare, weights.tolist(), [1.0] * OUTPUTS)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a, b)
        for args, error, match in [
            ((rows.astype(int), op), TypeError, "`x` is int64"),
            ((rows, bare), ValueError, "keep_weights"),
            ((rows, op, weights.T), ValueError, "`w` has shape"),
            ((rows, op, weights.astype(int)), TypeError, "`w` is int64"),
            ((rows, op, None, np.ones(OUTPUTS + 1)), ValueError, "`bias` has shape"),
            ((rows, op, None, np.ones(OUTPUTS, int)), TypeError, "`bias` is int64"),
            ((rows, op, None, np.full(OUTPUTS, -np.inf)), ValueError, "`bias` has NaN or infinite"),
        ]:
            with pytest.raises(error, match=match):
                function(*args)


def test_numbers_of_top_k_and_exact_rows(rows, op, index):
    rule = fit_outlier_rows(rows)
    for call, error, match in [
        (lambda: top_k(rows, op, k=2.0), TypeError, "`k` is 2.0"),
        (lambda: top_k(rows, index, 2), TypeError, "`w` is 2. The number of outputs is passed by its name"),
        (lambda: top_k(rows, index, k="2"), TypeError, "`k` is '2'"),
        (lambda: max_over_positions(rows, op, num_candidates=1.5), TypeError, "`num_candidates` is 1.5"),
        (lambda: amm_with_exact_rows(rows, op, rule, 2.5), TypeError, "`max_exact` is 2.5"),
        (lambda: amm_with_exact_rows(rows, op, np.arange(COUNT), 2), TypeError, "mask of bool"),
        (lambda: amm_with_exact_rows(rows, op, fit_outlier_rows(rows[:, :3]), 2), ValueError, "fitted to 3 features"),
        (lambda: fit_outlier_rows(rows, "a"), TypeError, "`share` is 'a'"),
        (lambda: fit_outlier_rows(rows, True), TypeError, "`share` is True"),
    ]:
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("num_candidates", [0, 4, 12])
def test_top_k_of_a_row_that_is_not_finite(rows, op, num_candidates, bad):
    x = rows[:6].copy()
    x[2, 1] = bad
    index = build_index(np.asarray(op.weights).T, 4)
    for op_or_index in (op, index):
        values, ids = top_k(x, op_or_index, k=3, num_candidates=num_candidates)
        assert np.isnan(np.asarray(values)[2]).all()
        assert (np.asarray(ids)[2] == -1).all()
        assert (np.asarray(ids)[[0, 1, 3, 4, 5]] >= 0).all()


@pytest.mark.parametrize("num_candidates", [1, 3])
def test_the_maximum_over_a_position_with_nan_is_nan(rows, op, num_candidates):
    x = rows[:60].reshape(3, 20, FEATURES).copy()
    x[1, 7, 2] = np.nan
    got = np.asarray(max_over_positions(x, op, num_candidates=num_candidates))
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_outlier_rows_of_every_scale(rows, scale):
    x = np.concatenate([rows, rows[:3] * [[100], [1e5], [1e6]]]).astype(np.float32)
    want = fit_outlier_rows(rows, 0.1)
    rule = fit_outlier_rows(rows * np.float32(scale), 0.1)
    distance = np.asarray(rule.distance(x * np.float32(scale)))
    np.testing.assert_allclose(distance, want.distance(x), rtol=1e-3)
    assert distance[-1] > distance[-2] > distance[-3]
    far = np.asarray(want.distance(np.float32([[1e25] * FEATURES, [2e25] * FEATURES])))
    assert 0 < far[0] < far[1] < np.inf
