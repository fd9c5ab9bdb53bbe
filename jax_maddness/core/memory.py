"""Memory of large results: kept by the process between calls, if the user wishes so."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_NEVER = -1


def retain_freed_memory() -> bool:
    """Lets the process keep the memory that large arrays give back, so that the next ones need no fresh pages.

    XLA allocates every result, and every intermediate, anew. The C library takes large ones (from 128 KB to 32 MB on,
    as the process goes on) from the system each time, which has to clear their pages: 2 to 10 ms for 32 MB, where the
    look-ups of 8192 x 1024 x 1024 take 5. After this call freed memory stays with the process and is used again, by
    everything in it that calls `malloc`: the process does not shrink any more, at most it stays as large as it once
    was. The same from outside: `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 python ...`.

    Call it once, early. `benchmarks/run.py --keep-memory` measures what it brings.

    Returns:
      Whether the C library agreed: False where it is not glibc, and nothing has changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
