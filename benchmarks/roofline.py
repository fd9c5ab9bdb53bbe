"""Measurements -> look-ups per second and per byte, beside what the core and the memory allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import records
from benchmarks.records import Measurement

ROOFS = {"avx512vnni": 64.0, "avx512bw": 64.0, "avx2": 31.0, "neon": 32.0}
"""Look-ups per cycle that a tier's instructions allow. `vpermb` looks 64 up, once a cycle, on port 5. Without it,
AVX-512 loads 64 entries and adds them up in two instructions, on two ports; AVX2 takes 3.1 (one shuffle, the rest to
add exactly) for 32 look-ups, on three of Intel's ports. NEON takes two for 16, on the four pipes of an Apple M1 (a
Neoverse N1 allows 16). The heads of kernels_<tier>.cc derive it."""
ROOFS_AMD = ROOFS | {"avx2": 32.0}
"""The same on AMD's Zen, which has four ports for vectors of 32 bytes."""
TOO_SMALL = 100_000
"""Look-ups below which the call itself is what takes the time."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement in the picture."""

    label: str
    tier: str
    lookups_per_byte: float
    lookups_per_second: float
    lookups_per_cycle: float


def roof(tier: str, vendor: str, kernels: Sequence[Mapping[str, Any]] = ()) -> float | None:
    """Look-ups per cycle that `tier` can reach; for one not listed above, the most that its own kernel did alone."""
    known = (ROOFS_AMD if "AMD" in vendor else ROOFS).get(tier)
    alone = [k["lookups_per_cycle"] for k in kernels if k["tier"] == tier and "lookups_per_cycle" in k]
    return known if known is not None else max(alone, default=None)


def points(measurements: Iterable[Measurement], clock_ghz: float) -> list[Point]:
    """amm on one thread and rows of f32, on every tier measured; calls too small to tell are left out."""
    found = []
    for m in measurements:
        shown = m.kind == "amm" and m.variant in ("", records.SMALL_BATCH, m.tier)
        if not shown or m.threads != 1 or m.lookups < TOO_SMALL:
            continue
        per_second = m.lookups / (1e-3 * m.median_ms)
        note = f", {m.variant}" if m.variant == records.SMALL_BATCH else ""
        label = f"{m.rows} x {m.features} x {m.outputs}, D/C = {records.per_codebook(m.features, m.codebooks)}{note}"
        per_cycle = per_second / (1e9 * (m.clock_ghz or clock_ghz))
        found.append(Point(label, m.tier, m.lookups / m.moved_bytes, per_second, per_cycle))
    return found


def bound(lookups_per_byte: float, roof_per_second: float, bytes_per_second: float) -> float:
    """Look-ups per second that both limits allow.

    Example:
      >>> bound(2.0, 100.0, 10.0), bound(20.0, 100.0, 10.0)
      (20.0, 100.0)
    """
    return min(roof_per_second, bytes_per_second * lookups_per_byte)


def table(found: Sequence[Point], vendor: str, limits: Mapping[str, Any], kernels: Sequence[Mapping[str, Any]]) -> str:
    """The points as Markdown: look-ups per cycle, bytes per second, and their share of either limit."""
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
