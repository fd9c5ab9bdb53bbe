"""The shapes that are measured, both where look-ups should win and where they should not."""

from __future__ import annotations

from benchmarks.records import Problem

QUICK = (
    "8192x1024x1024:64,32+tiers+dtypes+columns+threads",
    "4096x4096x4096:256,128+threads",
    "16x4096x4096:256+threads",
    "1x4096x4096:256",
    "10000x512x100:32,16+read+threads",
    "1000x768x3072:48",
    "4096x1024x1024:256",  # D/C = 4
    "1x1024x1024:64",
    "8192x1024x16:64,256",  # few outputs: nearly all of the time is encoding
    "1000x64x64:4,16",  # few features
    "10000x64x10:16",  # both
    "1x64x16:4+loop",
)
FULL = (
    *QUICK,
    "100000x512x100:32+read+threads",  # x comes from memory
    "64x4096x4096:256+threads",
    "16x1024x1024:64",
    "1x4096x4096:128",
    "4096x1024x1000:128+dtypes+columns",  # outputs that do not fill whole cache lines
    "10000x20x100:5",  # D/C = 4, few features
)

_ROWS = (1, 2, 3, 4, 7, 8, 10, 15, 16, 17, 32, 33, 63, 64, 65, 128, 129, 255, 256, 257, 512, 1000, 1024)
_OUTPUTS = (1, 2, 3, 4, 8, 10, 15, 16, 17, 32, 33, 64, 65, 100, 128, 130, 256, 257, 512, 1000, 1024, 2048)
_CODEBOOKS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 100, 128, 130, 256, 257)
_FEATURES = (3, 4, 7, 8, 9, 15, 16, 17, 20, 32, 33, 64, 128)

LOOPED = {
    "N": tuple(Problem(n, 512, 256, (32,)) for n in _ROWS),
    "M": tuple(Problem(1000, 512, m, (32,)) for m in _OUTPUTS),
    "C": tuple(Problem(1000, 16 * c, 256, (c,)) for c in _CODEBOOKS),
    "D": tuple(Problem(1000, 32 * d, 16, (32,)) for d in _FEATURES),
    "D, one row": tuple(Problem(1, 32 * d, 256, (32,)) for d in _FEATURES),
    "M, one row": tuple(Problem(1, 1024, m, (64,)) for m in (*_OUTPUTS, 4096, 8192)),
}
"""Sweeps of N, M, C or D with the others constant (along C, D/C is): powers of two, sizes beside them, odd shapes.
They are timed inside a jitted loop, as a call from Python would take longer than the smallest problem."""
CALLED = {
    "N, from memory": tuple(Problem(n, 512, 64, (32,)) for n in (1024, 2048, 4096, 8192, 16384, 32768, 65536)),
    "M, past the caches": tuple(Problem(256, 1024, m, (64,)) for m in (512, 1024, 2048, 4096, 8192, 16384)),
}
"""Sweeps of sizes that exceed the caches, with x of 2 to 128 MB and tables of 0.5 to 16 MB: plain calls."""
SWEEP = LOOPED | CALLED
