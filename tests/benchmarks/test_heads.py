"""The benchmark of output layers on a tiny one: what is timed finds the greatest outputs, and the table comes out."""

import numpy as np
import pytest

from benchmarks import heads
from benchmarks.head_problems import Problem
from benchmarks.search_contenders import Searcher
from benchmarks.search_report import EXACT, LOOK_UPS


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def problem(request, rng):
    x = rng.standard_normal((3, 80, 4)).astype(np.float32) @ rng.standard_normal((4, 16)).astype(np.float32)
    w, b = rng.standard_normal((16, 300)).astype(np.float32), rng.standard_normal(300).astype(np.float32)
    return Problem("tiny", w, b if request.param else None, *x)


def test_every_searcher_finds_the_greatest_outputs(problem):
    records = heads.measure(problem, [1, 8], 0.1)
    found = {r["what"]: r for r in records if r["rows"] == 8}
    assert found[EXACT]["share"] == 1.0
    assert all(r["share"] > 0.9 for r in records)  # int8 is near, an index with so many candidates too
    assert found[LOOK_UPS]["num_candidates"] in heads.CANDIDATES
    lines = heads.table(records).splitlines()
    assert len(lines) == 2 + len(found)
    assert all(line.count("|") == 7 and line.count("x)") == 2 for line in lines[2:])


def test_the_fewest_candidates_that_find_enough_are_taken(rng):
    rows, truth = np.zeros((1000, 2), np.float32), np.arange(1000)[:, None]

    def finding(share, count):
        found = np.where(np.arange(1000) < share * 1000, np.arange(1000), -1)[:, None]
        searcher = Searcher("some", None, count)
        object.__setattr__(searcher, "ids", lambda rows, batch: found)
        return searcher

    some = [finding(share, count) for share, count in ((0.9, 8), (0.999, 16), (1.0, 32))]
    assert heads.fewest(some, rows, truth).num_candidates == 16
    assert heads.fewest(some[:1], rows, truth).num_candidates == 8
