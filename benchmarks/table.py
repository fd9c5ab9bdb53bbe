"""Tables in Markdown: where look-ups win, where they lose, the effect of threads, and all measurements.

A win is a measurement of amm that is clearly faster than the fastest measured alternative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from benchmarks import records
from benchmarks.records import Measurement

CLEARLY = 1.05
"""Least speed-up over the fastest alternative that counts as a win; less may be noise."""


@dataclasses.dataclass(frozen=True)
class Contest:
    """amm on a problem, and the alternatives that were measured in the same rounds."""

    amm: Measurement
    rivals: dict[str, Measurement]

    @property
    def best(self) -> Measurement:
        """The fastest alternative."""
        return min(self.rivals.values(), key=lambda m: m.median_ms)

    @property
    def speed_up(self) -> float:
        """Speed of amm relative to the fastest alternative."""
        return self.best.median_ms / self.amm.median_ms

    @property
    def won(self) -> bool:
        """Whether amm is clearly faster than all alternatives."""
        return self.speed_up >= CLEARLY


def contests(measurements: Iterable[Measurement], threads: int) -> list[Contest]:
    """Returns a contest per shape and number of codebooks: amm on the best tier, in the faster layout.

    If calls inside a jitted loop were measured, these decide: called from Python, such a small problem takes longer
    than its work.
    """
    of_threads = [m for m in measurements if m.threads == threads]
    decided = []
    for shape in dict.fromkeys(m.shape for m in of_threads):
        of_shape = [m for m in of_threads if m.shape == shape]
        loops = [m for m in of_shape if m.kind == "loop"]
        rivals = {m.what: m for m in of_shape if m.kind == "rival"}
        plain = [m for m in of_shape if m.kind == "amm" and m.variant in ("", records.SMALL_BATCH)]
        if loops:
            rivals = {records.F32: next(m for m in loops if not m.codebooks)}
            plain = [m for m in loops if m.codebooks]
        for codebooks in dict.fromkeys(m.codebooks for m in plain):
            amm = min((m for m in plain if m.codebooks == codebooks), key=lambda m: m.median_ms)
            if rivals:
                decided.append(Contest(amm, rivals))
    return decided


def report(measurements: Sequence[Measurement]) -> str:
    """Returns all tables: the summaries by number of threads, then every measurement."""
    parts = []
    for threads in sorted({m.threads for m in measurements}):
        all_contests = contests(measurements, threads)
        for title, won in (("Where look-ups win", True), ("Where they lose", False)):
            of_title = sorted((c for c in all_contests if c.won == won), key=lambda c: -c.speed_up)
            if of_title:
                parts += [f"### {title}, {_threads(threads)}", summary(of_title)]
    parts += [f"### {title}\n\n{text}" for title, text in (("Threads", scaling(measurements)),) if text]
    for threads in sorted({m.threads for m in measurements}):
        parts += [f"### Everything, {_threads(threads)}", *details([m for m in measurements if m.threads == threads])]
    return "\n\n".join(parts) + "\n"


def products(measured: Iterable[records.Record]) -> str:
    """Returns a row for each problem of the records of a run, in their order: the table of the documentation."""
    return summary(contests(map(records.measurement, measured), 1), names_the_best=False)


def threads(measured: Iterable[records.Record]) -> str:
    """Returns the speed-up by more threads from the records of a run."""
    return scaling([records.measurement(record) for record in measured])


def summary(shown: Sequence[Contest], *, names_the_best: bool = True) -> str:
    """Returns a row per contest, with the time of each alternative as a multiple of that of amm."""
    names = [name for name in records.RIVALS if any(name in c.rivals for c in shown)]
    heads = ["rows x D x M", "D/C", "amm, ms", *names, *["amm against the fastest of these"] * names_the_best]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for c in shown:
        m = c.amm
        ratios = [times(c.rivals[n].median_ms / m.median_ms) if n in c.rivals else "" for n in names]
        note = f" ({m.variant})" if m.variant else ""
        cells = [_shape(m.shape), records.per_codebook(m.features, m.codebooks) + note, digits(m.median_ms), *ratios]
        lines.append(_row(cells + [f"**{times(c.speed_up)}** {c.best.what}"] * names_the_best))
    return "\n".join(lines)


def scaling(measurements: Sequence[Measurement]) -> str:
    """Returns the speed-up by more threads of amm and XLA's f32; empty with one number of threads."""
    few, *others = sorted({m.threads for m in measurements})
    heads = ["rows x D x M", "", *(f"{n} threads over {few}" for n in others)]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for first in measurements:
        if first.threads != few or not ((first.kind == "amm" and not first.variant) or first.what == records.F32):
            continue
        same = {m.threads: m for m in measurements if m.shape == first.shape and m.what == first.what}
        if same.keys() >= set(others):
            ratios = [f"{first.median_ms / same[n].median_ms:.2f}x" for n in others]
            lines.append(_row([_shape(first.shape), first.what, *ratios]))
    return "\n".join(lines) if others else ""


def details(measurements: Sequence[Measurement]) -> list[str]:
    """Returns a table per shape: times, and speeds relative to f32, int8 dynamic and reading x."""
    shapes = dict.fromkeys(m.shape for m in measurements)
    return [_details([m for m in measurements if m.shape == shape]) for shape in shapes]


def _details(measurements: Sequence[Measurement]) -> str:
    unit, scale = ("us", 1000) if all(m.median_ms < 1 for m in measurements) else ("ms", 1)
    references = {
        "f32": [m for m in measurements if m.what == records.F32],
        "int8 dynamic": [m for m in measurements if m.what == records.INT8_DYNAMIC],
        "reading x": [m for m in measurements if m.kind == "read"],
    }
    against = {name: min(m.median_ms for m in matches) for name, matches in references.items() if matches}
    in_loop = next((m.median_ms for m in measurements if m.kind == "loop" and not m.codebooks), None)
    heads = [_shape(measurements[0].shape), f"{unit} (quartiles)", *(f"against {name}" for name in against)]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for m in measurements:
        middle, low, high = (digits(ms * scale) for ms in (m.median_ms, *m.quartiles_ms))
        ratios = [times(ms / m.median_ms) for ms in against.values()]
        if in_loop is not None and m.kind == "loop":  # comparable only with the product in the same loop
            ratios = [times(in_loop / m.median_ms)] + [""] * (len(against) - 1)
        lines.append(_row([m.what, f"{middle} ({low}-{high})", *ratios]))
    return "\n".join(lines)


def digits(number: float) -> str:
    """Formats a number with three significant digits, without an exponent.

    Example:
      >>> [digits(x) for x in (1234.5, 12.345, 0.0012345)]
      ['1234', '12.3', '0.00123']
    """
    if abs(number) >= 100:
        return f"{number:.0f}"
    return f"{number:.{max(0, 2 - _exponent(number))}f}"


def times(ratio: float) -> str:
    """Formats a ratio with two significant digits.

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
