"""The report of a plan as one self-contained HTML page, readable on a phone."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from jax_maddness.nn.layers.kinds import CODES, EXACT, FACTORS, INT8, LOW_RANK, REWRITTEN
from jax_maddness.nn.planning import summary
from jax_maddness.nn.planning.record import Record
from jax_maddness.nn.planning.verdict import NOT_ALL, LayerPlan, Option, Trial, name_of, within

COLORS = {
    EXACT: "#555555",
    INT8: "#0072b2",
    LOW_RANK: "#009e73",
    FACTORS: "#d55e00",
    CODES: "#cc79a7",
    REWRITTEN: "#56b4e9",
}
"""A color for each kind of product, which color-blind people can tell apart (Okabe & Ito)."""
_REST = "#c8ccd2"
_LEAST_ERROR = 1e-6
"""The NMSE at the bottom of the plots; smaller ones stand there, too."""
_SIZE = re.compile("; (?=[rC] = [0-9]+: [0-9])")
"""The separator of products of several sizes in a cell."""
_CODE = re.compile("`([^`]+)`")
_PLOTS, _MORE_PLOTS = 6, 24
"""The most layers whose plots are shown at once, and the most that have a plot."""
_STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:#1c1f23;margin:0 auto;max-width:70rem;padding:1rem}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0 1rem;text-wrap:balance}h2{font-size:1.15rem;margin:2.5rem 0 .5rem}
h3{font-size:.95rem;margin:0;overflow-wrap:anywhere}p{margin:.3rem 0;overflow-wrap:anywhere}
.small{font-size:.85rem;color:#555}code{font-size:.92em;background:#f1f3f5;border-radius:3px;padding:.05em .3em}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;width:100%}
th,td{padding:.3rem .6rem;text-align:left;border-bottom:1px solid #e3e5e8;vertical-align:top}
th{font-weight:600;color:#555;white-space:nowrap}tr>:first-child{padding-left:0;overflow-wrap:anywhere;min-width:6.5rem}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;width:1%}
details td{white-space:nowrap}summary{cursor:pointer;margin:.6rem 0;color:#0072b2}
.bar{display:flex;height:1.6rem;margin-bottom:.8rem;background:#c8ccd2;border-radius:3px;overflow:hidden}
.bar i{box-shadow:inset -1px 0 rgb(255 255 255/.5)}
svg{display:block;width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#333}
svg .axis{fill:#777}.frontier{max-width:40rem}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr));gap:1.2rem}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1rem;font-size:.85rem}.key b{display:inline-block;width:.8em;height:.8em;
border-radius:50%;margin-right:.35em}
"""


def page(plan: Record) -> str:
    """Returns the page as HTML."""
    get, *others = (line.partition(": ") for line in summary.headline(plan))
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Plan</title>',
        f"<style>{_STYLE}</style><h1>{_text(get[2])}</h1>",
        *(f"<p><b>{_text(name)}</b>: {_text(words)}</p>" for name, _, words in others),
        "<h2>Where the time goes</h2>",
        _amdahl(plan),
        "<h2>The layers</h2>",
        _table(plan),
        "<h2>Time and error by layer</h2>",
        "<p class=small>A dot for each product: to the left is faster, below is closer. A ring marks the choice.</p>",
        _key(plan),
        _plots(plan),
        "<h2>Models that were tried</h2>",
        "<p class=small>To the right is faster, below is closer. Filled dots were timed as a whole; the speed-up of "
        "the others is predicted. The line joins those that no other beats in both.</p>",
        _frontier(plan.trials, plan.max_drop),
        "<h2>Notes</h2>",
        *(f"<p class=small>{_text(total)}</p>" for total in summary.totals(plan)),
        "</html>",
    ]
    return "\n".join(parts)


def _text(words: str) -> str:
    """Returns words as HTML; what is in backticks becomes code."""
    return _CODE.sub(r"<code>\1</code>", html.escape(words).replace(" -&gt; ", " &rarr; "))


def _breakable(path: str) -> str:
    """Returns a path that may go on in a new line after each part of it."""
    return _text(path).replace("/", "/<wbr>")


def _title(words: str) -> str:
    """Returns words as an attribute, or as the title of a part of a drawing, where there is no markup."""
    return html.escape(words)


def _key(plan: Record, rest: bool = False) -> str:
    """Returns the names of the colors of products that were measured; with `rest`, of the rest of the model, too."""
    colors = {kind: color for kind, color in COLORS.items() if any(line.of(kind) for line in plan.layers)}
    colors |= {"the rest of the model": _REST} if rest else {}
    dots = (f'<span><b style="background:{color}"></b>{kind}</span>' for kind, color in colors.items())
    return f'<p class="key">{"".join(dots)}</p>'


def _table(plan: Record) -> str:
    """Returns a short table, and one with all measurements that is shown on demand."""
    lines, others = summary.folded(plan)
    full = [summary.head(plan), *(summary.cells(plan, line) for line in lines)]
    short = [[row[0], row[2], row[3], _briefly(row[-1])] for row in full]
    short += [[names, "", "", _briefly(words)] for names, words in others]
    late = sum(line.words.endswith(NOT_ALL) for line in plan.layers)
    words = f"<p class=small>Not all products of {late} layers were measured, as the time was up.</p>" if late else ""
    details = f"<details><summary>All measurements</summary>{_rows(full, (2, 3))}</details>"
    return _rows(short, (1, 2)) + words + (details if lines else "")


def _briefly(words: str) -> str:
    """Returns a verdict without what is said once, below the short table."""
    return words.removesuffix(f"; {NOT_ALL}")


def _rows(rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    """Returns a table with a head; each of several products in a cell has a line of its own.

    Args:
      rows: the head and the others.
      numbers: the columns whose cells are numbers.
    """
    head, *others = rows
    kinds = [' class="number"' if column in numbers else "" for column in range(len(head))]
    lines = ["".join(f"<th{kind}>{_text(name)}</th>" for kind, name in zip(kinds, head, strict=True))]
    for row in others:
        cells = [_SIZE.sub("<br>", _text(cell)) for cell in row]
        cells[0] = _breakable(row[0])
        lines.append("".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, cells, strict=True)))
    return '<div class="wide"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _amdahl(plan: Record) -> str:
    """Draws the model's time as it is and as planned: a part for each layer, in the color of its product."""
    if not plan.exact_ms:
        return "<p>The model was not timed.</p>"
    lines = plan.looked_at
    before, after = plan.measured_ms or (plan.exact_ms, plan.fast_ms)
    parts = [(line.name, plan.scale * line.exact.ms, EXACT) for line in lines]
    drawn = _bar(f"as it is: {before:.3g} ms", 1.0, plan.exact_ms, parts)
    if plan.replaced and math.isfinite(plan.fast_ms):
        chosen = [(line, line.chosen) for line in lines]
        parts = [(line.name, plan.scale * (one or line.exact).ms, one.kind if one else EXACT) for line, one in chosen]
        drawn += _bar(f"as planned: {after:.3g} ms", plan.fast_ms / plan.exact_ms, plan.fast_ms, parts)
    words = "Layers were timed alone" + (" and scaled to their time in the model." if plan.rest_ms is not None else ".")
    return f'{drawn}{_key(plan, rest=True)}<p class="small">{words}</p>'


def _bar(name: str, length: float, total: float, parts: Sequence[tuple[str, float, str]]) -> str:
    """Draws one bar: the parts, then the rest of the total time."""
    used = sum(ms for _, ms, _ in parts)
    whole, drawn = max(total, used) or 1.0, []
    for part, ms, kind in (*parts, ("the rest", whole - used, "")):
        share = 100 * ms / whole if math.isfinite(ms) else 0.0
        title = _title(f"{part or '(the model)'}: {ms:.3g} ms {kind}")
        drawn.append(f'<i style="width:{share:.2f}%;background:{COLORS.get(kind, _REST)}" title="{title}"></i>')
    bar = f'<div class="bar" style="width:{100 * min(length, 1.0):.1f}%">{"".join(drawn)}</div>'
    return f"<p>{name}</p>{bar}"


def _plots(plan: Record) -> str:
    """Draws a plot for each layer with several options; those of the largest layers are shown at once."""
    plots = [_plot(line) for line in summary.folded(plan)[0] if len(line.options) > 1][:_MORE_PLOTS]
    first, more = ("".join(some) for some in (plots[:_PLOTS], plots[_PLOTS:]))
    words = f"<details><summary>{len(plots) - _PLOTS} more layers</summary>"
    return f'<div class="plots">{first}</div>' + (f'{words}<div class="plots">{more}</div></details>' if more else "")


def _plot(line: LayerPlan) -> str:
    """Draws a dot for each option of a line: time across, error upwards on a logarithmic scale."""
    longest = max((o.ms for o in line.options if math.isfinite(o.ms)), default=1.0)
    parts = ['<path d="M34 8V160H292" fill="none" stroke="#999"/><text x="34" y="175" text-anchor="middle">0</text>']
    parts.append('<text class="axis" x="38" y="10">NMSE</text>')
    for exponent in (0, -2, -4, -6):
        y = _height(10.0**exponent)
        parts.append(f'<path d="M34 {y:.1f}H292" stroke="#eee"/><text x="30" y="{y + 4:.1f}" text-anchor="end">')
        parts.append(f"1e{exponent}</text>" if exponent else "1</text>")
    parts.append(f'<text x="292" y="175" text-anchor="end">{longest:.3g} ms</text>')
    for option in line.options:
        ms = min(option.ms, longest)
        parts.append(_dot(34 + 252 * ms / longest, _height(option.nmse), option, line))
    return (
        f"<div><h3>{_breakable(line.name or '(the model)')}</h3>"
        f'<svg viewBox="0 0 300 180" role="img">{"".join(parts)}</svg>'
        f'<p class="small">{_text(_briefly(line.words))}</p></div>'
    )


def _height(error: float) -> float:
    """Returns the place of an NMSE between the bottom of a plot and its top; an infinite one is at the top."""
    share = math.log(min(max(error, _LEAST_ERROR), 1.0) / _LEAST_ERROR) / -math.log(_LEAST_ERROR)
    return 160 - 148 * share


def _dot(x: float, y: float, option: Option, line: LayerPlan) -> str:
    ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="#111" stroke-width="2"/>'
    title = _title(f"{name_of(option.product, line.shape)}: {option.ms:.3g} ms, NMSE {option.nmse:.2g}")
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLORS[option.kind]}"><title>{title}</title></circle>'
    return dot + (ring if option == line.chosen else "")


def _frontier(trials: Sequence[Trial], max_drop: float) -> str:
    """Draws a dot for each trial, over axes that begin at no drop, and a line at the largest drop allowed."""
    finite = [drop for drop in (2 * max_drop, *(t.drop for t in trials if t.measured)) if 0 < drop < math.inf]
    worst = max(finite, default=1.0)
    speedups = [1.0, *(trial.speedup for trial in trials if math.isfinite(trial.speedup))]
    slowest, fastest = min(speedups), max(speedups)

    def at(speedup: float, drop: float) -> tuple[float, float]:
        share = min(max(drop, 0), worst) / worst  # larger drops stand at the top
        across = (min(speedup, fastest) - slowest) / max(fastest - slowest, 1e-9)
        return 46 + 340 * across, 210 - 186 * share

    parts = ['<path d="M46 24V210H396" fill="none" stroke="#999"/><text class="axis" x="46" y="12">drop</text>']
    parts.append('<text class="axis" x="216" y="226" text-anchor="middle">times as fast</text>')
    if math.isfinite(max_drop):
        limit = at(1, max_drop)[1]
        parts.append(f'<path d="M46 {limit:.1f}H396" stroke="#c33" stroke-dasharray="5"/>')
        parts.append(f'<text x="396" y="{limit - 5:.1f}" text-anchor="end">max_drop {max_drop:.2g}</text>')
    best = _unbeaten(trials)
    if len(best) > 1:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(t.speedup, t.drop) for t in best))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLORS[INT8]}" stroke-width="1.5"/>')
    for trial in trials:
        x, y = at(trial.speedup, trial.drop)
        replaced = (
            ", ".join(f"{name} {kind} {size or ''}".strip() for name, kind, size in trial.replaced[:8]) or "exact"
        )
        title = _title(f"{replaced}: {trial.speedup:.2f}x, drop {trial.drop:.2g}")
        fill = COLORS[INT8] if trial.measured else "#fff"
        dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{COLORS[INT8]}" stroke-width="1.5">'
        parts.append(f"{dot}<title>{title}</title></circle>")
    parts.append(
        f'<text x="38" y="28" text-anchor="end">{worst:.2g}</text><text x="38" y="214" text-anchor="end">0</text>'
    )
    parts.append(
        f'<text x="46" y="226">{slowest:.2f}x</text><text x="396" y="226" text-anchor="end">{fastest:.2f}x</text>'
    )
    return f'<svg class="frontier" viewBox="0 0 400 232" role="img">{"".join(parts)}</svg>'


def _unbeaten(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the timed trials that no other beats in both speed and drop, slowest first."""
    found: list[Trial] = []
    for trial in sorted((t for t in trials if t.measured), key=lambda t: (-t.speedup, t.drop)):
        if math.isfinite(trial.speedup) and within(trial.drop, math.inf) and all(trial.drop < t.drop for t in found):
            found.append(trial)
    return found[::-1]
