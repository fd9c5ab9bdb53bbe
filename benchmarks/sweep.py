"""Cost along N, D, C and M as a table, with jumps of the cost described in words.

The cost of a call is a fixed part and a part per row, encoding, look-up and byte. Along any one letter, with the others
constant, the cost per unit should therefore never rise, and no size should cost more than a larger one. A violation by
more than noise is a cliff: a cache that overflows, or a remainder that is handled badly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.records import Measurement
from benchmarks.table import digits

STEEP = 1.3
"""Least ratio of the cost of a size to that of a round size beside it that counts as a cliff."""


@dataclasses.dataclass(frozen=True)
class Cliff:
    """A size that costs more than a round size beside it suggests."""

    axis: str
    at: Measurement
    beside: Measurement
    ratio: float
    per_unit: bool

    def __str__(self) -> str:
        letter = self.axis[0]
        size, round_size = (f"{letter} = {value(self.axis, m)}" for m in (self.at, self.beside))
        others = ", ".join(f"{k} = {v}" for k, v in _sizes(self.at).items() if k not in _moving(self.axis))
        what = f"{_UNIT[letter]} as" if self.per_unit else "in all as the larger"
        rate = 1e-6 * self.at.moved_bytes / _cost(self.at)
        return f"{size} ({others}) costs {self.ratio:.1f} times as much {what} {round_size}; it moves {rate:.0f} GB/s."


_UNIT = {"N": "per look-up", "M": "per look-up", "C": "per look-up", "D": "per feature"}


def cliffs(axis: str, along: Sequence[Measurement]) -> list[Cliff]:
    """Finds sizes with a higher cost per unit than the round size below, or a higher cost than the one above.

    Powers of two are round. Minimum times are compared, as other processes can only add to them.
    """
    ordered = sorted(along, key=lambda m: value(axis, m))
    steep = []
    for m in ordered:
        size = value(axis, m)
        below = [r for r in ordered if value(axis, r) < size and _is_round(axis, r)]
        above = [r for r in ordered if value(axis, r) > size and _is_round(axis, r)]
        if below:
            ratio = _cost(m) / _cost(below[-1]) * value(axis, below[-1]) / size
            steep += [Cliff(axis, m, below[-1], ratio, True)] if ratio > STEEP else []
        if above:
            ratio = _cost(m) / _cost(above[0])
            steep += [Cliff(axis, m, above[0], ratio, False)] if ratio > STEEP else []
    return steep


def value(axis: str, m: Measurement) -> int:
    """Returns the size that varies along the axis."""
    return _sizes(m)[axis[0]]


def report(by_axis: dict[str, list[Measurement]]) -> str:
    """Returns the cliffs in words, then a table per axis."""
    described = [str(cliff) for axis, along in by_axis.items() for cliff in cliffs(axis, along)]
    verdict = f"{len(described)} cliffs:\n\n- " + "\n- ".join(described) if described else "No cliffs."
    rule = f"A cliff is a cost {STEEP:g} times that of a round size beside it: per unit, or in all if that is larger."
    parts = ["### Cost along N, M, C and D", rule, verdict]
    return "\n\n".join([*parts, *(_table(axis, along) for axis, along in by_axis.items())]) + "\n"


def _table(axis: str, along: Sequence[Measurement]) -> str:
    fixed = [f"{k} = {v}" for k, v in _sizes(along[0]).items() if k not in _moving(axis)]
    fixed += [along[0].variant] if along[0].variant else []
    lines = [
        f"| {axis} ({', '.join(fixed)}) | us | look-ups | bytes | ns/output | ps/look-up | GB/s |",
        "|---" * 7 + "|",
    ]
    for m in along:
        rates = (
            1e6 * m.median_ms / (m.rows * m.outputs),
            1e9 * m.median_ms / m.lookups,
            1e-6 * m.moved_bytes / m.median_ms,
        )
        cells = [value(axis, m), digits(1e3 * m.median_ms), m.lookups, m.moved_bytes, *map(digits, rates)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _sizes(m: Measurement) -> dict[str, int]:
    return {"N": m.rows, "D": m.features, "M": m.outputs, "C": m.codebooks}


def _moving(axis: str) -> str:
    """Returns the letters that vary along an axis; along C, D varies as well, as D/C is constant."""
    return "CD" if axis[0] == "C" else axis[0]


def _is_round(axis: str, m: Measurement) -> bool:
    size = value(axis, m)
    return size & (size - 1) == 0


def _cost(m: Measurement) -> float:
    return m.least_ms
