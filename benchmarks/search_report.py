"""Results of search.py in Markdown: the scan, recall against time, a head, and targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.records import Record

LOOK_UPS = "look-ups, then rescore"
EXACT = "XLA f32, every product"
FAISS_FLAT = "faiss, every product"
FAISS = "faiss fast scan + refine"
FAISS_ROTATED = "faiss OPQ + fast scan + refine"

RECALL = 0.99
"""Share of the exact neighbors that the number of candidates is chosen for."""
AGREEMENT = 0.999
"""Share of rows with the exact greatest output that the number of candidates is chosen for."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Recall and time of a searcher.

    Attributes:
      task: `neighbors` or `head`.
      what: the name of the searcher.
      batch: number of queries in a call.
      num_candidates: number of candidates; 0 if every product is computed.
      validation: recall or agreement on the queries on which `num_candidates` is chosen.
      tests: recall or agreement on other queries, by their names.
      quartiles_ms: lower quartile, median and upper quartile of a call, in milliseconds.
    """

    task: str
    what: str
    batch: int
    threads: int
    num_candidates: int
    validation: float
    tests: Mapping[str, float]
    quartiles_ms: tuple[float, float, float]

    @property
    def query_ms(self) -> float:
        """Median milliseconds per query."""
        return self.quartiles_ms[1] / self.batch


def chosen(results: Sequence[Result], what: str, least: float) -> Result | None:
    """Returns the fastest result of `what` that reaches `least` on validation queries, or None.

    Example:
      >>> a, b = (Result("head", "x", 1, 1, c, r, {}, (1, c, 1)) for c, r in ((1, 0.5), (2, 0.99)))
      >>> chosen([a, b], "x", 0.9).num_candidates
      2
    """
    enough = [r for r in results if r.what == what and r.validation >= least]
    return min(enough, key=lambda r: r.query_ms, default=None)


def rows(results: Sequence[Result], least: float) -> Iterator[str]:
    """Yields a Markdown table, in which the chosen numbers of candidates are bold."""
    tests = list(results[0].tests)
    yield f"| what | candidates | {' | '.join(tests)} | ms a query (quartiles) | times as fast |\n"
    yield "|---" * (len(tests) + 4) + "|\n"
    base = next(r for r in results if r.what == EXACT).query_ms
    for r in results:
        mark = "**" if r.num_candidates and r is chosen(results, r.what, least) else ""
        low, _, high = (ms / r.batch for ms in r.quartiles_ms)
        recalls = " | ".join(f"{r.tests[name]:.4f}" for name in tests)
        yield (
            f"| {mark}{r.what}{mark} | {r.num_candidates or 'all'} | {recalls} "
            f"| {r.query_ms:.3g} ({low:.3g}-{high:.3g}) | {mark}{base / r.query_ms:.1f}x{mark} |\n"
        )


def best(records: Sequence[Record]) -> str:
    """Returns the fastest result of each searcher that is close enough, from the records of a run, as a table."""
    lines = ["| work | searcher | candidates | recall | ms a query | times as fast |", "|---" * 6 + "|"]
    results = [Result(**record) for record in records]
    for task, batch in dict.fromkeys((r.task, r.batch) for r in results):
        own = [r for r in results if (r.task, r.batch) == (task, batch)]
        base = next(r for r in own if r.what == EXACT).query_ms
        for what in dict.fromkeys(r.what for r in own):
            complete = (r for r in own if r.what == what and not r.num_candidates)
            r = next(complete, None) or chosen(own, what, RECALL if task == "neighbors" else AGREEMENT)
            if r is not None:
                recall = next(iter(r.tests.values()))
                cells = [f"{task}, {batch} at a time", what, str(r.num_candidates or "all"), f"{recall:.4f}"]
                lines.append(f"| {' | '.join(cells)} | {r.query_ms:.3f} | {base / r.query_ms:.1f}x |")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Target:
    """A target: to be `times` as fast as `rival`."""

    rival: str
    times: float


def verdicts(title: str, results: Sequence[Result], least: float, targets: Sequence[Target]) -> Iterator[str]:
    """Yields a line for each target and whether it was reached."""
    own = chosen(results, LOOK_UPS, least)
    for target in targets:
        complete = (r for r in results if r.what == target.rival and not r.num_candidates)  # computes every product
        rival = next(complete, None) or chosen(results, target.rival, least)
        if rival is None:
            continue
        aim = f"- {title}: at least {target.times:.2g}x {target.rival}: "
        if own is None:
            yield aim + f"not reached: no number of candidates tried reaches {least}.\n"
            continue
        ratio = rival.query_ms / own.query_ms
        yield aim + (
            f"**{'reached' if ratio >= target.times else 'not reached'}, {ratio:.2f}x** "
            f"({_named(own)}; {rival.what}: {_named(rival)}).\n"
        )


def _named(result: Result) -> str:
    """Formats the number of candidates, if any, and the recall on the first test queries."""
    return (
        f"{result.num_candidates} candidates, " * bool(result.num_candidates)
        + f"{next(iter(result.tests.values())):.4f}"
    )


def scans(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a table of the scan and the fastest plain read of the same bytes."""
    yield "| vectors | codebooks | MB | scan, ms | GB/s | look-ups/cycle | fastest read, GB/s | share of it |\n"
    yield "|---|---|---|---|---|---|---|---|\n"
    for f in found:
        rate, read = (f["bytes"] / f[name] / 1e6 for name in ("scan_ms", "read_ms"))
        lookups = f["vectors"] * f["codebooks"] / f["scan_ms"] / 1e6
        per_cycle = f"{lookups / f['clock_ghz']:.1f}" if f["clock_ghz"] else "?"
        yield (
            f"| {f['vectors']:,} | {f['codebooks']} | {f['bytes'] / 1e6:.1f} | {f['scan_ms']:.3f} | {rate:.1f} "
            f"| {per_cycle} | {read:.1f} | {rate / read:.0%} |\n"
        )


def building(seconds: Mapping[str, float], processors: int) -> Iterator[str]:
    """Yields a table of the seconds that each index took to build."""
    yield f"| index | seconds on {processors} processors |\n|---|---|\n"
    for name, duration in seconds.items():
        yield f"| {name} | {duration:.1f} |\n"
