"""Pictures of quality.py: NMSE against the number of codebooks, and against time."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.pictures import COLORS, STYLE
from benchmarks.quality_report import Record, frontier

MARKERS = "sD^v<>PX*hp"
FLOOR = 1e-5
"""Least NMSE that is drawn; smaller ones are drawn there."""
SLOWEST = 4.0
"""Longest time that is drawn, relative to the exact product."""


def against_codebooks(path: pathlib.Path, records: Sequence[Record]) -> None:
    """Draws a panel per problem, with a line per method that has codebooks."""
    with_codebooks = [r for r in records if r["codebooks"]]
    figure, panels = _panels(with_codebooks)
    for axes, own in panels:
        for method, style in _styles(with_codebooks).items():
            points = sorted((r["codebooks"], r["nmse"]) for r in own if r["method"] == method)
            if points:
                axes.plot(*zip(*points, strict=True), label=method, **style)
        other = sorted({(r["codebooks"], r["reference"]) for r in own if "reference" in r})
        if other and not any(r.get("ratio") == 1 for r in own):
            axes.plot(*zip(*other, strict=True), "k:", label="reference")
        axes.set(xlabel="C", ylabel="NMSE", xscale="log", yscale="log")
        axes.set_xticks(sorted({r["codebooks"] for r in own}), sorted({r["codebooks"] for r in own}))
        axes.minorticks_off()
    _finish(figure, path)


def against_time(path: pathlib.Path, records: Sequence[Record], title: str) -> None:
    """Draws a panel per problem, with a line per method, and the frontier of time and NMSE as a gray line."""
    figure, panels = _panels(records)
    for axes, own in panels:
        for method, style in _styles(records).items():
            points = sorted((r["size"], r["time"], max(r["nmse"], FLOOR)) for r in own if r["method"] == method)
            if points:
                axes.plot([p[1] for p in points], [p[2] for p in points], label=method, **style)
        _frontier(axes, frontier(own))
        axes.set(xlabel="time / that of XLA's f32 dot", ylabel="NMSE", xscale="log", yscale="log")
        left, right = axes.get_xlim()
        axes.set_xlim(left / 1.5, min(right, SLOWEST))
    figure.suptitle(
        f"{title}. NMSE below {FLOOR:g} is drawn there, times above {SLOWEST:g} are not.",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    _finish(figure, path)


def _frontier(axes: plt.Axes, best: Sequence[Record]) -> None:
    """Draws the frontier with numbered points, and the key to the numbers below it, where no point can be."""
    points = [(r["time"], max(r["nmse"], FLOOR)) for r in best]
    style: dict[str, Any] = {"color": "0.85", "linewidth": 6, "zorder": 0, "solid_capstyle": "round"}
    axes.step(*zip(*points, strict=True), where="post", label="frontier", **style)
    for i, point in enumerate(points, 1):
        axes.annotate(str(i), point, (-5, -6), textcoords="offset points", fontsize=8, ha="right", va="top")
    key = "\n".join(f"{i:2d}  {r['method']} {r['label']}" for i, r in enumerate(best, 1))
    axes.annotate(key, (0.015, 0.02), xycoords="axes fraction", va="bottom", fontsize=8, family="monospace")


def _styles(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Returns line styles: thick lines with discs for methods of `fit`, thin ones with other markers for the rest."""
    ours, theirs = (
        list(dict.fromkeys(r["method"] for r in records if r["ours"] is by_fit)) for by_fit in (True, False)
    )
    styles: dict[str, dict[str, Any]] = {}
    for i, method in enumerate(ours):
        hollow = {"markerfacecolor": "none", "markersize": 9} if method == "auto" else {"markersize": 5}
        styles[method] = {"color": COLORS[i % len(COLORS)], "marker": "o", "linewidth": 1.6, **hollow}
    for i, method in enumerate(theirs):
        style = {"linestyle": "--", "linewidth": 0.8, "markersize": 5, "alpha": 0.85}
        styles[method] = {"color": f"C{i % 10}", "marker": MARKERS[i % len(MARKERS)], **style}
    return styles


def _panels(records: Sequence[Record]) -> tuple[plt.Figure, Iterator[tuple[plt.Axes, list[Record]]]]:
    """Returns a figure, and the axes and records of each problem."""
    names = list(dict.fromkeys(r["problem"] for r in records))
    columns = max(1, min(3 if len(names) > 4 else 2, len(names)))
    rows = max(1, -(-len(names) // columns))
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=(6.5 * columns + 1.5, 4.5 * rows), squeeze=False)
    figure.set_layout_engine("constrained")
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names, strict=False):
        axes.set_title(name, loc="left")
        axes.grid(alpha=0.25)
    return figure, (
        (axes, [r for r in records if r["problem"] == n]) for axes, n in zip(grid.flat, names, strict=False)
    )


def _finish(figure: plt.Figure, path: pathlib.Path) -> None:
    """Adds one legend for all panels and saves the figure."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(list(entries.values()), list(entries), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
