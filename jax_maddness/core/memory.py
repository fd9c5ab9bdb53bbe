"""Memory of large results: lets the process keep it between calls, if the user asks for that."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_NEVER = -1


def retain_freed_memory() -> bool:
    """Lets the process keep the memory that large arrays free, so that later arrays need no fresh pages.

    XLA allocates every result and every intermediate anew. For a large one (more than 128 KB at first, more than up to
    32 MB later in the process) the C library asks the operating system each time, which has to clear the pages: 2 to
    10 ms for 32 MB, where the look-ups of 8192 x 1024 x 1024 take 5 ms. After this call, freed memory stays with the
    process and is reused by everything in it that calls `malloc`. The process no longer shrinks: it stays as large as
    it was at its peak. The environment has the same effect: `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 python ...`.

    Call it once, early. `benchmarks/run.py --keep-memory` measures its effect.

    Returns:
      True if the C library accepted both settings; False if it did not or is not glibc, in which case nothing changed.

    Example:
      >>> retain_freed_memory()  # doctest: +SKIP
      True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
