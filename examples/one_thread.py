"""Times with one thread: measured in a process on one core, as XLA starts a thread for each core that it may use."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
from flax import nnx


def on_one_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Calls `function(*args)` in a process with one thread; on all cores if the system is not Linux.

    Models are passed as `nnx.split` returns them.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), pin) as pool:
        return pool.submit(function, *args).result()


def pin() -> None:
    """Restricts this process to one core, if the system is Linux; XLA must not have computed anything before."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def compiled(graph: Any, state: Any, x: jax.Array) -> Callable[[], jax.Array]:
    """Returns the whole forward pass on `x` of a model that `nnx.split` has split, as a function without arguments."""
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(state, x).compile()
    return lambda: run(state, x)


def milliseconds(calls: Sequence[Callable[[], jax.Array]], rounds: int) -> list[list[float]]:
    """Times each call over rounds in which all are called in turn, so that drift affects all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            call().block_until_ready()  # fills the caches, which hold the data of the previous call
            start = time.perf_counter()
            call().block_until_ready()
            own.append(1e3 * (time.perf_counter() - start))
    return times
