"""Pictures of look-ups and their limits, of the cost along N, M, C and D, and of recall against time."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks import sweep
from benchmarks.records import Measurement
from benchmarks.roofline import Point, bound, roof
from benchmarks.search_report import Result

COLORS = ("#0b5fa5", "#d1495b", "#5a8f29", "#8d5aa8", "#7a7a7a")
STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}


def roofline(
    path: pathlib.Path,
    points: Sequence[Point],
    limits: Mapping[str, Any],
    vendor: str,
    kernels: Sequence[Mapping],
    title: str,
) -> None:
    """Plots look-ups per second against look-ups per byte moved; points have numbers that a key explains."""
    clock, reads = 1e9 * limits["clock_ghz"], limits["read_gb_s"]
    tiers = list(dict.fromkeys(p.tier for p in points))
    roofs = {t: r * clock for t in tiers if (r := roof(t, vendor, kernels)) is not None}
    x = np.geomspace(0.5 * min(p.lookups_per_byte for p in points), 3 * max(p.lookups_per_byte for p in points), 400)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(12, 6.5), layout="constrained")
        for (size, rate), line in zip(sorted(reads.items(), key=lambda kv: int(kv[0])), (":", "--", "-"), strict=True):
            y = [bound(i, max(roofs.values(), default=np.inf), 1e9 * rate) for i in x]
            axes.plot(
                x, y, line, color="black", linewidth=1.3, label=f"{size} MB, read again and again: {rate:.0f} GB/s"
            )
        for height in dict.fromkeys(roofs.values()):
            under = [t for t, h in roofs.items() if h == height]
            tier = under[0]
            axes.axhline(height, color=_color(tiers, tier), linewidth=1.3, alpha=0.8)
            style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "color": _color(tiers, tier)}
            text = f"{', '.join(under)}: {height / clock:.2g} look-ups/cycle"
            axes.annotate(text, (x[-1], height), (-3, 3), ha="right", **style)
        _numbered(axes, points, tiers)
        axes.set(xscale="log", yscale="log", xlim=(x[0], x[-1]))
        axes.set_xlabel("look-ups per byte moved (x, tables and y, each once)")
        axes.set_ylabel("look-ups per second")
        right = axes.secondary_yaxis("right", functions=(lambda y: y / clock, lambda y: y * clock))
        right.set_ylabel(f"look-ups per cycle at {clock / 1e9:.2f} GHz")
        axes.grid(which="major", alpha=0.25)
        axes.legend(loc="upper left", bbox_to_anchor=(0.01, 0.93), frameon=False, fontsize=9)
        axes.set_title(title, loc="left", fontsize=11)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _color(tiers: Sequence[str], tier: str) -> str:
    return COLORS[tiers.index(tier) % len(COLORS)]


def _numbered(axes: plt.Axes, points: Sequence[Point], tiers: Sequence[str]) -> None:
    """Draws a disc with a number for each point, and the key to the numbers beside the axes."""
    labels = list(dict.fromkeys(p.label for p in points))
    for p in points:
        color = _color(tiers, p.tier)
        axes.plot(p.lookups_per_byte, p.lookups_per_second, "o", markersize=14, color=color, alpha=0.85, zorder=3)
        axes.annotate(
            str(labels.index(p.label) + 1), (p.lookups_per_byte, p.lookups_per_second), color="white", fontsize=8,
            ha="center", va="center", weight="bold", zorder=4,
        )  # fmt: skip
    key = ["    rows x D x M"] + [f"{i:2d}  {label}" for i, label in enumerate(labels, 1)]
    key += [
        "",
        "The time is the whole call's: encoding,",
        "rescaling and fresh memory for y are in",
        "it, not in the roofs.",
    ]
    axes.annotate(
        "\n".join(key), (1.1, 1), xycoords="axes fraction", va="top", fontsize=8.5, linespacing=1.6, family="monospace"
    )


def along(path: pathlib.Path, by_axis: Mapping[str, Sequence[Measurement]], title: str) -> None:
    """Plots time per look-up along each axis, with cliffs ringed, and time against look-ups and bytes."""
    with plt.rc_context(STYLE):
        rows = -(-(len(by_axis) + 2) // 4)
        figure, grid = plt.subplots(rows, 4, figsize=(16, 3.6 * rows), layout="constrained", squeeze=False)
        for axes, (axis, measured) in zip(grid.flat, by_axis.items(), strict=False):
            _one_axis(axes, axis, measured)
        for axes, what in zip(grid.flat[len(by_axis) :], ("look-ups", "bytes moved"), strict=False):
            for number, (axis, measured) in enumerate(by_axis.items()):
                work = [m.lookups if what == "look-ups" else m.moved_bytes for m in measured]
                style = {"markersize": 4, "alpha": 0.8, "color": f"C{number}"}
                axes.plot(work, [1e3 * m.median_ms for m in measured], "o", label=axis, **style)
            axes.set(xscale="log", yscale="log", xlabel=what, ylabel="us", title=f"time against {what}")
            axes.legend(frameon=False, fontsize=8)
            axes.grid(alpha=0.25)
        for axes in grid.flat[len(by_axis) + 2 :]:
            axes.set_axis_off()
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _one_axis(axes: plt.Axes, axis: str, measured: Sequence[Measurement]) -> None:
    sizes = [sweep.value(axis, m) for m in measured]
    cost = [1e9 * m.median_ms / m.lookups for m in measured]
    low, high = ([1e9 * m.quartiles_ms[i] / m.lookups for m in measured] for i in (0, 1))
    axes.fill_between(sizes, low, high, alpha=0.2, color=COLORS[0], linewidth=0)
    axes.plot(sizes, cost, "o-", markersize=4, linewidth=1, color=COLORS[0])
    for cliff in sweep.cliffs(axis, measured):
        position = sizes.index(sweep.value(axis, cliff.at))
        axes.plot(sizes[position], cost[position], "o", markersize=11, markerfacecolor="none", color=COLORS[1])
    axes.set(xscale="log", yscale="log", xlabel=axis[0], ylabel="ps per look-up", title=f"along {axis}")
    axes.grid(alpha=0.25)


def recall(path: pathlib.Path, results: Sequence[Result], least: float, title: str) -> None:
    """Plots recall against time, with a line for each method and numbers of candidates along it."""
    batches = list(dict.fromkeys(r.batch for r in results))
    methods = list(dict.fromkeys(r.what for r in results))
    test = next(iter(results[0].tests))
    with plt.rc_context(STYLE):
        size = (6.2 * len(batches), 4.6)
        figure, grid = plt.subplots(1, len(batches), figsize=size, layout="constrained", squeeze=False, sharey=True)
        for axes, batch in zip(grid.flat, batches, strict=True):
            axes.axhline(least, color="black", linewidth=0.8, linestyle=":")
            for color, what in zip(COLORS, methods, strict=False):
                own = [r for r in results if r.what == what and r.batch == batch]
                times, shares = [r.query_ms for r in own], [r.tests[test] for r in own]
                axes.plot(times, shares, "o-" if len(own) > 1 else "D", markersize=5, color=color, label=what)
                for r in own if what == methods[1] else ():
                    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": color}
                    axes.annotate(str(r.num_candidates or ""), (r.query_ms, r.tests[test]), (5, -11), **style)
            axes.set(
                xscale="log", xlabel="ms a query", title=f"{batch} at a time" if batch > 1 else "one query at a time"
            )
            axes.grid(alpha=0.25)
        grid.flat[0].set_ylabel(f"recall@10, {test}")
        grid.flat[-1].legend(loc="lower right", frameon=False, fontsize=9)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        figure.savefig(path, dpi=130)
        plt.close(figure)
