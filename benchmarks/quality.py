"""NMSE of every method, problem and size on held-out rows; with --time, their times as well.

    python -m benchmarks.quality [--problems FOLDER] [--methods paper,low-rank,pq] [--codebooks 4,8,16,32,64] [--time]

The methods are those of `fit` and the alternatives of baselines.py and quantizers.py. The command writes quality.json,
quality.md and quality.png (NMSE against C); with --time, also time.png (NMSE against time). Problems come from the data
of scikit-learn, or from a folder of `.npz` files with `x_train`, `x_test`, `w` and optionally `b`. All methods are
compared with the paper's, or with another implementation if the folder has a `reference_nmse.json` of its NMSE
(`nmse_floatlut` by problem and number of codebooks). NMSE = |Y - Y_hat|^2 / |Y - mean_train(Y)|^2 over `x_test`, with
8-bit tables.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks import baselines, machine, measured, quality_report, quality_time, quantizers
from benchmarks.approximation import Approximation, Method, in_codebooks
from benchmarks.packaged import Matrices, packaged
from jax_maddness.learn.config import METHOD_NAMES as OURS


def fitted(method: str, x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """Learns an approximation by a method of `fit`."""
    config = jax_maddness.FitConfig(method=method)
    op = jax_maddness.fit(x_train, w, b, num_codebooks=size, config=config)
    return Approximation(jax_maddness.amm, op)


METHODS = {
    method.name: method
    for method in (
        *(Method(name, functools.partial(fitted, name), in_codebooks, ours=True) for name in OURS),
        *baselines.METHODS,
        *quantizers.METHODS,
    )
}
"""All methods that are measured, by name."""


def nmse(approximation: Approximation, problem: Matrices) -> float:
    """Returns the squared error on the test rows, divided by that of predicting the mean training output."""
    exact = problem.x_test @ problem.w + problem.b
    center = problem.x_train.mean(0, dtype=np.float64) @ problem.w + problem.b
    error = np.asarray(approximation(jnp.asarray(problem.x_test)), np.float64) - exact
    return float((error**2).sum() / ((exact - center) ** 2).sum())


def measure(
    problems: Iterable[Matrices], methods: Sequence[Method], codebooks: Sequence[int], timed: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields one record per problem, method and size."""
    for problem in problems:
        learned = [
            _learn(problem, method, label, size)
            for method in methods
            for label, size in method.sizes(len(problem.w), len(problem.b), codebooks).items()
        ]
        times: Sequence[dict[str, float]] = [{}] * len(learned)
        if timed:
            print(f"{problem.name}: timing", file=sys.stderr, flush=True)
            x = problem.x_test
            reference = METHODS["exact"].learn(problem.x_train, problem.w, problem.b, 0)
            times = quality_time.relative_times(reference, [approximation for _, approximation in learned], x)
        yield from (record | time_of_record for (record, _), time_of_record in zip(learned, times, strict=True))


def _learn(problem: Matrices, method: Method, label: str, size: int) -> tuple[dict[str, Any], Approximation]:
    print(f"{problem.name}: {method.name} {label}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    approximation = method.learn(problem.x_train, problem.w, problem.b, size)
    seconds = time.perf_counter() - start
    record = {
        "problem": problem.name,
        "rows": len(problem.x_train),
        "features": problem.w.shape[0],
        "outputs": problem.w.shape[1],
        "method": method.name,
        "ours": method.ours,
        "label": label,
        "size": size,
        "codebooks": size if method.sizes is in_codebooks else None,
        "nmse": nmse(approximation, problem),
        "bytes": approximation.nbytes,
        "fit_seconds": round(seconds, 2),
    }
    return record, approximation


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables and writes the files."""
    args = parse(argv)
    reference = None
    problems: Iterable[Matrices] = packaged()
    if args.problems:
        problems = map(Matrices.load, sorted(args.problems.glob("*.npz")))
        if (args.problems / "reference_nmse.json").exists():
            reference = json.loads((args.problems / "reference_nmse.json").read_text())
    problems = (p for p in problems if args.only is None or p.name in args.only)
    before = machine.work()
    results = list(measure(problems, [METHODS[name] for name in args.methods], args.codebooks, args.time))
    records = quality_report.with_ratios(results, reference)
    facts = machine.facts() | {"keeps_memory": args.time, "others": machine.others(before, machine.work())}
    text = quality_report.markdown(records)
    if args.time:
        text = f"{machine.headline(facts, None)}\nTimes: one thread, {quality_time.ROWS} rows.\n\n{text}"
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.save:
        measured.write("quality", measured.command("quality", argv), facts, records, facts["processors"])
    (args.output / "quality.json").write_text(json.dumps(records, indent=1))
    (args.output / "quality.md").write_text(text)
    from benchmarks import quality_pictures

    quality_pictures.against_codebooks(args.output / "quality.png", records)
    if args.time:
        title = f"One thread, {quality_time.ROWS} rows: {facts['cpu']}, {facts['date'][:10]}"
        if facts["others"] > machine.QUIET:
            title += f", not quiet ({facts['others']:.2f} processors busy with other things)"
        quality_pictures.against_time(args.output / "time.png", records, title)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--problems", type=pathlib.Path, help="a folder; without it, scikit-learn's data")
    parser.add_argument("--only", type=names, help="names of problems")
    runs = [name for name, method in METHODS.items() if method.runs]
    parser.add_argument("--methods", type=names, default=runs, help=f"some of {','.join(METHODS)}; default: {runs}")
    parser.add_argument("--codebooks", type=lambda s: [int(c) for c in s.split(",")], default=[4, 8, 16, 32, 64])
    parser.add_argument("--time", action="store_true", help="how long each takes: on a quiet machine")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/quality"))
    measured.add_option(parser)
    args = parser.parse_args(argv)
    if unknown := [name for name in args.methods if name not in METHODS]:
        parser.error(f"--methods {','.join(unknown)}: there are {', '.join(METHODS)}")
    if missing := {METHODS[name].needs for name in args.methods if not METHODS[name].runs}:
        parser.error(f"--methods {','.join(args.methods)}: {', '.join(missing)} is not installed")
    return args


if __name__ == "__main__":
    main()
