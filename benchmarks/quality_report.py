"""Ratios, the frontier and tables in Markdown from the records of quality.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Record = dict[str, Any]


def with_ratios(records: Sequence[Record], reference: dict[str, Any] | None) -> list[Record]:
    """Adds the NMSE of the reference and the ratio to it, if the reference has this number of codebooks."""
    extended = []
    for r in records:
        if reference is None:
            same = [q for q in _of(records, problem=r["problem"], method="paper") if q["codebooks"] == r["codebooks"]]
            base = same[0]["nmse"] if same else None
        else:
            by_codebooks = reference.get(r["problem"], {}).get("by_codebooks", {})
            base = by_codebooks.get(str(r["codebooks"]), {}).get("nmse_floatlut")
        extended.append(r if base is None else {**r, "reference": base, "ratio": r["nmse"] / base})
    return extended


def frontier(records: Iterable[Record]) -> list[Record]:
    """Returns the records that no other is both faster and more accurate than, the fastest first.

    Example:
      >>> [r["time"] for r in frontier({"time": t, "nmse": e} for t, e in ((3, 0.1), (1, 0.5), (2, 0.6)))]
      [1, 3]
    """
    best: list[Record] = []
    for r in sorted(records, key=lambda r: (r["time"], r["nmse"])):
        if not best or r["nmse"] < best[-1]["nmse"]:
            best.append(r)
    return best


def markdown(records: Sequence[Record]) -> str:
    """Returns all tables: methods side by side at one size, at equal time if there are times, and one per method."""
    parts = [side_by_side(records)]
    if any("time" in r for r in records):
        parts.append(at_equal_time(records))
    parts += [_of_method(records, method) for method in _each(records, "method")]
    return "\n\n".join(parts) + "\n"


def side_by_side(records: Sequence[Record]) -> str:
    """Returns the NMSE of every method on every problem at usual sizes; the best method of `fit` is bold."""
    numbers = sorted({r["codebooks"] for r in records if r["codebooks"]}, key=lambda c: abs(np.log2(c / 16)))
    usual = {"", "r = D/16", f"C = {numbers[0]}" if numbers else ""}
    usual_records = [r for r in records if r["label"] in usual]
    methods = _each(usual_records, "method")
    lines = [f"### Side by side ({', '.join(sorted(usual - {''}))})", "", *_head(["problem", *methods])]
    for name in _each(records, "problem"):
        cells = {r["method"]: r for r in _of(usual_records, problem=name)}
        least = min((r["nmse"] for r in cells.values() if r["ours"]), default=None)
        texts = [_number(cells.get(m), bold=cells[m]["nmse"] == least if m in cells else False) for m in methods]
        lines.append(_row([name, *texts]))
    return "\n".join(lines)


SHOWN = ("paper", "axis", "oblique", "auto", "int8", "low-rank", "pq", "opq", "bolt")
"""Methods in the documentation's table."""


def documented(records: Sequence[Record]) -> str:
    """Returns the table of the documentation: `side_by_side` of some methods, without its title."""
    shown = [r for r in records if r["method"] in SHOWN and r["label"] in ("", "r = D/16", "C = 16")]
    return side_by_side(shown).partition("\n\n")[2]


def at_equal_time(records: Sequence[Record]) -> str:
    """Compares each baseline, at its best size, with the most accurate method of `fit` that is not slower."""
    theirs = [m for m in _each([r for r in records if not r["ours"]], "method") if m != "exact"]
    lines = [
        "### At equal time",
        "",
        "NMSE of the baseline / of the best of ours that takes no longer (size of the baseline; its time, that of "
        "ours, both in parts of the exact product's). Of those of the baseline's sizes that are quicker than the exact "
        "product, the one that compares best with ours; bold: the baseline wins. `-`: none of ours is as quick as "
        "any of them; then it is the baseline's most accurate one.",
        "",
        *_head(["problem", *theirs]),
    ]
    for name in _each(records, "problem"):
        ours = [r for r in _of(records, problem=name) if r["ours"]]
        lines.append(_row([name, *(_against(_of(records, problem=name, method=m), ours) for m in theirs)]))
    return "\n".join(lines)


def _against(baseline: Sequence[Record], ours: Sequence[Record]) -> str:
    """Returns the cell of one baseline on one problem."""
    if not baseline:
        return ""
    baseline = [b for b in baseline if b["time"] < 1]
    if not baseline:
        return "exact is quicker"
    rivals = {
        i: min(quick, key=lambda r: r["nmse"])
        for i, b in enumerate(baseline)
        if (quick := [r for r in ours if r["time"] <= b["time"]])
    }
    if not rivals:
        best = min(baseline, key=lambda r: r["nmse"])
        return f"**{_plain(best['nmse'])}** / - ({_comma(best['label'])}{best['time']:.2f})"
    i = min(rivals, key=lambda i: baseline[i]["nmse"] / rivals[i]["nmse"])
    b, rival = baseline[i], rivals[i]
    wins = b["nmse"] < rival["nmse"]
    text = f"**{_plain(b['nmse'])}**" if wins else _plain(b["nmse"])
    return f"{text} / {_plain(rival['nmse'])} ({_comma(b['label'])}{b['time']:.2f}, {rival['time']:.2f})"


def _of_method(records: Sequence[Record], method: str) -> str:
    """Returns a row per problem with NMSE, ratio in parentheses and time; then the geometric mean of ratios."""
    of_method = _of(records, method=method)
    share = lambda r: r["codebooks"] or r["size"] / r["features"]  # noqa: E731
    labels = sorted(_each(of_method, "label"), key=lambda label: max(share(r) for r in _of(of_method, label=label)))
    lines = [
        f"### {method}",
        "",
        *_head(["problem", "rows x D x M", *(label or "NMSE" for label in labels), "seconds of a fit"]),
    ]
    for name in _each(of_method, "problem"):
        cells = {r["label"]: r for r in _of(of_method, problem=name)}
        first = next(iter(cells.values()))
        shape = f"{first['rows']} x {first['features']} x {first['outputs']}"
        seconds = np.median([r["fit_seconds"] for r in cells.values()])
        lines.append(_row([name, shape, *(_cell(cells.get(label)) for label in labels), f"{seconds:.1f}"]))
    ratios = np.array([r["ratio"] for r in of_method if "ratio" in r])
    if len(ratios):
        mean = np.exp(np.log(ratios).mean())
        lines += ["", f"{len(ratios)} ratios: geometric mean {mean:.3f}, worst {ratios.max():.3f}."]
    return "\n".join(lines)


def _cell(record: Record | None) -> str:
    if record is None:
        return ""
    ratio = f" ({record['ratio']:.2f})" if "ratio" in record else ""
    return _plain(record["nmse"]) + ratio + (f", {record['time']:.2f} t" if "time" in record else "")


def _number(record: Record | None, bold: bool) -> str:
    text = "" if record is None else _plain(record["nmse"])
    return f"**{text}**" if bold else text


def _plain(nmse: float) -> str:
    return f"{nmse:.4f}" if nmse >= 1e-3 else f"{nmse:.1e}" if nmse else "0"


def _comma(label: str) -> str:
    return f"{label}; " if label else ""


def _head(heads: Sequence[str]) -> list[str]:
    return [_row(heads), "|---" * len(heads) + "|"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _each(records: Iterable[Record], key: str) -> list[Any]:
    """Returns the distinct values of an entry, in order of appearance."""
    return list(dict.fromkeys(r[key] for r in records))


def _of(records: Iterable[Record], **entries: Any) -> list[Record]:
    """Returns the records with these entries."""
    return [r for r in records if all(r[key] == entry for key, entry in entries.items())]
