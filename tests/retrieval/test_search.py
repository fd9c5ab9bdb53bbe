"""build_index and search: exact where everything is checked, honest where not, whatever the index went through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_maddness import VectorIndex, add_vectors, build_index, remove_vectors, search, shard_index
from jax_maddness.retrieval import scan
from jax_maddness.retrieval.index import METRICS, whole

FEATURES, CODEBOOKS, COUNT = 16, 4, 600
jitted = jax.jit(search, static_argnames=("k", "num_candidates", "recall", "metric"))


def clustered(seed, rows):
    """Rows near a plane of six dimensions, as real vectors have fewer dimensions than features."""
    plane = np.random.default_rng(0).standard_normal((6, FEATURES))
    return np.float32(np.random.default_rng(seed).standard_normal((rows, 6)) @ plane)


def by_hand(queries, vectors, metric, k, bias=0.0):
    """The scores of all vectors in float64, and the `k` best: of equal ones the lower position first."""
    q, v = np.float64(queries), np.float64(vectors)
    if metric == "cosine":
        q, v = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30) for a in (q, v))
    scores = q @ v.T + bias
    if metric == "l2":
        scores = -((q[:, None] - v[None]) ** 2).sum(-1)
    return scores, np.argsort(-scores, axis=1, kind="stable")[:, :k]


def found(ids, truth):
    """The share of the true neighbours that were found."""
    return np.mean([np.isin(t, i).mean() for t, i in zip(truth, np.asarray(ids), strict=True)])


@pytest.fixture(scope="module")
def vectors():
    return clustered(1, COUNT)


@pytest.fixture(scope="module")
def queries():
    return clustered(2, 30)


@pytest.fixture(scope="module")
def indexes(vectors):
    return {metric: build_index(vectors, CODEBOOKS, metric=metric) for metric in METRICS}


@pytest.fixture(params=METRICS)
def metric(request):
    return request.param


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


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


# ---- Whatever the sizes ----


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
