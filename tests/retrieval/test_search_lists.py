"""Searches of indexes with lists: exact where everything is scanned, honest where not, the same in every context."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.neighbours import CODEBOOKS, COUNT, NUM_LISTS, by_hand, found
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jax_maddness import (
    build_index,
    disabled_export_checks,
    search,
    testing,
    top_k,
)
from jax_maddness.retrieval.index import METRICS
from jax_maddness.retrieval.local import approximate_scores, scaled_queries


@pytest.mark.parametrize("num_candidates", [COUNT, COUNT + 100])
def test_checking_everything_is_exact(listed, indexes, queries, metric, num_candidates):
    for probe in (1, NUM_LISTS):
        got = search(queries, listed[metric], 10, num_candidates=num_candidates, probe=probe)
        want = search(queries, indexes[metric], 10, num_candidates=num_candidates)
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])


def test_all_lists_and_nearly_all_vectors_are_exact(listed, vectors, queries, metric):
    """The scan of lists, and not the dense product: one vector, the last by its codes, is no candidate."""
    scores, ids = search(queries, listed[metric], 10, num_candidates=COUNT - 1, probe=NUM_LISTS)
    all_scores, want = by_hand(queries, vectors, metric, 10)
    np.testing.assert_array_equal(ids, want)
    np.testing.assert_allclose(scores, np.take_along_axis(all_scores, want, 1), rtol=1e-4, atol=1e-4)


def test_only_vectors_of_probed_lists_are_found(listed, vectors, queries, metric):
    index = listed[metric]
    count = np.asarray(index.lists.ranges)[:, 1]
    of_places = np.repeat(np.arange(NUM_LISTS), -(-count // 64) * 64)
    of_vectors = np.zeros(COUNT, int)
    known = np.asarray(index.lists.positions) >= 0
    of_vectors[np.asarray(index.lists.positions)[known]] = of_places[known]
    _, ids = search(queries, index, COUNT - 1, num_candidates=COUNT - 1, probe=2)
    for own in np.asarray(ids):
        lists = np.unique(of_vectors[own[own >= 0]])
        assert len(lists) <= 2
        assert (own >= 0).sum() == count[lists].sum()


def test_more_lists_find_more_and_the_default_is_enough(listed, vectors, queries, metric):
    index, (_, want) = listed[metric], by_hand(queries, vectors, metric, 10)
    shares = [found(search(queries, index, 10, num_candidates=200, probe=p)[1], want) for p in range(1, NUM_LISTS + 1)]
    assert shares == sorted(shares)
    assert shares[-1] > 0.98
    assert shares[index.lists.probe - 1] > 0.95
    assert found(search(queries, index, 10, recall=0.9)[1], want) > 0.85


def test_codes_of_residuals_are_better(listed, indexes, vectors, queries, metric):
    want = by_hand(queries, vectors, metric, 10)[1]
    own = found(search(queries, listed[metric], 10, num_candidates=24, probe=NUM_LISTS)[1], want)
    assert own > found(search(queries, indexes[metric], 10, num_candidates=24)[1], want) - 0.01


def test_pure_jax_finds_the_same(listed, queries, metric):
    kernels = search(queries, listed[metric], 5, num_candidates=16, probe=3)
    with testing.force_backend("jax"):
        plain = search(queries, listed[metric], 5, num_candidates=16, probe=3)
    np.testing.assert_array_equal(kernels[1], plain[1])
    np.testing.assert_allclose(kernels[0], plain[0], rtol=1e-5, atol=1e-5)


def test_jit_vmap_and_leading_dimensions_agree(listed, queries):
    index = listed["l2"]
    scores, ids = search(queries, index, 5, probe=3)
    shaped = queries.reshape(2, 3, 5, -1)
    for got in (
        search(shaped, index, 5, probe=3),
        jax.jit(lambda q, index: search(q, index, 5, probe=3))(shaped, index),
        jax.vmap(jax.vmap(lambda q: search(q, index, 5, probe=3)))(shaped),
    ):
        np.testing.assert_array_equal(got[1].reshape(30, 5), ids)
        np.testing.assert_allclose(got[0].reshape(30, 5), scores, rtol=1e-5, atol=1e-5)


def test_inside_of_shard_map_and_on_an_explicit_mesh(listed, queries, backend):
    """With and without JAX's check of what varies over devices, which the loops of the definition have to pass."""
    index, rows = listed["l2"], jnp.asarray(queries[:8])
    want = search(rows, index, 3, num_candidates=16, probe=3)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))

    def own(rows):
        return search(rows, index, 3, num_candidates=16, probe=3)

    for check_vma in (False, True):
        shards = jax.shard_map(own, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"), check_vma=check_vma)
        np.testing.assert_array_equal(jax.jit(shards)(rows)[1], want[1])
    explicit = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(explicit):
        sharded = jax.device_put(rows, jax.sharding.NamedSharding(explicit, P("rows")))
        np.testing.assert_array_equal(jax.jit(own)(sharded)[1], want[1])


def test_gradients_are_those_of_the_exact_scores(listed, vectors, queries):
    def total(rows, num_candidates, probe):
        return search(rows, listed["l2"], 1, num_candidates=num_candidates, probe=probe)[0].sum()

    nearest = vectors[by_hand(queries, vectors, "l2", 1)[1][:, 0]]
    gradient = jax.grad(total)(jnp.asarray(queries), 200, NUM_LISTS)
    np.testing.assert_allclose(gradient, -2 * (queries - nearest), rtol=1e-3, atol=1e-3)


def test_exported_for_any_number_of_queries(listed, queries):
    def own(rows, index):
        return search(rows, index, 3, num_candidates=16, probe=3)

    rows = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, 16"), jnp.float32)
    exported = jax.export.export(jax.jit(own), disabled_checks=disabled_export_checks())(rows, listed["l2"])
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(again.call(queries, listed["l2"])[1], own(queries, listed["l2"])[1])


def test_scores_without_candidates_are_near_the_exact_ones(listed, vectors, queries, metric):
    scores, ids = search(queries, listed[metric], 10, num_candidates=0, probe=NUM_LISTS)
    all_scores, _ = by_hand(queries, vectors, metric, 10)
    error = np.asarray(scores) - np.take_along_axis(all_scores, np.asarray(ids), 1)
    assert np.abs(error).mean() < 0.2 * all_scores.std()
    scaled = scaled_queries(jnp.asarray(queries), listed[metric])
    dense = approximate_scores(scaled, listed[metric], jnp.int32(COUNT), None)
    first = np.argsort(-dense, axis=1, kind="stable")[:, 0]  # products of centers are not rounded to levels here
    assert (first == np.asarray(ids)[:, 0]).mean() > 0.8


def test_restrictions(listed, vectors, queries, metric):
    index, (all_scores, want) = listed[metric], by_hand(queries, vectors, metric, 10)
    excluded = want[:, :2]
    _, ids = search(queries, index, 5, num_candidates=300, probe=NUM_LISTS, exclude=excluded)
    np.testing.assert_array_equal(ids, want[:, 2:7])
    mask = np.ones(COUNT, bool)
    mask[::7] = False  # most vectors are excluded, so that all codes are needed
    _, ids = search(queries, index, 5, num_candidates=80, probe=1, exclude=mask)
    left = np.where(mask, -np.inf, all_scores)
    np.testing.assert_array_equal(ids, np.argsort(-left, axis=1, kind="stable")[:, :5])
    _, ids = search(queries, index, 3, num_candidates=16, probe=1, always=want[:, :3])
    np.testing.assert_array_equal(ids, want[:, :3])
    if metric == "ip":
        bias = np.linspace(-20, 20, COUNT, dtype=np.float32)
        _, ids = search(queries, index, 3, num_candidates=300, probe=1, score_bias=bias)
        np.testing.assert_array_equal(ids, by_hand(queries, vectors, metric, 3, bias)[1])


def test_a_bias_is_added_and_top_k_works(vectors, queries):
    bias = np.linspace(-30, 30, COUNT, dtype=np.float32)
    index = build_index(vectors, CODEBOOKS, bias=bias, queries=queries, num_lists=5)
    want = by_hand(queries, vectors, "ip", 5, bias)[1]
    assert found(search(queries, index, 5, num_candidates=64, probe=5)[1], want) > 0.9
    values, outputs, log_sum = top_k(jnp.asarray(queries), index, k=5, num_candidates=64, log_sum=True)
    assert found(outputs, want) > 0.8
    exact = jax.nn.logsumexp(queries @ vectors.T + bias, axis=1)
    assert np.median(np.abs(log_sum.value - exact)) < 0.5
    assert values.shape == (30, 5)


def test_not_a_number(listed, queries):
    rows = queries.copy()
    rows[1, 0], rows[2, 1] = np.nan, np.inf
    scores, ids = search(rows, listed["l2"], 3)
    assert np.isnan(scores[1:3]).all()
    assert (np.asarray(ids)[1:3] == -1).all()
    np.testing.assert_array_equal(ids[3:], search(queries, listed["l2"], 3)[1][3:])
    broken = np.ones((20, 4), np.float32)
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="`database`"):
        build_index(broken, 2, num_lists=2)


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(
    count=st.sampled_from([1, 5, 70]),
    num_lists=st.sampled_from([1, 3, 5]),
    metric=st.sampled_from(METRICS),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    seed=st.integers(0, 1000),
)
def test_any_sizes_and_scales_are_exact_where_everything_is_checked(count, num_lists, metric, scale, seed):
    """Also where most vectors are equal, so that centers are vectors and some lists are empty."""
    rng = np.random.default_rng(seed)
    rows, asked = np.float32(rng.integers(-2, 3, (count, 3))), np.float32(rng.integers(-2, 3, (4, 3)))
    rows[: count // 2] = rows[:1]
    if not np.any(rows):
        rows[0, 0] = 1
    scale = np.float32(scale)
    index = build_index(scale * rows, 2, metric=metric, num_lists=min(num_lists, count))
    want = by_hand(asked, rows, metric, count)[0]
    for num_candidates in (count, max(count - 1, 1)):
        k = min(3, num_candidates)
        probe = min(num_lists, count)
        scores, ids = search(scale * asked, index, k, num_candidates=num_candidates, probe=probe)
        best = np.sort(want, 1)[:, ::-1][:, :k]
        unit = {"ip": scale * scale, "l2": scale * scale, "cosine": 1.0}[metric]
        np.testing.assert_allclose(np.take_along_axis(want, np.asarray(ids), 1), scores / unit, rtol=1e-4, atol=1e-5)
        if num_candidates == count:
            np.testing.assert_allclose(scores / unit, best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_near_duplicates_do_not_drown_the_order_of_their_lists(rng, metric):
    """Vectors a thousand times nearer to their center than centers are to each other: far lists keep their order."""
    middles = rng.standard_normal((40, 16))
    vectors = (np.repeat(middles, 30, 0) + 1e-3 * rng.standard_normal((1200, 16))).astype(np.float32)
    index = build_index(vectors, 8, metric=metric, num_lists=60)
    queries = middles[:8].astype(np.float32)
    some, exact = (np.asarray(search(queries, index, 150, num_candidates=n, probe=60)[1]) for n in (300, 1200))
    assert min(found(some[i : i + 1], exact[i : i + 1]) for i in range(8)) >= 140 / 150
