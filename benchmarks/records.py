"""The data types: a problem, a measurement, and the names of contenders. Imports the standard library only."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

Record = dict[str, Any]
"""A line of a JSON file."""

F32 = "XLA f32"
BF16 = "XLA bf16 -> f32"
INT8_GIVEN = "XLA int8, given as int8"
INT8_DYNAMIC = "XLA int8, dynamic"
TORCH = "torch int8, dynamic"
RIVALS = (F32, BF16, INT8_GIVEN, INT8_DYNAMIC, TORCH)
"""The alternatives to `amm`, which are exact or nearly so."""

SMALL_BATCH = "small batch"
"""The variant of amm with a second copy of the tables for small batches (`with_small_batch_tables`)."""
IN_A_LOOP = "in a jitted loop"
"""The variant without Python: calls inside a compiled loop."""

EXTRAS = ("tiers", "dtypes", "columns", "read", "loop", "threads")
"""Optional measurements: every tier; rows of bf16 and f16; column-major x; merely reading x; calls inside a jitted
loop; all of it with more threads."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A product `x [rows, features] @ w [features, outputs]`, with the numbers of codebooks to measure it at.

    Example:
      >>> Problem.parse("8192x1024x1024:64,32+tiers")
      Problem(rows=8192, features=1024, outputs=1024, codebooks=(64, 32), extras=('tiers',))
    """

    rows: int
    features: int
    outputs: int
    codebooks: tuple[int, ...]
    extras: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Problem:
        """Parses `NxDxM:C,...+extra+...`; raises ValueError otherwise."""
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+):(\d+(?:,\d+)*)((?:\+[a-z]+)*)", text)
        extras = tuple(match[5].split("+")[1:]) if match else ()
        if match is None or not set(extras) <= set(EXTRAS):
            raise ValueError(
                f"{text!r} is not a problem; write NxDxM:C, such as 8192x1024x1024:64,32, and after it any of "
                + ", ".join(f"+{extra}" for extra in EXTRAS)
            )
        rows, features, outputs = (int(match[i]) for i in (1, 2, 3))
        return cls(rows, features, outputs, tuple(map(int, match[4].split(","))), extras)

    def __str__(self) -> str:
        codebooks = ",".join(map(str, self.codebooks))
        return f"{self.rows}x{self.features}x{self.outputs}:{codebooks}" + "".join(f"+{e}" for e in self.extras)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The time of one call of a contender: median, quartiles and minimum over rounds, in milliseconds.

    Attributes:
      what: the name of the contender.
      kind: `amm`, `rival` (one of RIVALS), `read` (of x), `loop` (a call inside a jitted loop) or `other`.
      codebooks: number of codebooks of amm; 0 for all other contenders.
      variant: variant of amm; "" is a plain call on the best tier.
      itemsize: bytes of an entry of x and y.
      clock_ghz: the clock of the core around this measurement, if it is known.
    """

    what: str
    kind: str
    rows: int
    features: int
    outputs: int
    threads: int
    median_ms: float
    quartiles_ms: tuple[float, float]
    least_ms: float
    rounds: int
    codebooks: int = 0
    variant: str = ""
    tier: str = ""
    itemsize: int = 4
    clock_ghz: float | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, features, outputs."""
        return self.rows, self.features, self.outputs

    @property
    def lookups(self) -> int:
        """Number of look-ups in a call."""
        return self.rows * self.codebooks * self.outputs

    @property
    def moved_bytes(self) -> int:
        """Bytes of x, the tables and y, each moved once; of small-batch tables, only the entries that are read."""
        entries = min(16, self.rows) if self.variant == SMALL_BATCH else 16
        in_and_out = self.rows * (self.features + self.outputs) * self.itemsize
        return in_and_out + entries * self.codebooks * self.outputs


def measurement(record: Record) -> Measurement:
    """Returns the measurement of a record of a JSON file."""
    fields = {key: entry for key, entry in record.items() if key != "axis"}
    return Measurement(**fields | {"quartiles_ms": tuple(fields["quartiles_ms"])})


def per_codebook(features: int, codebooks: int) -> str:
    """Formats D/C.

    Example:
      >>> per_codebook(1024, 64), per_codebook(100, 32)
      ('16', '3.1')
    """
    ratio = features / codebooks
    return f"{ratio:.0f}" if ratio == round(ratio) else f"{ratio:.1f}"
