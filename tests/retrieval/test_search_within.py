"""search_within: all vectors whose scores reach a threshold, exactly where all of them are candidates."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.neighbours import CODEBOOKS, COUNT, NUM_LISTS, by_hand, clustered

from jax_maddness import build_index, search, search_within, shard_index
from jax_maddness.retrieval.index import METRICS

SHARES = np.array([0.0, 0.003, 0.1, 0.6, 1.0])
"""Shares of the vectors that pass: none, two, some that take several searches, all."""


def thresholds(scores, shares):
    """For each row of scores, a threshold between two of them that a share of them reaches."""
    ordered = np.sort(scores, 1)[:, ::-1]
    counts = np.round(shares * scores.shape[1]).astype(int)
    padded = np.pad(ordered, ((0, 0), (1, 1)), mode="edge") + np.eye(1, scores.shape[1] + 2) * 1e3
    padded[:, -1] -= 1e3
    rows = np.arange(len(scores))
    return (padded[rows, counts] + padded[rows, counts + 1]) / 2


def parts(limits, *arrays):
    return [np.split(array, limits[1:-1]) for array in arrays]


def test_with_all_candidates_it_is_what_brute_force_finds(indexes, vectors, queries, metric):
    scores, order = by_hand(queries, vectors, metric, COUNT)
    least = thresholds(scores, SHARES[np.arange(len(queries)) % len(SHARES)])
    limits, found, ids = search_within(queries, indexes[metric], min_score=least, num_candidates=COUNT)
    assert (limits.dtype, found.dtype, ids.dtype) == (np.int64, np.float32, np.int32)
    assert (limits[0], limits[-1], len(limits)) == (0, len(ids), len(queries) + 1)
    for row, (values, names) in enumerate(zip(*parts(limits, found, ids), strict=True)):
        np.testing.assert_array_equal(names, order[row][: (scores[row] >= least[row]).sum()])
        np.testing.assert_allclose(values, scores[row][names], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["scan", "lists"])
def test_few_candidates_find_most(indexes, listed, vectors, queries, metric, kind):
    index, probe = (indexes[metric], None) if kind == "scan" else (listed[metric], NUM_LISTS)
    scores, _ = by_hand(queries, vectors, metric, 1)
    least = thresholds(scores, SHARES[np.arange(len(queries)) % len(SHARES)])
    limits, found, ids = search_within(queries, index, min_score=least, num_candidates=40, probe=probe)
    wanted = total = 0
    for row, (values, names) in enumerate(zip(*parts(limits, found, ids), strict=True)):
        assert len(np.unique(names)) == len(names)
        np.testing.assert_allclose(values, scores[row][names], rtol=1e-4, atol=1e-4)
        true = np.flatnonzero(scores[row] >= least[row])
        assert np.isin(names, true).all()
        wanted, total = wanted + len(names), total + len(true)
    assert wanted > 0.9 * total


def test_distances_are_not_squared(indexes, vectors, queries):
    scores, _ = by_hand(queries, vectors, "l2", 1)
    radius = float(np.sqrt(-np.median(scores)))
    by_distance = search_within(queries, indexes["l2"], max_distance=radius)
    by_score = search_within(queries, indexes["l2"], min_score=-(radius**2))
    for one, other in zip(by_distance, by_score, strict=True):
        np.testing.assert_array_equal(one, other)
    assert abs(by_distance[0][-1] / scores.size - 0.5) < 0.05


@pytest.mark.parametrize("count", [1, 2, 150])
def test_a_score_that_equals_the_threshold_is_enough(count):
    rows = np.float32(np.random.default_rng(0).integers(-2, 3, (count, 4)))
    index, asked = build_index(rows, 2, metric="l2"), rows[:20]
    limits, found, _ = search_within(asked, index, max_distance=2, num_candidates=count)
    assert limits[-1] == sum((((one - rows) ** 2).sum(1) <= 4).sum() for one in asked)
    assert found.min() == (-4 if count > 2 else 0)


@pytest.mark.parametrize("seed", range(12))
def test_any_thresholds_and_candidates(indexes, vectors, seed):
    rng = np.random.default_rng(seed)
    metric, num_queries = METRICS[seed % len(METRICS)], int(rng.integers(1, 5))
    num_candidates = int(rng.integers(0, 3)) * COUNT // 2
    asked = clustered(seed + 10, num_queries) * np.float32(10.0 ** rng.integers(-2, 3))
    scores, _ = by_hand(asked, vectors, metric, 1)
    least = thresholds(scores, SHARES[rng.integers(0, len(SHARES), num_queries)])
    excluded = rng.integers(-1, COUNT, (num_queries, 3))
    limits, _, ids = search_within(
        asked, indexes[metric], min_score=least, num_candidates=num_candidates or 200, exclude=excluded
    )
    assert (limits[0], limits[-1], len(limits)) == (0, len(ids), num_queries + 1)
    for row in range(num_queries):
        names = np.sort(ids[limits[row] : limits[row + 1]])
        passing = np.setdiff1d(np.flatnonzero(scores[row] >= least[row]), excluded[row])
        if num_candidates == COUNT or 2 * len(passing) > COUNT:
            np.testing.assert_array_equal(names, passing)
        assert len(np.unique(names)) == len(names)
        assert np.isin(names, passing).all()


def test_what_is_excluded_or_always_rescored(indexes, vectors, queries):
    index, everything = indexes["ip"], {"min_score": -np.inf, "num_candidates": 300}
    out = np.arange(0, COUNT, 2)
    mask = np.zeros((len(queries), COUNT), bool)
    mask[:, out] = True
    for exclude in (out, mask, mask[0]):
        limits, _, ids = search_within(queries, index, exclude=exclude, **everything)
        np.testing.assert_array_equal(np.diff(limits), COUNT // 2)
        assert (ids % 2 == 1).all()
    scores, order = by_hand(queries, vectors, "ip", 1)
    best = scores.max(1)
    limits, _, ids = search_within(
        queries, index, min_score=best - 1e-3 * abs(best), num_candidates=1, always=order.astype(np.int32)
    )
    assert all(order[row, 0] in ids[limits[row] : limits[row + 1]] for row in range(len(queries)))


def test_approximate_scores(indexes, queries):
    index = dataclasses.replace(indexes["cosine"], vectors=None)
    scores, ids = search(queries, index, COUNT, num_candidates=0)
    limits, found, names = search_within(queries, index, min_score=0.2, num_candidates=0)
    for row in range(len(queries)):
        wanted = np.asarray(ids[row])[np.asarray(scores[row]) >= 0.2]
        np.testing.assert_array_equal(names[limits[row] : limits[row + 1]], wanted)
    assert found.min() >= np.float32(0.2)


def test_queries_that_are_not_finite_find_nothing(indexes, queries, metric):
    asked = queries.copy()
    asked[0, 0], asked[2, 1] = np.nan, np.inf
    limits, _, ids = search_within(asked, indexes[metric], min_score=-np.inf, num_candidates=8)
    counts = np.diff(limits)
    assert (counts[[0, 2]] == 0).all()
    assert (np.delete(counts, [0, 2]) == COUNT).all()
    assert (ids >= 0).all()


def test_ids_of_the_caller_and_sharded_indexes(vectors, queries):
    index = build_index(vectors, CODEBOOKS, metric="l2", ids=np.arange(COUNT)[::-1] * 3)
    given = {"max_distance": 6.0, "num_candidates": COUNT}
    wanted = search_within(queries, index, **given)
    assert set(wanted[2]) <= set(range(0, 3 * COUNT, 3))
    sharded = shard_index(index, jax.make_mesh((len(jax.devices()),), ("i",)), "i")
    for one, other in zip(search_within(queries, sharded, **given), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("metric_of", "options", "message"),
    [
        ("l2", {}, "`min_score` or `max_distance`: neither"),
        ("l2", {"min_score": 0, "max_distance": 1}, "both are given"),
        ("ip", {"max_distance": 1}, "`max_distance` is for distances"),
        ("l2", {"max_distance": -1}, "`max_distance` is -1"),
        ("ip", {"min_score": np.nan}, "`min_score` is nan"),
        ("ip", {"min_score": np.zeros(3)}, "`min_score` has shape"),
        ("ip", {"min_score": 0.0, "num_candidates": -1}, "`num_candidates`"),
        ("ip", {"min_score": 0.0, "probe": 2}, "`probe`"),
        ("ip", {"min_score": 0.0, "exclude": np.zeros((3, 2), int)}, "`exclude` has shape"),
    ],
)
def test_arguments(indexes, queries, metric_of, options, message):
    with pytest.raises(ValueError, match=message):
        search_within(queries, indexes[metric_of], **options)


def test_shapes_and_traces(indexes, queries):
    with pytest.raises(ValueError, match=r"queries\[None\]"):
        search_within(queries[0], indexes["ip"], min_score=0.0)
    with pytest.raises(TypeError, match="`queries` is traced"):
        jax.jit(lambda q: search_within(q, indexes["ip"], min_score=0.0))(queries)
    with pytest.raises(TypeError, match="`min_score` is traced"):
        jax.jit(lambda least: search_within(queries, indexes["ip"], min_score=least))(0.5)
    limits, scores, ids = search_within(clustered(0, 0), indexes["ip"], min_score=0.0)
    assert (limits.tolist(), len(scores), len(ids)) == ([0], 0, 0)
