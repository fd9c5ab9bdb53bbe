"""Measurements -> Markdown: where look-ups win, where they lose, what threads bring, everything in detail.

The measurements decide what is a win: amm is clearly faster than the fastest of all alternatives that were measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from benchmarks import records
from benchmarks.records import Measurement

CLEARLY = 1.05
"""A win is at least this many times faster than the fastest alternative: less than that is noise."""


@dataclasses.dataclass(frozen=True)
class Contest:
    """amm on a problem, beside what was measured in its stead in the same rounds."""

    amm: Measurement
    rivals: dict[str, Measurement]

    @property
    def best(self) -> Measurement:
        """The fastest alternative."""
        return min(self.rivals.values(), key=lambda m: m.median_ms)

    @property
    def speed_up(self) -> float:
        """How many times faster than the fastest alternative amm is."""
        return self.best.median_ms / self.amm.median_ms

    @property
    def won(self) -> bool:
        """Whether amm is clearly faster than all alternatives."""
        return self.speed_up >= CLEARLY


def contests(measurements: Iterable[Measurement], threads: int) -> list[Contest]:
    """One per shape and number of codebooks: amm on the best tier, in the layout that suits the rows best.

    Where calls inside a jitted loop were measured, these decide: from Python such a call costs more than its work.
    """
    here = [m for m in measurements if m.threads == threads]
    found = []
    for shape in dict.fromkeys(m.shape for m in here):
        of_shape = [m for m in here if m.shape == shape]
        loops = [m for m in of_shape if m.kind == "loop"]
        rivals = {m.what: m for m in of_shape if m.kind == "rival"}
        plain = [m for m in of_shape if m.kind == "amm" and m.variant in ("", records.SMALL_BATCH)]
        if loops:
            rivals = {records.F32: next(m for m in loops if not m.codebooks)}
            plain = [m for m in loops if m.codebooks]
        for codebooks in dict.fromkeys(m.codebooks for m in plain):
            amm = min((m for m in plain if m.codebooks == codebooks), key=lambda m: m.median_ms)
            if rivals:
                found.append(Contest(amm, rivals))
    return found


def report(measurements: Sequence[Measurement]) -> str:
    """All tables: the summary, by threads, then every measurement."""
    parts = []
    for threads in sorted({m.threads for m in measurements}):
        found = contests(measurements, threads)
        for title, won in (("Where look-ups win", True), ("Where they lose", False)):
            of_title = sorted((c for c in found if c.won == won), key=lambda c: -c.speed_up)
            if of_title:
                parts += [f"### {title}, {_threads(threads)}", summary(of_title)]
    parts += [f"### {title}\n\n{text}" for title, text in (("Threads", scaling(measurements)),) if text]
    for threads in sorted({m.threads for m in measurements}):
        parts += [f"### Everything, {_threads(threads)}", *details([m for m in measurements if m.threads == threads])]
    return "\n\n".join(parts) + "\n"


def summary(found: Sequence[Contest]) -> str:
    """One row per contest; each alternative's time as a multiple of amm's."""
    names = [name for name in records.RIVALS if any(name in c.rivals for c in found)]
    heads = ["rows x D x M", "D/C", "amm, ms", *names, "amm against the fastest of these"]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for c in found:
        m = c.amm
        ratios = [times(c.rivals[n].median_ms / m.median_ms) if n in c.rivals else "" for n in names]
        note = f" ({m.variant})" if m.variant else ""
        cells = [_shape(m.shape), records.per_codebook(m.features, m.codebooks) + note, digits(m.median_ms), *ratios]
        lines.append(_row([*cells, f"**{times(c.speed_up)}** {c.best.what}"]))
    return "\n".join(lines)


def scaling(measurements: Sequence[Measurement]) -> str:
    """What more threads bring, for amm and XLA's f32; empty where one number of threads was measured."""
    few, *more = sorted({m.threads for m in measurements})
    heads = ["rows x D x M", "", *(f"{n} threads over {few}" for n in more)]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for one in measurements:
        if one.threads != few or not ((one.kind == "amm" and not one.variant) or one.what == records.F32):
            continue
        same = {m.threads: m for m in measurements if m.shape == one.shape and m.what == one.what}
        if same.keys() >= set(more):
            ratios = [f"{one.median_ms / same[n].median_ms:.2f}x" for n in more]
            lines.append(_row([_shape(one.shape), one.what, *ratios]))
    return "\n".join(lines) if more else ""


def details(measurements: Sequence[Measurement]) -> list[str]:
    """One table per shape: what, how long, and how many times faster it is than f32, int8 dynamic and reading x."""
    shapes = dict.fromkeys(m.shape for m in measurements)
    return [_details([m for m in measurements if m.shape == shape]) for shape in shapes]


def _details(here: Sequence[Measurement]) -> str:
    unit, scale = ("us", 1000) if all(m.median_ms < 1 for m in here) else ("ms", 1)
    references = {
        "f32": [m for m in here if m.what == records.F32],
        "int8 dynamic": [m for m in here if m.what == records.INT8_DYNAMIC],
        "reading x": [m for m in here if m.kind == "read"],
    }
    against = {name: min(m.median_ms for m in found) for name, found in references.items() if found}
    in_loop = next((m.median_ms for m in here if m.kind == "loop" and not m.codebooks), None)
    heads = [_shape(here[0].shape), f"{unit} (quartiles)", *(f"against {name}" for name in against)]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for m in here:
        middle, low, high = (digits(ms * scale) for ms in (m.median_ms, *m.quartiles_ms))
        ratios = [times(ms / m.median_ms) for ms in against.values()]
        if in_loop is not None and m.kind == "loop":  # without Python: only the product in the same loop compares
            ratios = [times(in_loop / m.median_ms)] + [""] * (len(against) - 1)
        lines.append(_row([m.what, f"{middle} ({low}-{high})", *ratios]))
    return "\n".join(lines)


def digits(number: float) -> str:
    """Three digits that count, without an exponent.

    Example:
      >>> [digits(x) for x in (1234.5, 12.345, 0.0012345)]
      ['1234', '12.3', '0.00123']
    """
    if abs(number) >= 100:
        return f"{number:.0f}"
    return f"{number:.{max(0, 2 - _exponent(number))}f}"


def times(ratio: float) -> str:
    """A ratio with two digits that count.

    Example:
      >>> [times(x) for x in (1234.5, 12.345, 1.234, 0.01234)]
      ['1234x', '12x', '1.2x', '0.012x']
    """
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.2g}x"


def _exponent(number: float) -> int:
    return int(f"{number:e}".split("e")[1]) if number else 0


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shape(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
