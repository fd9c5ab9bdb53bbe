"""Times of approximations relative to the exact product, measured in turn in a process with one thread."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import statistics
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks import contenders, timing
from benchmarks.approximation import Approximation

ROWS = 1024
"""Number of rows in a call: the test rows, repeated or cut."""
SECONDS = 10.0
"""Seconds for all rounds of a problem."""
ROUNDS = (9, 15)
"""The least and the largest number of rounds."""


def relative_times(
    exact: Approximation, approximations: Sequence[Approximation], x: np.ndarray
) -> list[dict[str, float]]:
    """Returns, for each approximation, `microseconds` per call on `ROWS` rows and `time` relative to `exact`.

    Both are medians over rounds; the relative time is computed in each round. XLA starts as many threads as the process
    has processors, so that a new process with one processor is used.
    """
    spawn = multiprocessing.get_context("spawn")
    first = sorted(os.sched_getaffinity(0))[:1]
    with concurrent.futures.ProcessPoolExecutor(1, spawn, os.sched_setaffinity, (0, first)) as executor:
        rows = np.resize(x, (ROWS, x.shape[1]))
        figures = executor.submit(_milliseconds, [exact, *approximations], rows).result()
    reference, *others = figures
    return [
        {
            "microseconds": round(1e3 * statistics.median(own), 1),
            "time": statistics.median(a / b for a, b in zip(own, reference, strict=True)),
        }
        for own in others
    ]


def _milliseconds(approximations: Sequence[Approximation], x: np.ndarray) -> list[list[float]]:
    """Times each approximation by round. Freed memory is retained, so that no result is written to fresh pages."""
    jax_maddness.retain_freed_memory()
    rows = jnp.asarray(x)
    calls = [contenders.run(a.function, rows, a.operands) for a in approximations]
    entrants = [contenders.Contender("", "", call) for call in calls]
    return timing.interleaved(entrants, seconds=SECONDS, rounds=ROUNDS)
