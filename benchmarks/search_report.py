"""What benchmarks/search.py found, in Markdown: the scan, recall against time, a head, and what was aimed at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LOOK_UPS = "look-ups, then rescore"
EXACT = "XLA f32, every product"
FAISS_FLAT = "faiss, every product"
FAISS = "faiss fast scan + refine"
FAISS_ROTATED = "faiss OPQ + fast scan + refine"

RECALL = 0.99
"""Of the exact neighbours: what the number of candidates is chosen for."""
AGREEMENT = 0.999
"""With the exact greatest output, the same."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How well and how quickly something answered.

    Attributes:
      task: `neighbours` or `head`.
      num_candidates: candidates; 0 where every product is computed.
      validation: recall, or agreement, on the queries that choose `num_candidates`.
      tests: the same on other queries, by their names.
      quartiles_ms: of a call, which answers `batch` queries.
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
        return self.quartiles_ms[1] / self.batch


def chosen(results: Sequence[Result], what: str, least: float) -> Result | None:
    """The quickest of the numbers of candidates that reach `least` on validation queries; None where none does.

    Example:
      >>> a, b = (Result("head", "x", 1, 1, c, r, {}, (1, c, 1)) for c, r in ((1, 0.5), (2, 0.99)))
      >>> chosen([a, b], "x", 0.9).num_candidates
      2
    """
    enough = [r for r in results if r.what == what and r.validation >= least]
    return min(enough, key=lambda r: r.query_ms, default=None)


def rows(results: Sequence[Result], least: float) -> Iterator[str]:
    """A Markdown table; what was chosen is bold."""
    tests = list(results[0].tests)
    yield f"| what | candidates | {' | '.join(tests)} | ms a query (quartiles) | times as fast |\n"
    yield "|---" * (len(tests) + 4) + "|\n"
    base = next(r for r in results if r.what == EXACT).query_ms
    for r in results:
        mark = "**" if r.num_candidates and r is chosen(results, r.what, least) else ""
        low, _, high = (ms / r.batch for ms in r.quartiles_ms)
        found = " | ".join(f"{r.tests[name]:.4f}" for name in tests)
        yield (
            f"| {mark}{r.what}{mark} | {r.num_candidates or 'all'} | {found} "
            f"| {r.query_ms:.3g} ({low:.3g}-{high:.3g}) | {mark}{base / r.query_ms:.1f}x{mark} |\n"
        )


@dataclasses.dataclass(frozen=True)
class Target:
    """`times` as quick as `rival`: so much was aimed at."""

    rival: str
    times: float


def verdicts(title: str, results: Sequence[Result], least: float, targets: Sequence[Target]) -> Iterator[str]:
    """A line for each target: what was aimed at, and what came out."""
    own = chosen(results, LOOK_UPS, least)
    for target in targets:
        complete = (r for r in results if r.what == target.rival and not r.num_candidates)  # as good as it gets
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
    """Candidates, if any, and the share of what is right on the first of the test queries."""
    return (
        f"{result.num_candidates} candidates, " * bool(result.num_candidates)
        + f"{next(iter(result.tests.values())):.4f}"
    )


def scans(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The scan beside plain reads of the same bytes; the fastest read counts."""
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
    """How long each index took."""
    yield f"| index | seconds on {processors} processors |\n|---|---|\n"
    for what, took in seconds.items():
        yield f"| {what} | {took:.1f} |\n"
