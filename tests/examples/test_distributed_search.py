"""Search by processes that have a part of the vectors each."""

import numpy as np
import pytest

from examples import distributed_search

COUNT = 3 * distributed_search.BLOCK // 2


def test_a_part_of_the_vectors_is_made_without_the_others():
    whole = distributed_search.vectors(0, COUNT)
    assert whole.shape == (COUNT, distributed_search.FEATURES)
    for start, stop in ((0, 10), (4000, 4200), (distributed_search.BLOCK, COUNT)):
        np.testing.assert_array_equal(distributed_search.vectors(start, stop), whole[start:stop])


def test_of_equal_scores_the_lower_id_comes_first(monkeypatch):
    monkeypatch.setattr(distributed_search.multihost_utils, "process_allgather", lambda a: np.stack([a, a[..., ::-1]]))
    scores, ids = np.float32([[3, 1, -np.inf], [-0.5, -0.5, -2]]), np.int32([[7, 4, -1], [9, 8, 2]])
    found, names = distributed_search.merged(scores, ids)
    np.testing.assert_array_equal(found, np.float32([[3, 3, 1], [-0.5, -0.5, -0.5]]))
    np.testing.assert_array_equal(names, [[7, 7, 4], [8, 8, 9]])


@pytest.mark.slow
def test_two_processes_find_the_nearest_vectors_of_all(tmp_path):
    options = ["--codebooks=8", "--k=5", "--queries=9", "--rounds=1", f"--folder={tmp_path}", f"--vectors={COUNT}"]
    args = distributed_search.parse(options)
    distributed_search.build(args, 1)
    distributed_search.build(args, 2)
    results = [r for way in distributed_search.WAYS for r in distributed_search.start(args, 2, [None, None], way)]
    stored, queries = distributed_search.vectors(0, COUNT), distributed_search.queries_of(args)
    cosines = np.float64(queries) @ stored.T / np.linalg.norm(stored, axis=1)
    for result in results:
        np.testing.assert_array_equal(result["exact"], np.argsort(-cosines)[:, :5])
        assert result["recall"] > 0.9
    assert results[0]["ids"] == results[1]["ids"]
    assert results[2]["ids"] == results[3]["ids"]
    assert "| 2 processes |" in distributed_search.row("2 processes", results)
