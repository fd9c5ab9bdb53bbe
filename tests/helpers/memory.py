"""Bounds the memory of a process that runs tests, and reports its peak: a plugin that conftest.py registers."""

import ctypes
import gc
import resource
from pathlib import Path

import jax
import pytest

GROWTH = 300e6
"""Bytes that compiled programs may take before they are dropped. Less would compile or load more of them twice."""


def resident() -> float:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> float:
    """The most bytes of this process that have ever been in memory at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def drop_compiled_programs() -> None:
    """Forgets every program that JAX has compiled, and returns the memory to the system.

    A program holds 1 to 3 MB for as long as JAX's caches know it, and there are thousands. glibc keeps what was freed,
    hence the last step; another C library may have no such function.
    """
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class MemoryGuard:
    """Drops compiled programs between tests when they have become many; a run fails where `limit` was exceeded.

    What is dropped and needed again is loaded from the cache on disk. The rule goes by size, not by module: with xdist
    a worker gets tests of all modules, and some modules alone compile more programs than fit.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.peaks: list[tuple[float, str]] = []  # of each worker, with the test that reached it
        self.own = 0.0, "no test"
        self.after_drop: float | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        if item.get_closest_marker("large"):
            self._drop()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item):
        result = yield
        now = resident()
        if peak() > self.own[0]:
            self.own = peak(), item.nodeid
        if self.after_drop is None:
            self.after_drop = now
        if now > self.after_drop + GROWTH:
            self._drop()
        return result

    def _drop(self):
        drop_compiled_programs()
        self.after_drop = resident()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """xdist: a worker has ended, here is what it measured. One that crashed has measured nothing."""
        self.peaks += [tuple(own) for own in getattr(node, "workeroutput", {}).get("peak_memory", [])]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["peak_memory"] = [(max(peak(), self.own[0]), self.own[1])]
            return
        self.peaks.append((max(peak(), self.own[0]), self.own[1]))
        if max(self.peaks)[0] > self.limit and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        most, test = max(self.peaks)
        too_much = most > self.limit
        line = f"peak memory of a worker: {most / 1e9:.2f} GB, first in {test}"
        if too_much:
            line += f"; more than the {self.limit / 1e9:.1f} GB that it may take: the run fails"
        terminalreporter.write_line(line, red=too_much)
