"""Names what the times of kernels depend on: the processor and the number of threads."""

from __future__ import annotations

import functools
import os
import platform


@functools.cache
def processor() -> str:
    """Returns the name of the processor, such as "AMD EPYC 9R14"."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown CPU"


def threads() -> int:
    """Returns the number of threads that this process may run at a time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
