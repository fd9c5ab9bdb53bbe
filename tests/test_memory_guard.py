"""The guard of the tests' own memory: it drops programs when they have grown, and fails a run that took too much."""

import types

import pytest
from helpers import memory


def finished(limit, **config):
    """The session after its end, and its configuration."""
    session = types.SimpleNamespace(config=types.SimpleNamespace(**config), exitstatus=pytest.ExitCode.OK)
    memory.MemoryGuard(limit).pytest_sessionfinish(session)
    return session


@pytest.mark.parametrize(("limit", "status"), [(1.0, "TESTS_FAILED"), (1e15, "OK")])
def test_a_run_fails_where_the_limit_was_exceeded(limit, status):
    assert finished(limit).exitstatus == pytest.ExitCode[status]


def test_a_worker_reports_its_peak_and_leaves_the_verdict_to_the_controller():
    session = finished(1.0, workeroutput={})
    assert session.exitstatus == pytest.ExitCode.OK
    guard = memory.MemoryGuard(1.0)
    guard.pytest_testnodedown(types.SimpleNamespace(workeroutput=session.config.workeroutput))
    guard.pytest_testnodedown(object())  # crashed
    assert len(guard.peaks) == 1
    assert 1e8 < guard.peaks[0][0] <= memory.peak()


def test_programs_are_dropped_once_they_have_grown(monkeypatch):
    sizes, dropped = iter([100.0, 100.0 + memory.GROWTH, 101.0 + memory.GROWTH, 50.0]), []
    monkeypatch.setattr(memory, "resident", lambda: next(sizes))
    monkeypatch.setattr(memory, "drop_compiled_programs", lambda: dropped.append(None))
    guard = memory.MemoryGuard(1e9)
    for expected in (0, 0, 1):
        teardown = guard.pytest_runtest_teardown(types.SimpleNamespace(nodeid="a test"))
        next(teardown)
        with pytest.raises(StopIteration):
            next(teardown)
        assert len(dropped) == expected
    assert guard.after_drop == 50.0
    assert guard.own[1] == "a test"


@pytest.mark.parametrize(("mark", "count"), [("large", 1), ("slow", 0)])
def test_a_large_test_starts_without_the_programs_of_others(monkeypatch, mark, count):
    dropped = []
    monkeypatch.setattr(memory, "drop_compiled_programs", lambda: dropped.append(None))
    item = types.SimpleNamespace(get_closest_marker=lambda name: name == mark)
    memory.MemoryGuard(1e9).pytest_runtest_setup(item)
    assert len(dropped) == count
