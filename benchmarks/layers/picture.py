"""The picture of the benchmark of layers: error against speed-up, a point per product and layer."""

from __future__ import annotations

import pathlib
import statistics
import textwrap
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.layers.report import Record, by_layer, summary
from benchmarks.pictures import COLORS, STYLE

FLOOR = 1e-6
"""Least NMSE that is drawn; smaller ones are drawn there."""
SLOWEST = 0.5
"""Least speed-up that the medians are drawn from."""
THEIRS = ("#222222", "#e08a00", "#b39bc8", "#9aa0a6")
"""Colors of the products that are not ours."""


def draw(path: pathlib.Path, records: Sequence[Record], title: str) -> None:
    """Draws two panels: every product of every layer, and the frontier of each kind by the median over layers."""
    ours = list(dict.fromkeys(r["family"] for r in records if r["ours"]))
    theirs = list(dict.fromkeys(r["family"] for r in records if not r["ours"]))
    colors = dict(zip(ours, COLORS, strict=False)) | dict(zip(theirs, THEIRS, strict=False))
    with plt.rc_context(STYLE):
        figure, (points, medians) = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained", sharey=True)
    for family, color in colors.items():
        own = [r for r in records if r["family"] == family]
        marker = "o" if family in ours else "x"
        x, y = [1 / r["time"] for r in own], [max(r["nmse"], FLOOR) for r in own]
        points.scatter(x, y, s=14, color=color, marker=marker, alpha=0.7, label=family, linewidths=0.8)
    for family in ours:
        medians.plot(*_medians(records, [family]), color=colors[family], label=family, linewidth=1.8)
    medians.plot(*_medians(records, theirs), color="black", linestyle="--", label="best of the others")
    for axes, name in ((points, "every product of every layer"), (medians, "half of the layers reach this or better")):
        axes.set(xscale="log", yscale="log", xlabel="speed-up over XLA's f32 product", title=name)
        axes.axvline(1, color="0.7", linewidth=0.8)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9)
    points.set_ylabel("NMSE on test rows (lower is better)")
    figure.suptitle(f"{len(by_layer(records))} layers of pretrained models. {title}", x=0.01, ha="left", fontsize=11)
    figure.text(0.01, -0.02, "\n".join(textwrap.wrap(summary(records), 170)), fontsize=9, va="top")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _medians(records: Sequence[Record], families: Sequence[str]) -> tuple[list[float], list[float]]:
    """Returns speed-ups, and for each the median over layers of the least NMSE at that speed-up or more.

    A layer that does not reach a speed-up counts with an NMSE of 1.
    """
    layers = by_layer([r for r in records if r["family"] in families])
    number = len(by_layer(records))
    speeds = sorted({s for own in layers.values() for r in own if (s := round(1 / r["time"], 2)) >= SLOWEST})
    errors = []
    for speed in speeds:
        reached = [min((r["nmse"] for r in own if 1 / r["time"] >= speed), default=1.0) for own in layers.values()]
        errors.append(max(statistics.median(reached + [1.0] * (number - len(reached))), FLOOR))
    shown = [i for i, e in enumerate(errors) if e < 1.0]
    return [speeds[i] for i in shown], [errors[i] for i in shown]
