"""`Plan`: the result of `plan`, as a table, as JSON, and as one HTML page."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jax_maddness.core.atomic import path_name, replace_file, validate_regular
from jax_maddness.core.restore import restored
from jax_maddness.learn.config import FitConfig
from jax_maddness.nn.layers.kinds import CODES, FACTORS, INT8, LOW_RANK
from jax_maddness.nn.planning.verdict import LayerPlan, Option, Trial, predicted
from jax_maddness.nn.replacement import Replacement
from jax_maddness.nn.rules import Rule

_FORMAT, _VERSION = "jax_maddness.plan", 5
"""Version 3 added `LayerPlan.unmeasured`, version 4 `Plan.fingerprint`, version 5 `Trial.measured` and factors; older
files are read, too."""
_READABLE = (2, 3, 4, 5)
_COLUMNS = (INT8, LOW_RANK, FACTORS, CODES)
WEIGHTS = "weights of `model`"
"""The name in `Plan.fingerprint` of the model's arrays."""


@dataclasses.dataclass
class Plan:
    """The measurements and decisions of `plan`: `print` it, write it as a page, pass it to `replace`.

    Attributes:
      layers: a line for every layer with a kernel, in the order of their calls; layers that share an op are one line.
      max_drop: the most that the metric may lose.
      metric: the metric's name.
      machine: describes the machine of the measurements.
      exact_ms, fast_ms: median milliseconds of the whole model on the first batch, as it is and as planned.
      before, after: the metric on the held-out batches; None: not measured yet.
      trials: models that were tried.
      finished: nothing was left out for lack of time.
      how: by name, the fields of the `Rule` of each planned line.
      fingerprint: by name, of what decided the measurements: `plan` goes on with a file only if it is the same. Empty
        in a plan of an earlier version.
      learned: replacements by name, kind and size; empty in a plan that was read from a file.
      example: shapes and dtypes of the first batch; None in a plan that was read from a file.
    """

    layers: tuple[LayerPlan, ...]
    max_drop: float
    metric: str
    machine: str
    exact_ms: float = 0.0
    fast_ms: float = 0.0
    before: float | None = None
    after: float | None = None
    trials: tuple[Trial, ...] = ()
    finished: bool = False
    how: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    fingerprint: Mapping[str, str] = dataclasses.field(default_factory=dict)
    learned: dict[tuple[str, str, int], Replacement] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )
    example: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def replaced(self) -> tuple[LayerPlan, ...]:
        """The lines that are replaced."""
        return tuple(layer for layer in self.layers if layer.choice is not None)

    @property
    def holds_ops(self) -> bool:
        """Whether the plan has a replacement for every line that it replaces."""
        return all((layer.name, layer.by, layer.choice) in self.learned for layer in self.replaced)

    def rules(self) -> list[Rule]:
        """Returns rules, with exact paths, that replace the layers of the plan, and no others."""
        rules = []
        for layer in self.replaced:
            assert layer.choice is not None
            fields = {**self.how[layer.name], "num_codebooks": None, **rule_fields(layer.by, layer.choice)}
            fields["config"] = FitConfig(**fields["config"])
            rules += [Rule(re.escape(path), **fields) for path in layer.paths]
        return rules

    def __str__(self) -> str:
        head = "| layer | D -> M (rows) | share | exact ms | int8 | low rank | factors | codes | verdict |"
        lines = [head, "|---|---|---|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(cells(layer, self.exact_ms))} |" for layer in self.layers]
        return "\n".join([*lines, *self.totals()])

    def totals(self) -> list[str]:
        """Returns sentences on the gain of the whole model, and on its cost."""
        if not self.replaced:
            lines = ["Nothing is replaced: the model stays as it is."]
        else:
            ratio, expected = self.exact_ms / self.fast_ms, predicted(self.layers, self.exact_ms)
            lines = [
                f"{len(self.replaced)} of {len(self.layers)} lines replaced. The whole model: {self.exact_ms:.3g} ms "
                f"-> {self.fast_ms:.3g} ms, measured {ratio:.2f}x, predicted {expected:.2f}x."
            ]
        if self.before is not None and self.after is not None:
            values = f"{self.before:.4g} before, {self.after:.4g} after; at most {self.max_drop:.2g} less"
            lines.append(f"{self.metric}: {values}.")
        if not self.finished:
            lines.append("The time was up before all was measured: call `plan` again with the same `path` to go on.")
        return lines

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan without its replacements, as a whole or not at all.

        Raises:
          TypeError: `path` is not a path.
          ValueError: `path` is something other than a file, such as a folder.
          OSError: The file cannot be written; an existing file is unchanged.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}
        fields |= {name: [dataclasses.asdict(item) for item in fields[name]] for name in ("layers", "trials")}
        text = json.dumps({"format": _FORMAT, "version": _VERSION} | fields, indent=1)
        replace_file(path, lambda file: file.write(text.encode()))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a plan that `to_json` wrote.

        Raises:
          TypeError: `path` is not a path.
          OSError: There is no such file, or it cannot be opened.
          ValueError: The file is of another kind, damaged, or newer.
        """
        name = path_name(path)
        validate_regular(os.stat(name), name)
        try:
            fields = json.loads(pathlib.Path(name).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):  # not JSON, or not text
            fields = None
        header = (fields.pop("format", None), fields.pop("version", None)) if isinstance(fields, dict) else None
        if header not in [(_FORMAT, version) for version in _READABLE]:
            raise ValueError(f"{name!r} was not written by this version's `Plan.to_json`.")
        try:
            for line in fields["layers"]:
                # Files of version 2 have no such field; their words are the only record of it.
                line.setdefault("unmeasured", "the time was up" in line["words"])
            plan = restored(cls, fields, "plan")
            plan.rules(), plan._page()  # whatever else is wrong with it must not wait until it is used
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{name!r} is a damaged plan: {error!r}. Make it anew with `plan`.") from error
        return plan

    def html(self, path: str | os.PathLike[str]) -> None:
        """Writes one self-contained page with the table and pictures, as a whole or not at all.

        Raises:
          TypeError: `path` is not a path.
          ValueError: `path` is something other than a file, such as a folder.
          OSError: The file cannot be written; an existing file is unchanged.
        """
        replace_file(path, lambda file: file.write(self._page().encode()))

    def _page(self) -> str:
        """Returns the page as HTML."""
        names = ("layer", "D -> M (rows)", "share", "exact ms", "int8", "low rank", "factors", "codes", "verdict")
        rows = ["".join(f"<th>{html.escape(name)}</th>" for name in names)]
        rows += ["".join(f"<td>{html.escape(c)}</td>" for c in cells(line, self.exact_ms)) for line in self.layers]
        parts = [
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Plan</title>',
            "<style>body{font:14px sans-serif;margin:2em}td,th{padding:2px 10px;text-align:left}",
            "svg text{font:12px sans-serif}</style><h1>Plan</h1>",
            *(f"<p>{html.escape(total)}</p>" for total in self.totals()),
            "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>",
            "<h2>Time and error by layer</h2><p>Bars: milliseconds; beside them the NMSE.</p>",
            *(_bars(layer) for layer in self.layers if layer.options),
            "<h2>The metric's drop against the predicted speed-up</h2><p>One dot for each model that was tried.</p>",
            _scatter(self.trials, self.max_drop),
            f"<p>Measured on {html.escape(self.machine)}.</p></html>",
        ]
        return "\n".join(parts)


def rule_fields(kind: str, size: int) -> dict[str, Any]:
    """Returns the fields of a `Rule` for a product of this kind and size."""
    if kind == CODES:
        return {"product": kind, "num_codebooks": size}
    return {"product": kind, "rank": size or None, "exact_rows": 0.0, "num_candidates": None}


def cells(layer: LayerPlan, exact_ms: float) -> list[str]:
    """Returns a row of the table: times with the NMSE in brackets, those of several sizes one after the other."""
    d, m = layer.shape
    about = [layer.name or "(the model)", f"{d} -> {m} ({layer.rows:,})"]
    if not layer.options:
        return [*about, *[""] * 6, layer.words]
    share = f"{layer.exact.ms / exact_ms:.0%}" if exact_ms else ""
    others = ["; ".join(_option_cell(o) for o in layer.options if o.kind == kind) for kind in _COLUMNS]
    return [*about, share, f"{layer.exact.ms:.3g}", *others, layer.words]


def _option_cell(option: Option) -> str:
    rank = f"r = {option.size}: "
    name = {LOW_RANK: rank, FACTORS: rank, CODES: f"C = {option.size}: "}.get(option.kind, "")
    return f"{name}{option.ms:.3g} ({option.nmse:.2g})"


def _bars(layer: LayerPlan) -> str:
    """Draws a bar for each option of a line."""
    longest = max(option.ms for option in layer.options)
    lines = []
    for i, option in enumerate(layer.options):
        y, width = 20 * i, 400 * option.ms / longest
        color = "#c33" if option == layer.chosen else "#89a"
        name = f"{option.kind} {option.size or ''}"
        lines.append(f'<text x="110" y="{y + 13}" text-anchor="end">{name}</text>')
        lines.append(f'<rect x="120" y="{y + 2}" width="{width:.1f}" height="14" fill="{color}"/>')
        lines.append(f'<text x="{126 + width:.1f}" y="{y + 13}">{option.ms:.3g} ms, {option.nmse:.2g}</text>')
    title = f"<h3>{html.escape(layer.name or '(the model)')}</h3><p>{html.escape(layer.words)}</p>"
    return f'{title}<svg width="720" height="{20 * len(layer.options) + 4}">{"".join(lines)}</svg>'


def _scatter(trials: Sequence[Trial], max_drop: float) -> str:
    """Draws a dot for each trial, over axes that begin at 1x and at no drop, and a line at the largest drop allowed."""
    fastest = max([trial.speedup for trial in trials], default=1.0)
    finite = [drop for drop in (max_drop, *(trial.drop for trial in trials)) if math.isfinite(drop)]
    worst = max(finite, default=0) or 1.0

    def at(speedup: float, drop: float) -> tuple[float, float]:
        share = min(max(drop, 0), worst) / worst  # an infinite drop stands at the largest finite one
        return 60 + 500 * (speedup - 1) / max(fastest - 1, 1e-9), 20 + 240 * share

    limit = at(1, max_drop)[1]
    parts = [
        '<path d="M60 20V270H570" fill="none" stroke="#444"/>',
        f'<path d="M60 {limit:.1f}H570" stroke="#c33" stroke-dasharray="4"/>',
        f'<text x="575" y="{limit + 4:.1f}">max_drop {max_drop:.2g}</text>',
        f'<text x="52" y="24" text-anchor="end">0</text><text x="52" y="264" text-anchor="end">{worst:.2g}</text>',
        f'<text x="60" y="286">1x</text><text x="560" y="286" text-anchor="end">{fastest:.2f}x</text>',
    ]
    for trial in trials:
        x, y = at(trial.speedup, trial.drop)
        replaced = ", ".join(f"{name} {kind} {size or ''}".strip() for name, kind, size in trial.replaced) or "exact"
        title = html.escape(f"{replaced}: {trial.speedup:.2f}x, drop {trial.drop:.2g}")
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#357"><title>{title}</title></circle>')
    return f'<svg width="720" height="300">{"".join(parts)}</svg>'
