"""Indexes with lists: exact where everything is scanned, honest where not, and in agreement with everything else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.neighbours import CODEBOOKS, COUNT, assert_same, by_hand, clustered, found
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jax_maddness import (
    VectorIndex,
    add_vectors,
    build_index,
    disabled_export_checks,
    load_index,
    remove_vectors,
    save_index,
    search,
    shard_index,
    testing,
    top_k,
)
from jax_maddness.retrieval import centers
from jax_maddness.retrieval.index import METRICS
from jax_maddness.retrieval.local import approximate_scores, scaled_queries
from jax_maddness.retrieval.quantizer import decoded
from jax_maddness.retrieval.scan import unpack

NUM_LISTS = 9


@pytest.fixture(scope="module")
def listed(vectors):
    return {metric: build_index(vectors, CODEBOOKS, metric=metric, num_lists=NUM_LISTS) for metric in METRICS}


def test_every_vector_is_in_the_list_of_the_nearest_center(listed, vectors, metric):
    index = listed[metric]
    assert index.codes.shape[0] * 64 == len(index.lists.positions)
    np.testing.assert_array_equal(index.ids, np.arange(COUNT))
    np.testing.assert_array_equal(index.lists.ranges[:, 1].sum(), COUNT)
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors
    rows = np.ldexp(rows - (0 if index.origin is None else np.asarray(index.origin)), -index.exponent)
    of_centers = np.asarray(index.lists.centers)[:, :-1]
    distances = ((rows[:, None] - of_centers) ** 2).sum(-1)
    for number, (first, count) in enumerate(np.asarray(index.lists.ranges)):
        positions = np.asarray(index.lists.positions)[first * 64 : first * 64 + count]
        assert (np.diff(positions) > 0).all()
        np.testing.assert_allclose(distances[positions, number], distances[positions].min(1), rtol=1e-3, atol=1e-5)
        end = -(-count // 64) * 64
        assert (np.asarray(index.lists.positions)[first * 64 + count : first * 64 + end] == -1).all()


def test_codes_are_those_of_residuals(listed, vectors):
    """A vector is near its center plus what its codes stand for, nearer than to the center alone."""
    index = listed["ip"]
    lists, known = index.lists, np.asarray(index.lists.positions) >= 0
    of_places = np.repeat(np.arange(NUM_LISTS), -(-np.asarray(lists.ranges)[:, 1] // 64) * 64)[known]
    base = np.asarray(lists.centers)[of_places, :-1]
    codes = np.asarray(unpack(index.codes))[known, :CODEBOOKS]
    approximation = base + decoded(index.quantizer, codes)[:, :-1]
    rows = np.ldexp(vectors[np.asarray(lists.positions)[known]], -index.exponent)
    assert ((rows - approximation) ** 2).sum() < 0.3 * ((rows - base) ** 2).sum()


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


def test_added_and_removed(listed, vectors, queries, metric):
    index, more = listed[metric], clustered(8, 70)
    larger = add_vectors(index, more)
    both = np.concatenate([vectors, more])
    want = by_hand(queries, both, metric, 5)[1]
    np.testing.assert_array_equal(search(queries, larger, 5, num_candidates=COUNT + 69, probe=NUM_LISTS)[1], want)
    assert larger.lists.ranges[:, 1].sum() == larger.count == COUNT + 70
    assert_same(remove_vectors(larger, np.arange(COUNT, COUNT + 70)), index)
    again = add_vectors(remove_vectors(index, [3, 500]), vectors[[3, 500]], [3, 500])
    assert_same(dataclasses.replace(again, vectors=None), dataclasses.replace(index, vectors=None))
    empty = remove_vectors(index, np.arange(COUNT))
    assert (np.asarray(search(queries, empty, 3, num_candidates=16)[1]) == -1).all()
    assert add_vectors(empty, vectors[:2]).count == 2


def test_a_bias_that_masks_does_not_drown_a_vector_that_is_added(vectors, queries):
    bias = np.zeros(COUNT, np.float32)
    index = build_index(vectors, CODEBOOKS, bias=bias, num_lists=4)
    more, biases = clustered(8, 40), np.where(np.arange(40) % 2, -1e9, 0).astype(np.float32)
    larger = add_vectors(index, more, bias=biases)
    both = np.concatenate([vectors, more]), np.concatenate([bias, biases])
    want = by_hand(queries, both[0], "ip", 5, both[1])[1]
    np.testing.assert_array_equal(search(queries, larger, 5, num_candidates=COUNT, probe=4)[1], want)


def test_saved_and_loaded(listed, tmp_path, metric):
    save_index(tmp_path / "lists.index", listed[metric])
    assert_same(load_index(tmp_path / "lists.index"), listed[metric])
    empty = remove_vectors(listed[metric], np.arange(COUNT))
    save_index(tmp_path / "empty.index", empty)
    assert_same(load_index(tmp_path / "empty.index"), empty)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"probe": 0}, "scan 0 of 9"),
        ({"probe": NUM_LISTS + 1}, "scan 10 of 9"),
        ({"ranges": lambda a: a.at[2, 1].add(1)}, "each vector once|follow"),
        ({"ranges": lambda a: a.at[0, 0].set(1)}, "follow"),
        ({"ranges": lambda a: a.at[1, 1].set(-5)}, "follow"),
        ({"positions": lambda a: a.at[0].set(a[1])}, "each vector once"),
        ({"positions": lambda a: a[:-64]}, "codes is|follow"),
        ({"centers": lambda a: a[:, :-1]}, "lists.centers"),
        ({"centers": lambda a: a.at[0, 0].set(jnp.nan)}, "finite"),
    ],
)
def test_lists_that_do_not_fit_are_not_saved(listed, tmp_path, changes, match):
    lists = listed["l2"].lists
    changed = {name: f(getattr(lists, name)) if callable(f) else f for name, f in changes.items()}
    index = dataclasses.replace(listed["l2"], lists=dataclasses.replace(lists, **changed))
    with pytest.raises(ValueError, match=match):
        save_index(tmp_path / "wrong.index", index)


def test_wrong_arguments(listed, indexes, vectors, queries):
    for num_lists, kind in ((0, ValueError), (COUNT + 1, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(kind, match="`num_lists`"):
            build_index(vectors, CODEBOOKS, num_lists=num_lists)
    for probe, kind in ((0, ValueError), (NUM_LISTS + 1, ValueError), (1.5, TypeError)):
        with pytest.raises(kind, match="`probe`"):
            search(queries, listed["l2"], 3, probe=probe)
    with pytest.raises(ValueError, match="num_lists"):
        search(queries, indexes["l2"], 3, probe=1)
    with pytest.raises(ValueError, match="Leave out `probe`"):
        search(queries, listed["l2"], 3, probe=1, recall=0.9)
    with pytest.raises(ValueError, match="num_lists"):
        shard_index(listed["l2"], jax.make_mesh((1,), ("v",)), "v")


def test_an_index_with_lists_is_a_pytree(listed, queries):
    leaves, structure = jax.tree.flatten(listed["l2"])
    index = jax.tree.unflatten(structure, leaves)
    assert isinstance(index, VectorIndex)
    assert "9 lists" in repr(index)
    np.testing.assert_array_equal(search(queries, index, 3)[1], search(queries, listed["l2"], 3)[1])


def test_measured_recall_takes_ever_longer(listed):
    rows = listed["l2"].recall
    assert all(len(row) == 5 and 1 <= row[-1] <= NUM_LISTS for row in rows)
    assert rows[-1][0] == COUNT or max(row[2] for row in rows) > 0.98
    best = np.zeros(3)
    for row in rows:
        assert (np.array(row[1:4]) > best).any() or not best.any()
        best = np.maximum(best, row[1:4])


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


def test_centers_of_few_distinct_vectors(rng):
    """Centers that no vector is nearest to move to vectors that are far from theirs."""
    sample = np.float32(np.repeat([[0, 0], [10, 0], [0, 10], [50, 50]], [40, 30, 20, 1], axis=0))
    learned = centers.learn(sample, 4, rng)
    np.testing.assert_allclose(np.unique(learned, axis=0), [[0, 0], [0, 10], [10, 0], [50, 50]], atol=1e-4)
    nearest, distances = centers.assign(sample, learned)
    assert len(np.unique(nearest)) == 4
    np.testing.assert_allclose(distances, 0, atol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_near_duplicates_do_not_drown_the_order_of_their_lists(rng, metric):
    """Vectors a thousand times nearer to their center than centers are to each other: far lists keep their order."""
    centers = rng.standard_normal((40, 16))
    vectors = (np.repeat(centers, 30, 0) + 1e-3 * rng.standard_normal((1200, 16))).astype(np.float32)
    index = build_index(vectors, 8, metric=metric, num_lists=60)
    queries = centers[:8].astype(np.float32)
    found, exact = (np.asarray(search(queries, index, 150, num_candidates=n, probe=60)[1]) for n in (300, 1200))
    shared = [len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)]
    assert min(shared) >= 140
