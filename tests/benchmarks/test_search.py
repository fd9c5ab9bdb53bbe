"""The benchmark of searching: its choice, table and picture on made-up results, then its searchers on small data."""

import types

import numpy as np
import pytest

import jax_maddness
from benchmarks import search_contenders, search_measure, search_report
from benchmarks.search_report import EXACT, FAISS, LOOK_UPS, Result, Target


def made_up(what, num_candidates, share, ms, batch=1):
    return Result("neighbors", what, batch, 1, num_candidates, share, {"others": share}, (0.9 * ms, ms, 1.1 * ms))


RESULTS = [
    made_up(EXACT, 0, 1.0, 20.0),
    made_up(LOOK_UPS, 16, 0.95, 0.5),
    made_up(LOOK_UPS, 64, 0.995, 1.0),
    made_up(LOOK_UPS, 256, 0.999, 3.0),
    made_up(FAISS, 64, 0.97, 0.7),
    made_up(FAISS, 256, 0.992, 2.0),
]


def test_the_quickest_that_finds_enough_is_compared():
    targets = [Target(EXACT, 10.0), Target(FAISS, 3.0), Target("not installed", 1.0)]
    first, second = search_report.verdicts("it", RESULTS, 0.99, targets)
    assert "**reached, 20.00x** (64 candidates, 0.9950; " in first
    assert "**not reached, 2.00x** (64 candidates, 0.9950; faiss fast scan + refine: 256 candidates, 0.9920)" in second


def test_nothing_is_claimed_where_too_little_is_found():
    (line,) = search_report.verdicts("it", RESULTS, 0.9995, [Target(EXACT, 10.0)])
    assert "not reached: no number of candidates tried reaches 0.9995" in line


def test_rows_are_per_query_and_mark_what_was_chosen():
    results = [made_up(EXACT, 0, 1.0, 64.0, batch=64), made_up(LOOK_UPS, 32, 0.992, 8.0, batch=64)]
    text = "".join(search_report.rows(results, 0.99))
    assert f"| {EXACT} | all | 1.0000 | 1 (0.9-1.1) | 1.0x |" in text
    assert f"| **{LOOK_UPS}** | 32 | 0.9920 | 0.125 (0.113-0.138) | **8.0x** |" in text


def test_scans_are_shares_of_the_fastest_read():
    found = {"vectors": 1000, "codebooks": 4, "bytes": 2000.0, "scan_ms": 0.002, "read_ms": 0.001, "clock_ghz": 2.0}
    text = "".join(search_report.scans([found]))
    assert "| 1,000 | 4 | 0.0 | 0.002 | 1.0 | 1.0 | 2.0 | 50% |" in text


def test_the_picture_is_drawn(tmp_path):
    pictures = pytest.importorskip("benchmarks.pictures")
    pictures.recall(tmp_path / "search.png", RESULTS, 0.99, "made up")
    assert (tmp_path / "search.png").stat().st_size > 10_000


@pytest.mark.slow
def test_searchers_agree_where_every_candidate_is_checked():
    """Recall is 1 for XLA's, faiss's and our own answer, in batches that do not divide the number of queries."""
    rng = np.random.default_rng(0)
    database, queries = (rng.standard_normal((n, 16), np.float32) for n in (300, 5))
    problem = types.SimpleNamespace(database=database, validation=queries, tests={"others": queries[::-1].copy()})
    indices = {LOOK_UPS: jax_maddness.build_index(database, 8), **{
        what: build() for what, build in search_contenders.faiss_indices(database, 8).items()
    }}  # fmt: skip
    args = types.SimpleNamespace(threads=1, candidates=[300], seconds=0.0, rounds=(1, 1))
    for batch in (1, 4):
        results = search_measure.neighbors(args, {"neighbors": problem, "indices": indices}, batch)
        assert [r.what for r in results] == [EXACT, *indices]
        assert all(r.validation == 1.0 and r.tests == {"others": 1.0} for r in results)


def test_recall_is_the_share_that_is_found():
    assert search_measure.recall(np.array([[3, 1], [5, 6]]), np.array([[1, 2], [7, 8]])) == 0.25
