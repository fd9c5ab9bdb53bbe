"""How long approximations take beside the exact product: in turn, in a process with one thread."""

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
"""Of a call: the test rows, again and again or not all."""
SECONDS = 10.0
"""For all rounds of a problem."""
ROUNDS = (9, 15)
"""The least and the largest number of rounds."""


def relative_times(
    exact: Approximation, approximations: Sequence[Approximation], x: np.ndarray
) -> list[dict[str, float]]:
    """For each, `microseconds` of a call on `ROWS` rows, and its time relative to `exact`'s in the same round.

    Both are medians over rounds. XLA makes as many threads as the process has processors when JAX starts: so it is
    another process, which has one.
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
    """Of each one's calls, by round. Freed memory is kept, so that results are no fresh pages, whoever makes them."""
    jax_maddness.retain_freed_memory()
    rows = jnp.asarray(x)
    calls = [contenders.run(a.function, rows, a.operands) for a in approximations]
    entrants = [contenders.Contender("", "", call) for call in calls]
    return timing.interleaved(entrants, seconds=SECONDS, rounds=ROUNDS)
