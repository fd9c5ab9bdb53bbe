"""build_index and search: exact where everything is checked, honest where not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.neighbours import CODEBOOKS, COUNT, FEATURES, assert_same, by_hand, clustered, found, jitted
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_maddness import VectorIndex, add_vectors, build_index, remove_vectors, search
from jax_maddness.retrieval import scan
from jax_maddness.retrieval.index import METRICS


@pytest.mark.parametrize("num_candidates", [COUNT, COUNT + 100])
def test_checking_everything_is_exact(indexes, vectors, queries, metric, num_candidates):
    scores, ids = jitted(queries, indexes[metric], 10, num_candidates=num_candidates)
    all_scores, want = by_hand(queries, vectors, metric, 10)
    np.testing.assert_array_equal(ids, want)
    np.testing.assert_allclose(scores, np.take_along_axis(all_scores, want, 1), rtol=1e-4, atol=1e-4)


def test_scores_of_candidates_are_exact_and_few_are_enough(indexes, vectors, queries, metric):
    scores, ids = jitted(queries, indexes[metric], 10, num_candidates=100)
    all_scores, want = by_hand(queries, vectors, metric, 10)
    np.testing.assert_allclose(scores, np.take_along_axis(all_scores, np.asarray(ids), 1), rtol=1e-4, atol=1e-4)
    assert found(ids, want) > 0.97
    assert (np.diff(scores) <= 0).all()


def test_approximate_scores_are_near_the_exact_ones(indexes, vectors, queries, metric):
    scores, ids = jitted(queries, indexes[metric], 10, num_candidates=0)
    all_scores, want = by_hand(queries, vectors, metric, 10)
    error = np.asarray(scores) - np.take_along_axis(all_scores, np.asarray(ids), 1)
    assert np.abs(error).mean() < 0.3 * all_scores.std()
    assert found(ids, want) > 0.3  # by chance: 10 of 600


def test_a_bias_is_added(vectors, queries):
    bias = np.linspace(-30, 30, COUNT, dtype=np.float32)
    index = build_index(vectors, CODEBOOKS, bias=bias, queries=queries)
    want = by_hand(queries, vectors, "ip", 5, bias)[1]
    np.testing.assert_array_equal(search(queries, index, 5, num_candidates=COUNT)[1], want)
    assert found(search(queries, index, 5, num_candidates=64)[1], want) > 0.9
    assert found(search(queries, index, 5, num_candidates=0)[1], want) > 0.3


@pytest.mark.slow
def test_of_equal_scores_the_lower_id_comes_first(metric):
    rows = np.float32(np.random.default_rng(0).integers(-3, 4, (20, 8)))
    rows = np.tile(rows, (10, 1))  # every vector ten times
    index = build_index(rows, 4, metric=metric)
    for num_candidates in (10, 200):
        _, ids = search(rows[:5], index, 10, num_candidates=num_candidates)
        if metric == "ip":
            ids = np.sort(np.asarray(ids) % 20, axis=1)  # another vector may be longer
            assert (ids == ids[:, :1]).all()
        else:
            np.testing.assert_array_equal(ids, np.arange(5)[:, None] + 20 * np.arange(10))


@pytest.mark.slow
def test_where_there_are_fewer_the_rest_says_so(metric):
    rows = clustered(3, 5)
    index = build_index(rows, 2, metric=metric)
    for num_candidates in (0, 8):
        scores, ids = search(rows, index, 8, num_candidates=num_candidates)
        assert (np.asarray(ids)[:, 5:] == -1).all()
        assert np.isneginf(np.asarray(scores)[:, 5:]).all()
        np.testing.assert_array_equal(np.sort(np.asarray(ids)[:, :5]), np.tile(np.arange(5), (5, 1)))


def test_an_empty_index_finds_nothing(indexes, queries, metric):
    index = remove_vectors(indexes[metric], np.arange(COUNT))
    assert index.count == 0
    for num_candidates in (0, 64):
        scores, ids = jitted(queries, index, 3, num_candidates=num_candidates)
        assert (np.asarray(ids) == -1).all()
        assert np.isneginf(np.asarray(scores)).all()
    again = add_vectors(index, clustered(1, 10))
    np.testing.assert_array_equal(
        search(clustered(1, 10), again, 1)[1][:, 0], np.arange(10)
    ) if metric != "ip" else None


def test_queries_that_are_not_finite_find_nothing_and_disturb_no_other(indexes, queries, metric):
    bad = queries.copy()
    bad[3, 2], bad[5, 0] = np.nan, np.inf
    for num_candidates in (0, 64, COUNT):
        scores, ids = jitted(bad, indexes[metric], 4, num_candidates=num_candidates)
        want_scores, want_ids = jitted(queries, indexes[metric], 4, num_candidates=num_candidates)
        assert np.isnan(np.asarray(scores)[[3, 5]]).all()
        assert (np.asarray(ids)[[3, 5]] == -1).all()
        rest = np.delete(np.arange(len(queries)), [3, 5])
        np.testing.assert_array_equal(np.asarray(ids)[rest], np.asarray(want_ids)[rest])
        np.testing.assert_array_equal(np.asarray(scores)[rest], np.asarray(want_scores)[rest])


def test_vectors_and_queries_of_length_zero(metric):
    rows = np.concatenate([np.zeros((2, FEATURES), np.float32), clustered(4, COUNT - 2)])
    index = build_index(rows, CODEBOOKS, metric=metric)
    scores, ids = search(np.zeros(FEATURES, np.float32), index, 2, num_candidates=COUNT)
    np.testing.assert_array_equal(ids, [0, 1])
    np.testing.assert_array_equal(scores, [0, 0])


@pytest.mark.slow
def test_jit_vmap_and_leading_dimensions_agree(indexes, queries):
    index = indexes["l2"]
    scores, ids = search(queries, index, 5)
    shaped = queries.reshape(2, 3, 5, FEATURES)
    for f in (
        search,
        jitted,
        jax.vmap(lambda q: search(q, index, 5)),
        jax.vmap(jax.vmap(lambda q: search(q, index, 5))),
    ):
        got = f(shaped, index, 5) if f in (search, jitted) else f(shaped)
        np.testing.assert_allclose(got[0].reshape(30, 5), scores, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(got[1].reshape(30, 5), ids)
    assert search(queries[0], index, 5)[1].shape == (5,)
    assert search(queries[:0], index, 5)[1].shape == (0, 5)


def test_an_index_is_a_pytree(indexes, queries):
    leaves, structure = jax.tree.flatten(indexes["l2"])
    index = jax.tree.unflatten(structure, leaves)
    assert isinstance(index, VectorIndex)
    np.testing.assert_array_equal(search(queries, index, 3)[1], search(queries, indexes["l2"], 3)[1])
    assert "600 x 16" in repr(index)
    repr(jax.tree.map(lambda _: None, index))


def test_modes_of_the_caller_play_no_part(indexes, vectors, queries):
    want = search(queries, indexes["l2"], 5)
    with jax.enable_x64(True):
        index = build_index(vectors, CODEBOOKS, metric="l2")
        scores, ids = search(queries, index, 5)
    assert_same(index, indexes["l2"])
    np.testing.assert_array_equal(ids, want[1])
    assert (scores.dtype, ids.dtype) == (jnp.float32, jnp.int32)
    np.testing.assert_array_equal(search(np.float64(queries), index, 5)[1], ids)


@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_half_precision(vectors, queries, dtype):
    index = build_index(jnp.asarray(vectors, dtype), CODEBOOKS, metric="l2")
    assert index.vectors.dtype == dtype
    assert build_index(vectors, CODEBOOKS, keep_vectors=dtype).vectors.dtype == dtype
    rounded = np.asarray(jnp.asarray(vectors, dtype).astype(jnp.float32))
    scores, ids = search(jnp.asarray(queries, dtype), index, 3, num_candidates=COUNT)
    assert scores.dtype == jnp.float32
    want = by_hand(np.asarray(jnp.asarray(queries, dtype).astype(jnp.float32)), rounded, "l2", 3)[1]
    np.testing.assert_array_equal(ids, want)


@pytest.mark.slow
def test_recall_is_honest_on_fresh_queries(vectors):
    train, fresh = clustered(5, 300), clustered(6, 300)
    index = build_index(vectors, CODEBOOKS, metric="l2", queries=train)
    want = by_hand(fresh, vectors, "l2", 10)[1]
    measured = {int(row[0]): row[2] for row in index.recall}
    assert measured[COUNT] == 1.0
    assert list(measured.values()) == sorted(measured.values())
    for num_candidates in (16, 32, 64, 128):
        assert found(search(fresh, index, 10, num_candidates=num_candidates)[1], want) == pytest.approx(
            measured[num_candidates], abs=0.06
        )
    for recall in (0.8, 0.95):
        assert found(search(fresh, index, 10, recall=recall)[1], want) > recall - 0.04


def test_vectors_that_stand_in_for_queries_do_not_find_themselves(indexes, queries, vectors):
    measured = {int(row[0]): row[2] for row in indexes["l2"].recall}
    want = by_hand(queries, vectors, "l2", 10)[1]
    assert found(search(queries, indexes["l2"], 10, num_candidates=32)[1], want) == pytest.approx(measured[32], abs=0.1)


@pytest.mark.slow
def test_split_trees_encode_too(vectors, queries):
    index = build_index(vectors, CODEBOOKS, metric="l2", method="trees", keep_vectors=np.float32)
    want = by_hand(queries, vectors, "l2", 10)[1]
    assert found(search(queries, index, 10, num_candidates=128)[1], want) > 0.9
    changed = add_vectors(remove_vectors(index, [3, 500]), vectors[[3, 500]], [3, 500])
    assert_same(changed, index)


@pytest.mark.slow
@settings(deadline=None, max_examples=6)
@given(
    count=st.sampled_from([1, 70]),
    k=st.sampled_from([1, 6]),
    metric=st.sampled_from(METRICS),
    seed=st.integers(0, 1000),
)
def test_any_sizes_are_exact_where_everything_is_checked(count, k, metric, seed):
    rng = np.random.default_rng(seed)
    rows, asked = np.float32(rng.integers(-2, 3, (count, 3))), np.float32(rng.integers(-2, 3, (4, 3)))
    index = build_index(rows, 2, metric=metric)
    scores, ids = search(asked, index, k, num_candidates=max(count, k))
    all_scores, want = by_hand(asked, rows, metric, k)
    n = min(k, count)
    if metric == "cosine":  # not of integers: ties may be decided by rounding
        np.testing.assert_allclose(scores[:, :n], np.take_along_axis(all_scores, want, 1), atol=1e-6)
    else:
        np.testing.assert_array_equal(ids[:, :n], want)
        np.testing.assert_array_equal(scores[:, :n], np.take_along_axis(all_scores, want, 1))
    np.testing.assert_array_equal(scan.unpack(index.codes)[count:], 0)


@pytest.mark.parametrize("queries", [20, 100])
def test_no_recall_is_claimed_that_so_few_queries_cannot_show(rng, queries):
    """Vectors far apart, so that every query finds its neighbor among the first candidates."""
    vectors = np.float32(100 * rng.standard_normal((200, 16)))
    near = vectors[:queries] + np.float32(1e-3 * rng.standard_normal((queries, 16)))
    index = build_index(vectors, 8, metric="l2", queries=near)
    held_out = queries // 2
    *some, everything = index.recall
    assert everything[:2] == (200, 1.0)  # with all vectors as candidates, nothing is left to chance
    assert max(row[1] for row in some) == round(held_out / (held_out + 1), 5)
    with pytest.raises(ValueError, match="more `queries`"):
        search(near, dataclasses.replace(index, recall=tuple(some)), 1, recall=0.999)
