"""Indexes with lists: how they are built, changed, kept in files, and refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.neighbours import CODEBOOKS, COUNT, NUM_LISTS, assert_same, by_hand, clustered

from jax_maddness import (
    VectorIndex,
    add_vectors,
    build_index,
    load_index,
    remove_vectors,
    save_index,
    search,
    shard_index,
)
from jax_maddness.retrieval import centers
from jax_maddness.retrieval.quantizer import decoded
from jax_maddness.retrieval.scan import unpack


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


def test_centers_of_few_distinct_vectors(rng):
    """Centers that no vector is nearest to move to vectors that are far from theirs."""
    sample = np.float32(np.repeat([[0, 0], [10, 0], [0, 10], [50, 50]], [40, 30, 20, 1], axis=0))
    learned = centers.learn(sample, 4, rng)
    np.testing.assert_allclose(np.unique(learned, axis=0), [[0, 0], [0, 10], [10, 0], [50, 50]], atol=1e-4)
    nearest, distances = centers.assign(sample, learned)
    assert len(np.unique(nearest)) == 4
    np.testing.assert_allclose(distances, 0, atol=1e-3)
