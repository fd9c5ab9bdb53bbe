"""Look-ups per second and per byte, compared with the limits of the core and of memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import records
from benchmarks.records import Measurement

ROOFS = {"avx512amx": 64.0, "avx512vnni": 64.0, "avx512bw": 64.0, "avx2": 31.0, "neon": 32.0}
"""Look-ups per cycle that the instructions of a tier allow. `vpermb` looks 64 up, once a cycle, on port 5. Without it,
AVX-512 loads 64 entries and adds them up in two instructions, on two ports; AVX2 takes 3.1 (one shuffle, the rest to
add exactly) for 32 look-ups, on three of Intel's ports. NEON takes two for 16, on the four pipes of an Apple M1 (a
Neoverse N1 allows 16). The comments at the top of the kernels of a tier derive it."""
ROOFS_AMD = ROOFS | {"avx2": 32.0}
"""The same on AMD's Zen, which has four ports for vectors of 32 bytes."""
TOO_SMALL = 100_000
"""Number of look-ups below which the overhead of the call dominates."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement in the picture, with its label."""

    label: str
    tier: str
    lookups_per_byte: float
    lookups_per_second: float
    lookups_per_cycle: float


def roof(tier: str, vendor: str, kernels: Sequence[Mapping[str, Any]] = ()) -> float | None:
    """Returns the limit of `tier` in look-ups per cycle; for an unlisted tier, the best result of its kernel alone."""
    known = (ROOFS_AMD if "AMD" in vendor else ROOFS).get(tier)
    alone = [k["lookups_per_cycle"] for k in kernels if k["tier"] == tier and "lookups_per_cycle" in k]
    return known if known is not None else max(alone, default=None)


def points(measurements: Iterable[Measurement], clock_ghz: float) -> list[Point]:
    """Returns the measurements of amm with one thread and rows of f32, without calls that are too small."""
    shown_points = []
    for m in measurements:
        shown = m.kind == "amm" and m.variant in ("", records.SMALL_BATCH, m.tier)
        if not shown or m.threads != 1 or m.lookups < TOO_SMALL:
            continue
        per_second = m.lookups / (1e-3 * m.median_ms)
        note = f", {m.variant}" if m.variant == records.SMALL_BATCH else ""
        label = f"{m.rows} x {m.features} x {m.outputs}, D/C = {records.per_codebook(m.features, m.codebooks)}{note}"
        per_cycle = per_second / (1e9 * (m.clock_ghz or clock_ghz))
        shown_points.append(Point(label, m.tier, m.lookups / m.moved_bytes, per_second, per_cycle))
    return shown_points


def bound(lookups_per_byte: float, roof_per_second: float, bytes_per_second: float) -> float:
    """Returns the look-ups per second that both limits allow.

    Example:
      >>> bound(2.0, 100.0, 10.0), bound(20.0, 100.0, 10.0)
      (20.0, 100.0)
    """
    return min(roof_per_second, bytes_per_second * lookups_per_byte)


def table(found: Sequence[Point], vendor: str, limits: Mapping[str, Any], kernels: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table of look-ups per cycle, bytes per second, and their shares of both limits."""
    heads = "| rows x D x M | tier | look-ups/cycle | of the roof | GB/s | of memory's read rate |"
    lines = [heads, "|---|---|---|---|---|---|"]
    memory = limits["read_gb_s"][max(limits["read_gb_s"], key=int)]
    for p in found:
        limit = roof(p.tier, vendor, kernels)
        rate = 1e-9 * p.lookups_per_second / p.lookups_per_byte
        share = f"{p.lookups_per_cycle / limit:.0%}" if limit else ""
        lines.append(
            f"| {p.label} | {p.tier} | {p.lookups_per_cycle:.1f} | {share} | {rate:.1f} | {rate / memory:.0%} |"
        )
    return "\n".join(lines) + "\n"
