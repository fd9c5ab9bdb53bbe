"""Indexes whose vectors come and go, indexes over several devices, and what is refused."""

import jax
import numpy as np
import pytest
from helpers.neighbours import CODEBOOKS, COUNT, assert_same, by_hand, clustered, jitted

from jax_maddness import add_vectors, build_index, remove_vectors, search, shard_index
from jax_maddness.retrieval.index import whole

# ---- Vectors that come and go ----


def test_removed_and_added_again_is_the_same_index(indexes, vectors, metric):
    index, gone = indexes[metric], np.array([0, 63, 64, 333, 599])
    less = remove_vectors(index, gone)
    assert less.count == COUNT - 5
    _, ids = search(vectors[gone], less, 20)
    assert not np.isin(ids, gone).any()
    order = np.array([3, 0, 4, 1, 2])
    assert_same(add_vectors(less, vectors[gone][order], gone[order]), index)


def test_ids_name_vectors(vectors, queries):
    names = np.random.default_rng(0).permutation(10 * COUNT)[:COUNT]
    index = build_index(vectors, CODEBOOKS, metric="l2", ids=names)
    want = names[by_hand(queries, vectors, "l2", 5)[1]]
    np.testing.assert_array_equal(search(queries, index, 5, num_candidates=COUNT)[1], want)
    more = add_vectors(index, queries[:2])
    np.testing.assert_array_equal(search(queries[:2], more, 1)[1][:, 0], names.max() + 1 + np.arange(2))


def test_an_index_without_vectors(vectors, queries):
    index = build_index(vectors, CODEBOOKS, keep_vectors=False)
    assert index.vectors is None
    assert index.recall
    with pytest.raises(ValueError, match="keeps no vectors"):
        search(queries, index)
    scores, ids = search(queries, index, 3, num_candidates=0)
    want = search(queries, build_index(vectors, CODEBOOKS), 3, num_candidates=0)
    np.testing.assert_array_equal(ids, want[1])
    np.testing.assert_array_equal(scores, want[0])
    assert add_vectors(index, queries).count == COUNT + 30


# ---- Over several devices ----


@pytest.fixture(scope="module", params=[(4,), (2, 2)])
def mesh(request):
    names = ("v", "q")[: len(request.param)]
    return jax.make_mesh(request.param, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))


@pytest.mark.slow
def test_sharded_equals_whole(mesh, indexes, queries):
    index = indexes["l2"]
    sharded = shard_index(index, mesh, "v")
    assert len(sharded.codes.sharding.device_set) == 4
    for num_candidates in (0, 300):  # the same sums everywhere; enough for all true neighbours
        want, got = (jitted(queries, i, 10, num_candidates=num_candidates) for i in (index, sharded))
        np.testing.assert_array_equal(got[1], want[1])
        np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
    few = [np.asarray(jitted(queries, i, 10, num_candidates=10)[0]) for i in (index, sharded)]
    assert (few[1] >= few[0] - 1e-4).all()  # every shard checks as many
    assert_same(whole(sharded), index)


@pytest.mark.slow
def test_sharded_ties_and_shards_without_vectors():
    mesh = jax.make_mesh((4,), ("v",))
    rows = np.float32(np.tile(np.random.default_rng(0).integers(-3, 4, (20, 8)), (10, 1)))
    for count in (200, 30):
        index = shard_index(build_index(rows[:count], 4, metric="l2"), mesh, "v")
        got = np.asarray(jitted(rows[:5], index, 12, num_candidates=100)[1])
        np.testing.assert_array_equal(got[:, : count // 20], np.arange(5)[:, None] + 20 * np.arange(count // 20))
    assert (np.asarray(jitted(rows[:5], index, 40, num_candidates=100)[1])[:, 30:] == -1).all()


def test_a_sharded_index_changes_by_way_of_a_whole_one(indexes, vectors):
    mesh = jax.make_mesh((4,), ("v",))
    index = indexes["l2"]
    less = remove_vectors(shard_index(index, mesh, "v"), [5])
    assert less.mesh is None
    assert_same(add_vectors(shard_index(less, mesh, "v"), vectors[[5]], [5]), index)
    with pytest.raises(ValueError, match="axis"):
        shard_index(index, mesh, "rows")


# ---- What is refused ----


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"metric": "dot"}, "'ip', 'l2', 'cosine'"),
        ({"method": "pq"}, "'kmeans', 'trees'"),
        ({"num_codebooks": 17}, "expected 1 to 16"),
        ({"num_codebooks": 0}, "expected 1 to 16"),
        ({"metric": "l2", "bias": np.zeros(COUNT)}, "bias"),
        ({"bias": np.zeros(3)}, "bias"),
        ({"queries": np.zeros((5, 3))}, "3 features; expected 16"),
        ({"ids": np.zeros(COUNT, int)}, "there twice"),
        ({"ids": np.arange(3)}, "expected 600 integers"),
        ({"ids": np.arange(COUNT) - 1}, "negative"),
        ({"keep_vectors": np.int8}, "keep_vectors"),
    ],
)
def test_build_index_says_what_is_wrong(vectors, options, match):
    with pytest.raises(ValueError, match=match):
        build_index(vectors, **{"num_codebooks": 4} | options)


def test_build_index_refuses_vectors_that_are_none():
    for rows, match in [
        (np.zeros((0, 4)), "no rows"),
        ([[np.nan, 1]], "NaN"),
        ([[3e30, 1]], "overflow"),
        ([1.0], "shape"),
    ]:
        with pytest.raises(ValueError, match=match):
            build_index(np.asarray(rows), 1)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda v: build_index(v, 1))(np.ones((3, 4)))
    with pytest.raises(TypeError, match="num_codebooks"):
        build_index(np.ones((3, 4)), 1.5)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_candidates": 5}, ValueError, "less than `k`"),
        ({"num_candidates": -1}, ValueError, "num_candidates >= 0"),
        ({"k": 0}, ValueError, "k >= 1"),
        ({"k": 2.0}, TypeError, "`k` is 2.0; expected an integer"),
        ({"metric": "l2"}, ValueError, "built for 'ip'"),
        ({"recall": 1.5}, ValueError, "recall"),
        ({"recall": 0.9, "k": 200}, ValueError, "k <= 100"),
    ],
)
def test_search_says_what_is_wrong(indexes, queries, options, error, match):
    with pytest.raises(error, match=match):
        search(queries, indexes["ip"], **{"k": 10} | options)


def test_search_refuses_what_it_cannot_search(indexes, queries):
    with pytest.raises(TypeError, match="`queries` is int32"):
        search(queries.astype(np.int32), indexes["ip"])
    with pytest.raises(ValueError, match=r"\[..., 16\]"):
        search(queries[:, :3], indexes["ip"])
    with pytest.raises(TypeError, match="VectorIndex"):
        search(queries, queries)
    with pytest.raises(ValueError, match="no measured recall"):
        search(queries, build_index(clustered(0, 5), 2), recall=0.9)


def test_a_recall_that_was_not_reached_is_an_error():
    from jax_maddness.retrieval.calibrate import candidates

    with pytest.raises(ValueError, match=r"0.99 with 64 candidates"):
        candidates(((16, 0.9, 0.8, 0.7), (64, 1.0, 0.99, 0.9)), 0.999, 10)


def test_changes_that_do_not_fit_are_refused(indexes, vectors):
    with pytest.raises(ValueError, match="there already, such as 7"):
        add_vectors(indexes["ip"], vectors[:1], [7])
    with pytest.raises(ValueError, match="not in `index`, such as 9999"):
        remove_vectors(indexes["ip"], [1, 9999])
    with pytest.raises(ValueError, match="3 features; expected 16"):
        add_vectors(indexes["ip"], vectors[:1, :3])
    with pytest.raises(ValueError, match="bias"):
        add_vectors(indexes["l2"], vectors[:1], bias=[1.0])
    with pytest.raises(TypeError, match="traced"):
        jax.jit(remove_vectors)(indexes["ip"], np.array([1]))
