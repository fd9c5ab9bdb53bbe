"""Times of amm and its alternatives, interleaved in one process per number of threads: python -m benchmarks.run

Writes results.json, table.md, roofline.md and .png, sweep.md and .png. Only times are measured, with random ops; for
accuracy see benchmarks/quality.py and `make demo`. With `--threads 1` the pools of XLA and torch have one thread as
well. The limits and the clock come from bench_limits and bench_kernels, if `make bench` has built them.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks import machine, measured, problems, records, roofline, sweep, table
from benchmarks.records import Measurement, Problem


def main(argv: Sequence[str] | None = None) -> None:
    """Measures everything and writes it to the output folder."""
    args = parse(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.again:
        write(args.output, json.loads(args.again.read_text()))
        return
    results: dict[str, Any] = {"machine": machine.facts() | {"keeps_memory": args.keep_memory}}
    limits_program = machine.program(args.build, "bench_limits")
    if limits_program is None:
        print(f"No bench_limits in {args.build} (`make bench` builds it): no clock, no roofline.", file=sys.stderr)
    before = machine.work()
    results["limits"] = machine.limits(limits_program)
    results["kernels"] = machine.kernels(machine.program(args.build, "bench_kernels"))
    results["measurements"] = [
        record for threads in args.threads for record in measure(args, threads, chosen(args, threads), limits_program)
    ]
    results["sweep"] = measure(args, min(args.threads), ["--sweep"], limits_program) if args.sweep else []
    results["machine"]["others"] = machine.others(before, machine.work())
    (args.output / "results.json").write_text(json.dumps(results, indent=1))
    write(args.output, results)
    if args.save:
        name, command = "products" if args.threads == [1] else "threads", measured.command("run", argv)
        measured.write(name, command, results["machine"], results["measurements"], args.threads[-1])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    processors = len(os.sched_getaffinity(0))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="five minutes with --sweep and two threads; the default")
    size.add_argument("--full", action="store_true", help="more shapes and more rounds: half an hour")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2][:processors])
    parser.add_argument("--shapes", nargs="+", help=f"NxDxM:C,..., and +extra, such as {problems.QUICK[0]}")
    parser.add_argument(
        "--tiers", nargs="+", default=[], help="that amm runs on; default: the best, and where +tiers: all"
    )
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="all contenders get freed memory again: jax_maddness.retain_freed_memory()",
    )
    parser.add_argument("--sweep", action="store_true", help="cost along N, M, C and D too")
    parser.add_argument("--rounds", type=int, nargs=2, metavar=("LEAST", "MOST"), help="per shape")
    parser.add_argument("--seconds", type=float, help="per shape, if the least number of rounds fits")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/bench/results"))
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/bench"), help="where CMake built")
    parser.add_argument(
        "--again", type=pathlib.Path, metavar="JSON", help="only write tables and pictures of this file"
    )
    measured.add_option(parser)
    args = parser.parse_args(argv)
    args.rounds = args.rounds or ((7, 31) if args.full else (3, 15))
    args.seconds = args.seconds if args.seconds is not None else (30.0 if args.full else 5.0)
    if max(args.threads) > processors:
        parser.error(f"--threads {max(args.threads)}, but this process may use {processors} processors")
    for shape in args.shapes or ():
        Problem.parse(shape)  # so that an error is reported here, not in the other process
    return args


def chosen(args: argparse.Namespace, threads: int) -> list[str]:
    """Returns the problems to measure with this number of threads, as arguments of measure.py."""
    if args.shapes:
        return ["--problems", *args.shapes]
    every = problems.FULL if args.full else problems.QUICK
    wanted = [p for p in every if threads == min(args.threads) or "threads" in Problem.parse(p).extras]
    return ["--problems", *wanted]


def measure(
    args: argparse.Namespace, threads: int, selection: Sequence[str], clock: str | None
) -> list[dict[str, Any]]:
    """Starts a process with this number of threads; returns its measurements."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "measurements.json"
        command = [sys.executable, "-m", "benchmarks.measure", "--threads", str(threads), "--output", str(output)]
        command += ["--rounds", *map(str, args.rounds), "--seconds", str(args.seconds), *selection]
        command += ["--tiers", *args.tiers] if args.tiers else []
        command += ["--clock", clock] if clock else []
        command += ["--keep-memory"] if args.keep_memory else []
        subprocess.run(command, check=True, cwd=pathlib.Path(__file__).parents[1])
        return json.loads(output.read_text())


def write(folder: pathlib.Path, results: dict[str, Any]) -> None:
    """Writes tables and pictures, and prints the table."""
    measurements = [records.measurement(r) for r in results["measurements"]]
    head = machine.headline(results["machine"], results["limits"])
    text = f"{head}\n{table.report(measurements)}"
    (folder / "table.md").write_text(text)
    print(text)
    title = (
        f"{results['machine']['cpu']}, {results['machine']['date'][:10]}, jax {results['machine']['versions']['jax']}"
    )
    if results["limits"]:
        write_roofline(folder, results, measurements, title)
    if results["sweep"]:
        by_axis: dict[str, list[Measurement]] = {}
        for record in results["sweep"]:
            by_axis.setdefault(record["axis"], []).append(records.measurement(record))
        (folder / "sweep.md").write_text(f"{head}\n{sweep.report(by_axis)}")
        from benchmarks import pictures

        pictures.along(folder / "sweep.png", by_axis, f"Cost along N, M, C and D: {title}")
    print(f"Written to {folder}.")


def write_roofline(
    folder: pathlib.Path, results: dict[str, Any], measurements: Sequence[Measurement], title: str
) -> None:
    """Writes the roofline picture and its numbers."""
    limits, kernels, vendor = results["limits"], results["kernels"], results["machine"]["vendor"]
    points = roofline.points(measurements, limits["clock_ghz"])
    if not points:
        return
    (folder / "roofline.md").write_text(roofline.table(points, vendor, limits, kernels))
    from benchmarks import pictures

    pictures.roofline(folder / "roofline.png", points, limits, vendor, kernels, f"One thread: {title}")


if __name__ == "__main__":
    main()
