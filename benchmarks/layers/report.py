"""Tables of the benchmark of layers: what each kind of product reaches, and a row per layer."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.layers.contenders import CHOSEN
from benchmarks.quality_report import frontier

Record = dict[str, Any]
"""A product on a layer: `time` is relative to XLA's f32 product, `nmse` is on test rows."""

NOISE = 1.05
"""Ratio of times that counts as equal."""
WIDE = 128
"""Number of outputs from which on layers have a table of their own."""
GOALS = ((0.1, 4.0, 1), (0.001, 2.5, 48))
"""Largest NMSE and least speed-up of a goal, and the least number of outputs of layers that it is for."""


def markdown(records: Sequence[Record]) -> str:
    """Returns what `documented` does, the medians by number of outputs, and the row of each layer."""
    return "\n\n".join([documented(records), by_outputs(records), layers(records)]) + "\n"


def documented(records: Sequence[Record]) -> str:
    """Returns the summary and the table of families, of all layers and of those with many outputs."""
    wide = [r for r in records if r["outputs"] >= WIDE]
    of_wide = f"The {len(by_layer(wide))} layers with at least {WIDE} outputs:\n\n" + families(wide)
    parts = [summary(records), beside_low_rank(records), of_chosen(records), families(records), of_wide]
    return "\n\n".join(part for part in parts if part)


def beside_low_rank(records: Sequence[Record]) -> str:
    """Returns a sentence with the time of our factors relative to XLA's low rank of the same rank."""
    ratios = []
    for own in by_layer(records).values():
        theirs = {r["name"]: r["time"] for r in own if r["family"] == "XLA low rank"}
        ours = [r for r in own if r["family"] == "factors" and f"XLA low {r['name']}" in theirs]
        ratios += [r["time"] / theirs[f"XLA low {r['name']}"] for r in ours]
    faster = sum(ratio < 1 for ratio in ratios)
    median = f"{statistics.median(ratios):.2f}" if ratios else "-"
    return (
        f"Factors take {median} of the time of XLA's low rank: the median of {len(ratios)} pairs; {faster} are faster."
    )


def of_chosen(records: Sequence[Record]) -> str:
    """Returns a sentence with the speed-ups of the ops whose size `fit` chose; empty without such ops."""
    speeds = [1 / r["time"] for r in records if r["family"] == CHOSEN]
    if not speeds:
        return ""
    return (
        f"An op whose size `fit` chose is {min(speeds):.1f} to {max(speeds):.1f} times as fast as XLA's f32, "
        f"{statistics.median(speeds):.1f} times in the median."
    )


def by_layer(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Returns the records of each layer."""
    own: dict[str, list[Record]] = {}
    for record in records:
        own.setdefault(record["layer"], []).append(record)
    return own


def summary(records: Sequence[Record]) -> str:
    """Returns a sentence with the number of layers on which our products reach each of the goals."""
    layers = by_layer(records)
    parts = [f"{len(layers)} layers of {len({r['model'] for r in records})} models"]
    errors = [e for own in layers.values() if (e := error_at_time_of_codes(own)) is not None]
    if errors:
        parts.append(f"median NMSE of ours in the time of codes with C = D/16: {statistics.median(errors):.3g}")
    for nmse, speedup, outputs in GOALS:
        wide = [own for own in layers.values() if own[0]["outputs"] >= outputs]
        reached = sum(speed_at([r for r in own if r["ours"]], nmse) >= speedup for own in wide)
        others = sum(speed_at([r for r in own if not r["ours"]], nmse) >= speedup for own in wide)
        where = f" with M >= {outputs}" if outputs > 1 else ""
        parts.append(
            f"NMSE <= {nmse:g} at {speedup:g}x XLA's f32 or faster: {reached} of {len(wide)} layers{where} "
            f"({others} by others)"
        )
    return "; ".join(parts) + "."


def error_at_time_of_codes(own: Sequence[Record]) -> float | None:
    """Returns the least NMSE of ours that takes no longer than codes with C = D/16; None if these were not measured."""
    codes = next((r for r in own if r["family"] == "codes"), None)
    if codes is None:
        return None
    return min(r["nmse"] for r in own if r["ours"] and r["time"] <= NOISE * codes["time"])


def speed_at(records: Sequence[Record], nmse: float) -> float:
    """Returns the largest speed-up over XLA's f32 product of the products that are accurate enough, or 0."""
    return max((1 / r["time"] for r in records if r["nmse"] <= nmse), default=0.0)


def families(records: Sequence[Record]) -> str:
    """Returns the table of families: on how many layers each is on the frontier, and how fast it is within an NMSE."""
    layers = by_layer(records).values()
    bounds = (0.3, 0.1, 0.01, 0.001)
    best = [frontier(r for r in own if r["family"] != CHOSEN) for own in layers]
    head = ["kind of product", "on the frontier", *(f"NMSE <= {bound:g}: layers, median speed-up" for bound in bounds)]
    rows = []
    for family in dict.fromkeys(r["family"] for r in records):
        on_it = f"{sum(any(r['family'] == family for r in b) for b in best)} of {len(best)}"
        cells = [family, "" if family == CHOSEN else on_it]
        for bound in bounds:
            speeds = [speed_at([r for r in own if r["family"] == family], bound) for own in layers]
            reached = [s for s in speeds if s]
            cells.append(f"{len(reached)}, {statistics.median(reached):.2f}x" if reached else "0")
        rows.append(cells)
    return _table(head, rows)


def by_outputs(records: Sequence[Record]) -> str:
    """Returns the table of median NMSE and speed-up of each family's quickest size, by the number of outputs."""
    ranges = ((1, 32), (32, 128), (128, 512), (512, 10**9))
    names = [f"M < {high}" if low == 1 else f"M >= {low}" for low, high in ranges]
    rows = []
    for family in dict.fromkeys(r["family"] for r in records):
        cells = [family]
        for low, high in ranges:
            quickest = [
                min(some, key=lambda r: r["time"])
                for own in by_layer(records).values()
                if low <= own[0]["outputs"] < high and (some := [r for r in own if r["family"] == family])
            ]
            medians = [
                statistics.median(values)
                for values in zip(*((r["nmse"], 1 / r["time"]) for r in quickest), strict=True)
            ]
            cells.append(f"{medians[0]:.2g} at {medians[1]:.2f}x" if medians else "")
        rows.append(cells)
    return "Median NMSE and speed-up of the quickest size, by the number of outputs:\n\n" + _table(
        ["kind of product", *names], rows
    )


def layers(records: Sequence[Record]) -> str:
    """Returns a row per layer: the frontier of all products, the fastest first."""
    rows = []
    for name, own in by_layer(records).items():
        shape = f"{own[0]['rows']} x {own[0]['features']} x {own[0]['outputs']}"
        best = "; ".join(_point(r) for r in frontier(own))
        rows.append([name, shape, f"{1e3 * own[0]['ms']:.0f}", best])
    head = ["layer", "rows x D x M", "XLA f32, us", "frontier: product, NMSE, speed-up"]
    return _table(head, rows)


def _point(record: Record) -> str:
    return f"{record['name']} {record['nmse']:.2g} {1 / record['time']:.1f}x"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_lines([head, ["---"] * len(head), *rows]))


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    return ("| " + " | ".join(cells) + " |" for cells in rows)
