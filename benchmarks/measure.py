"""Measures problems in one process with a given number of threads. run.py starts it.

XLA sizes its thread pool by the number of processors that the process may use when JAX starts. Therefore the affinity
is set first, and JAX is imported inside the functions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks import timing
from benchmarks.problems import LOOPED, SWEEP
from benchmarks.records import Measurement, Problem

if TYPE_CHECKING:
    from benchmarks.contenders import Contender


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the problems, or the sweep, and writes a JSON list."""
    args = parse(argv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # so that torch's threads sleep before the next contender's turn
    import jax_maddness
    from benchmarks import contenders

    if args.keep_memory and not jax_maddness.retain_freed_memory():
        sys.exit("--keep-memory: only glibc can.")
    results: list[dict] = []
    for text in args.problems:
        problem = Problem.parse(text)
        print(f"{args.threads} thread(s): {text}", file=sys.stderr, flush=True)
        entrants = contenders.contenders(problem, args.threads, args.tiers)
        results += map(dataclasses.asdict, measured(entrants, [problem] * len(entrants), args))
    for axis in SWEEP if args.sweep else ():
        print(f"{args.threads} thread(s): sweep of {axis}", file=sys.stderr, flush=True)
        problems = SWEEP[axis]
        entrants = list(contenders.along_a_sweep(problems, axis in LOOPED))
        whose = [problems[0]] * (len(entrants) - len(problems)) + list(problems)
        results += ({"axis": axis, **dataclasses.asdict(m)} for m in measured(entrants, whose, args))
    args.output.write_text(json.dumps(results))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options, which run.py describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--problems", nargs="*", default=[])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--tiers", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, required=True, help="for all rounds of a problem")
    parser.add_argument("--rounds", type=int, nargs=2, required=True, help="the least and the largest number")
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("--clock", help="a program that prints the clock as JSON")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    return parser.parse_args(argv)


def measured(entrants: Sequence[Contender], problems: Sequence[Problem], args: argparse.Namespace) -> list[Measurement]:
    """Times `entrants` in turn, each on its problem; leaves out those that are only subtracted from others."""
    before = clock_ghz(args.clock)
    figures = timing.interleaved(entrants, seconds=args.seconds, rounds=tuple(args.rounds))
    clocks = [ghz for ghz in (before, clock_ghz(args.clock)) if ghz is not None]
    clock = statistics.mean(clocks) if clocks else None
    per_call = [[ms / e.repeats for ms in own] for e, own in zip(entrants, figures, strict=True)]
    empty = {e.what: own for e, own in zip(entrants, per_call, strict=True) if e.kind == "empty"}
    return [
        measurement(e, own, empty.get(e.minus), p, args.threads, clock)
        for e, own, p in zip(entrants, per_call, problems, strict=True)
        if e.kind != "empty"
    ]


def measurement(
    entrant: Contender,
    own: Sequence[float],
    empty: Sequence[float] | None,
    problem: Problem,
    threads: int,
    clock: float | None,
) -> Measurement:
    """Makes the record of a contender from its times in all rounds."""
    net = [ms - nothing for ms, nothing in zip(own, empty or [0.0] * len(own), strict=True)]
    low, middle, high = timing.quartiles(net)
    names = ("what", "kind", "codebooks", "variant", "tier", "itemsize")
    return Measurement(
        rows=problem.rows,
        features=problem.features,
        outputs=problem.outputs,
        threads=threads,
        median_ms=middle,
        quartiles_ms=(low, high),
        least_ms=min(net),
        rounds=len(net),
        clock_ghz=clock,
        **{name: getattr(entrant, name) for name in names},
    )


def clock_ghz(program: str | None) -> float | None:
    """Returns the clock of the core in GHz, or None without a program that measures it."""
    if program is None:
        return None
    return json.loads(subprocess.run([program, "--clock"], check=True, capture_output=True).stdout)["clock_ghz"]


if __name__ == "__main__":
    main()
