"""measure_recall: the share of true neighbors that a search finds, on queries of the caller."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.neighbours import CODEBOOKS, COUNT, FEATURES, NUM_LISTS, by_hand, clustered, found

from jax_maddness import build_index, load_index, measure_recall, save_index, search, shard_index


@pytest.mark.parametrize("num_candidates", [12, COUNT])
def test_it_is_what_brute_force_says(indexes, vectors, queries, metric, num_candidates):
    index = indexes[metric]
    share, at_least = measure_recall(queries, index, num_candidates=num_candidates)
    ids = search(queries, index, 10, num_candidates=num_candidates)[1]
    assert share == pytest.approx(found(ids, by_hand(queries, vectors, metric, 10)[1]), abs=1e-9)
    assert at_least < share
    if num_candidates == COUNT:
        assert (share, at_least) == (1.0, pytest.approx(len(queries) / (len(queries) + 1), abs=1e-4))


def test_blocks_ids_and_biases(vectors, tmp_path):
    bias, asked = np.linspace(-30, 30, COUNT, dtype=np.float32), clustered(5, 150)
    index = build_index(vectors, CODEBOOKS, bias=bias, queries=asked, ids=3 * np.arange(COUNT) + 1)
    ids = search(asked, index, 5, num_candidates=8)[1]
    wanted = found((np.asarray(ids) - 1) // 3, by_hand(asked, vectors, "ip", 5, bias)[1])
    assert measure_recall(asked, index, 5, num_candidates=8)[0] == pytest.approx(wanted, abs=1e-9)
    sharded = shard_index(index, jax.make_mesh((len(jax.devices()),), ("i",)), "i")
    assert measure_recall(asked, sharded, 5, num_candidates=COUNT)[0] == 1.0
    save_index(tmp_path / "index", index)
    mapped = load_index(tmp_path / "index", mmap=True)
    assert measure_recall(asked, mapped, 5, num_candidates=8)[0] == pytest.approx(wanted, abs=1e-9)


def test_a_promise_holds_for_queries_like_those_it_was_made_for(indexes, listed, metric):
    like, unlike = clustered(7, 100), np.float32(np.random.default_rng(0).standard_normal((100, FEATURES)))
    share, _ = measure_recall(like, indexes[metric], recall=0.9)
    assert share > 0.9
    assert measure_recall(unlike, indexes[metric], num_candidates=16)[0] < 1
    one, all_lists = (measure_recall(like, listed[metric], probe=n)[0] for n in (1, NUM_LISTS))
    assert one < all_lists


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "`k`"),
        ({"k": COUNT + 1}, "`k` is 601, but `index` has 600"),
        ({"k": 100}, "`num_candidates` is 64, less than `k`"),
        ({"recall": 2.0}, "`recall`"),
        ({"probe": 2}, "`probe`"),
        ({"queries": np.zeros((0, FEATURES))}, "`queries`"),
        ({"queries": np.zeros((2, 3))}, "`queries` has 3 features"),
        ({"queries": np.full((2, FEATURES), np.nan)}, "`queries`"),
    ],
)
def test_arguments(indexes, queries, options, message):
    with pytest.raises(ValueError, match=message):
        measure_recall(**{"queries": queries, "index": indexes["ip"], **options})


def test_an_index_without_vectors_and_traces(indexes, queries):
    with pytest.raises(ValueError, match="keeps no vectors"):
        measure_recall(queries, dataclasses.replace(indexes["ip"], vectors=None))
    with pytest.raises(TypeError, match="`queries`"):
        jax.jit(lambda q: measure_recall(q, indexes["ip"]))(queries)
    with pytest.raises(TypeError, match="`index` is traced"):
        jax.jit(lambda i: measure_recall(queries, i))(indexes["ip"])
