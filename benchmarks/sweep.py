"""Measurements along N, D, C and M -> a table, and in words where the cost jumps.

A call costs so much per row, per encoding, per look-up, per byte, and something fixed. So along any one letter, with
the others constant, cost per unit never rises; and no size costs more than a larger one. Where either is violated by
more than noise there is a cliff: a cache that overflows, a remainder that is handled badly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.records import Measurement
from benchmarks.table import digits

STEEP = 1.3
"""How many times dearer than a neighbour makes a cliff."""


@dataclasses.dataclass(frozen=True)
class Cliff:
    """A size that costs more than a round size next to it promises."""

    axis: str
    at: Measurement
    beside: Measurement
    ratio: float
    per_unit: bool

    def __str__(self) -> str:
        letter = self.axis[0]
        here, there = (f"{letter} = {value(self.axis, m)}" for m in (self.at, self.beside))
        others = ", ".join(f"{k} = {v}" for k, v in _sizes(self.at).items() if k not in _moving(self.axis))
        what = f"{_UNIT[letter]} as" if self.per_unit else "in all as the larger"
        rate = 1e-6 * self.at.moved_bytes / _cost(self.at)
        return f"{here} ({others}) costs {self.ratio:.1f} times as much {what} {there}; it moves {rate:.0f} GB/s."


_UNIT = {"N": "per look-up", "M": "per look-up", "C": "per look-up", "D": "per feature"}


def cliffs(axis: str, along: Sequence[Measurement]) -> list[Cliff]:
    """Where cost per unit rises above that of the round size below, or cost in all above that of the one above it.

    Round are the powers of two. The least times are compared: other processes, on a busy machine, can only add to them.
    """
    ordered = sorted(along, key=lambda m: value(axis, m))
    found = []
    for m in ordered:
        size = value(axis, m)
        below = [r for r in ordered if value(axis, r) < size and _is_round(axis, r)]
        above = [r for r in ordered if value(axis, r) > size and _is_round(axis, r)]
        if below:
            ratio = _cost(m) / _cost(below[-1]) * value(axis, below[-1]) / size
            found += [Cliff(axis, m, below[-1], ratio, True)] if ratio > STEEP else []
        if above:
            ratio = _cost(m) / _cost(above[0])
            found += [Cliff(axis, m, above[0], ratio, False)] if ratio > STEEP else []
    return found


def value(axis: str, m: Measurement) -> int:
    """What varies along the axis."""
    return _sizes(m)[axis[0]]


def report(by_axis: dict[str, list[Measurement]]) -> str:
    """The cliffs in words, then a table per axis."""
    found = [str(cliff) for axis, along in by_axis.items() for cliff in cliffs(axis, along)]
    verdict = f"{len(found)} cliffs:\n\n- " + "\n- ".join(found) if found else "No cliffs."
    rule = f"A cliff is a cost {STEEP:g} times that of a round neighbour: per unit, or in all where that one is larger."
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
    """The letters that vary along an axis: with C, D does, as D/C is constant there."""
    return "CD" if axis[0] == "C" else axis[0]


def _is_round(axis: str, m: Measurement) -> bool:
    size = value(axis, m)
    return size & (size - 1) == 0


def _cost(m: Measurement) -> float:
    return m.least_ms
