"""Recall against time of `search`, exact products and faiss: python -m benchmarks.search

Measures the scan alone, the search for nearest neighbors among WordNet's glosses, one query at a time and in batches, a
head with many outputs, and the time to build indices. Writes results.json, table.md and search.png. faiss and torch are
measured if they are installed (pip install faiss-cpu torch). The first run embeds the glosses and trains the head,
which takes minutes.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import machine, measured, search_report
from benchmarks.records import TORCH
from benchmarks.search_report import AGREEMENT, EXACT, FAISS, FAISS_ROTATED, LOOK_UPS, RECALL, Result, Target

NUM_CANDIDATES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
QUICK_NUM_CANDIDATES = (32, 64, 128, 256)
QUICK_LIMIT, QUICK_OUTPUTS, QUICK_STEPS = 20_000, 10_000, 40
OUTPUTS, STEPS = 50_000, 300


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares on all processors, measures with the given threads, and writes everything to the output folder."""
    args = parse(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.again:
        write(args.output, json.loads(args.again.read_text()))
        return
    limits = machine.program(args.build, "bench_limits")
    results: dict[str, Any] = {"machine": machine.facts(), "limits": machine.limits(limits)}
    prepared = args.output / "prepared.pickle"
    results |= prepare(args, prepared)
    before = machine.work()
    results["measured"] = [measure(args, threads, prepared, limits) for threads in args.threads]
    results["machine"]["others"] = machine.others(before, machine.work())
    prepared.unlink()
    (args.output / "results.json").write_text(json.dumps(results, indent=1))
    write(args.output, results)
    if args.save:
        first = results["measured"][0]
        command = measured.command("search", argv)
        measured.write("search", command, results["machine"], first["results"], first["threads"])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LIMIT:,} glosses, few rounds: about a minute")
    parser.add_argument("--codebooks", type=int, default=48, help="half a byte each, of every vector")
    parser.add_argument("--head-codebooks", type=int, default=96, help="the same, of the head's outputs")
    parser.add_argument("--candidates", type=int, nargs="+", help="numbers of candidates")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64], help="queries at a time")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--queries", type=pathlib.Path, nargs="*", default=[], help=".npz files with more, in x_test")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path("build/search"), help="vectors and head")
    parser.add_argument("--rounds", type=int, nargs=2, metavar=("LEAST", "MOST"), help="of each table")
    parser.add_argument("--seconds", type=float, help="for each table, if the least number of rounds fits")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/search/results"))
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/bench"), help="where CMake built")
    parser.add_argument("--again", type=pathlib.Path, metavar="JSON", help="only write table and picture of this file")
    measured.add_option(parser)
    args = parser.parse_args(argv)
    args.candidates = args.candidates or (QUICK_NUM_CANDIDATES if args.quick else NUM_CANDIDATES)
    args.rounds = args.rounds or ((3, 5) if args.quick else (7, 31))
    args.seconds = args.seconds if args.seconds is not None else (3.0 if args.quick else 60.0)
    return args


def prepare(args: argparse.Namespace, path: pathlib.Path) -> dict[str, Any]:
    """Writes data and indices to a file; returns the seconds of building and the sizes."""
    import jax_maddness
    from benchmarks import search_problems
    from benchmarks.search_contenders import faiss_indices

    sizes = (QUICK_LIMIT, 250, QUICK_OUTPUTS, QUICK_STEPS) if args.quick else (None, 1000, OUTPUTS, STEPS)
    limit, held_out, outputs, steps = sizes
    problem, head = search_problems.load(limit, held_out, args.queries, outputs, steps, args.cache)
    builds: dict[str, Callable[[], Any]] = {
        LOOK_UPS: lambda: jax_maddness.build_index(problem.database, args.codebooks),
        **faiss_indices(problem.database, args.codebooks),
    }
    if args.quick:
        builds.pop(FAISS_ROTATED, None)  # its rotation takes longest
    indices, seconds = {}, {}
    for name, build in builds.items():
        print(f"building: {name}", file=sys.stderr, flush=True)
        indices[name], seconds[name] = timed(build)
    head_index, head_seconds = timed(
        lambda: jax_maddness.build_index(head.w.T, args.head_codebooks, queries=head.train)
    )
    prepared = {"codebooks": args.codebooks, "neighbors": problem, "indices": indices, "head": head,
                "head_index": head_index}  # fmt: skip
    path.write_bytes(pickle.dumps(prepared))
    return {
        "seconds": seconds | {f"{LOOK_UPS}, the head's": head_seconds},
        "database": problem.database.shape,
        "head": head.w.shape,
        "head_codebooks": args.head_codebooks,
        "head_named": {str(n): share for n, share in head.named.items()},
    }


def timed(build: Callable[[], Any]) -> tuple[Any, float]:
    """Returns the result of `build()` and its seconds."""
    import jax

    start = time.perf_counter()
    return jax.block_until_ready(build()), time.perf_counter() - start


def measure(args: argparse.Namespace, threads: int, prepared: pathlib.Path, clock: str | None) -> dict[str, Any]:
    """Starts a process with this number of threads; returns its measurements."""
    output = args.output / "measured.json"
    command = [sys.executable, "-m", "benchmarks.search_measure", "--threads", str(threads), "--output", str(output)]
    command += ["--prepared", str(prepared), "--rounds", *map(str, args.rounds), "--seconds", str(args.seconds)]
    command += ["--candidates", *map(str, args.candidates), "--batches", *map(str, args.batches)]
    command += ["--clock", clock] if clock else []
    subprocess.run(command, check=True)
    measurements = json.loads(output.read_text())
    output.unlink()
    return {"threads": threads, **measurements}


def write(folder: pathlib.Path, results: dict[str, Any]) -> None:
    """Writes the table, which is also printed, and the picture."""
    text = machine.headline(results["machine"], results["limits"])
    for process in results["measured"]:
        text += report(results, process)
    text += "\n## Building, on all processors\n\n"
    text += "".join(search_report.building(results["seconds"], results["machine"]["processors"]))
    (folder / "table.md").write_text(text)
    print(text)
    from benchmarks import pictures

    shown = [Result(**r) for r in results["measured"][0]["results"]]
    facts = results["machine"]
    title = f"{facts['cpu']}, {facts['date'][:10]}, jax {facts['versions']['jax']}"
    pictures.recall(folder / "search.png", [r for r in shown if r.task == "neighbors"], RECALL, title)
    print(f"Written to {folder}.")


def report(results: dict[str, Any], process: dict[str, Any]) -> str:
    """Returns the part of the table for one process."""
    measurements = [Result(**r) for r in process["results"]]
    vectors, features = results["database"]
    threads = f"{process['threads']} thread" + "s" * (process["threads"] > 1)
    aims: list[str] = []
    lines = [f"\n## Scan alone, one query, {threads}\n\n", *search_report.scans(process["scans"])]
    for batch in dict.fromkeys(r.batch for r in measurements if r.task == "neighbors"):
        own = [r for r in measurements if r.task == "neighbors" and r.batch == batch]
        title = f"10 neighbors among {vectors:,} x {features}, {'one query' if batch == 1 else batch} at a time"
        lines += [f"\n## {title}, {threads}\n\n", *search_report.rows(own, RECALL)]
        faster = [Target(EXACT, 10.0 if batch == 1 else 5.0)]
        faster += [Target(rival, 1 / 1.3) for rival in (FAISS, FAISS_ROTATED)]
        aims += search_report.verdicts(title, own, RECALL, faster)
    own = [r for r in measurements if r.task == "head"]
    features, outputs = results["head"]
    title = f"Greatest of {outputs:,} outputs, one row of {features}, C = {results['head_codebooks']}"
    lines += [f"\n## {title}, {threads}\n\n", *search_report.rows(own, AGREEMENT)]
    shares = (f"among the first {n} in {share:.1%}" for n, share in results["head_named"].items())
    lines += [f"\nThe word of a held-out gloss is {', '.join(shares)}.\n"]
    targets = [Target(EXACT, 10.0), Target(TORCH, 4.0)]
    aims += search_report.verdicts(title, own, AGREEMENT, targets)
    return "".join([*lines, f"\n## Targets, {threads}\n\n", *aims])


if __name__ == "__main__":
    main()
