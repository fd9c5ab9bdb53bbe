"""How well each method of `fit` learns: NMSE of every method, problem and number of codebooks, on rows held out.

    python -m benchmarks.quality [--problems FOLDER] [--methods paper,axis] [--codebooks 4,8,16,32,64] [--output FOLDER]

Writes quality.json, quality.md and quality.png. Problems come from scikit-learn's data, or from a folder of `.npz`
files with `x_train`, `x_test`, `w` and perhaps `b`; a `reference_nmse.json` beside them has what another implementation
reaches (`nmse_floatlut` by problem and number of codebooks), else the paper's method is what the others are compared
with. NMSE = |Y - Y_hat|^2 / |Y - mean_train(Y)|^2 over `x_test`, through the 8-bit tables.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks.packaged import Matrices, packaged
from jax_maddness.learn.fit import METHODS


def nmse(op: jax_maddness.MaddnessOp, problem: Matrices) -> float:
    """Squared error of `op` on the test rows, relative to that of predicting the training rows' mean output."""
    exact = problem.x_test @ problem.w + problem.b
    centre = problem.x_train.mean(0, dtype=np.float64) @ problem.w + problem.b
    error = np.asarray(jax_maddness.amm(jnp.asarray(problem.x_test), op), np.float64) - exact
    return float((error**2).sum() / ((exact - centre) ** 2).sum())


def measure(problems: Iterable[Matrices], methods: Sequence[str], codebooks: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One record per problem, method and number of codebooks, where there is a feature for each."""
    for problem in problems:
        features, outputs = problem.w.shape
        for c in (c for c in codebooks if c <= features):
            for method in methods:
                print(f"{problem.name}: {method}, C = {c}", file=sys.stderr, flush=True)
                config = jax_maddness.FitConfig(method=method)
                start = time.perf_counter()
                op = jax_maddness.fit(problem.x_train, problem.w, problem.b, num_codebooks=c, config=config)
                seconds = time.perf_counter() - start
                yield {
                    "problem": problem.name,
                    "rows": len(problem.x_train),
                    "features": features,
                    "outputs": outputs,
                    "method": method,
                    "codebooks": c,
                    "nmse": nmse(op, problem),
                    "bytes": op.nbytes,
                    "fit_seconds": round(seconds, 2),
                }


def with_ratios(records: Sequence[dict[str, Any]], reference: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Each record with the reference's NMSE and its ratio to it, where there is one."""
    found = []
    for r in records:
        if reference is None:
            same = [
                q for q in records if all(q[k] == r[k] for k in ("problem", "codebooks")) and q["method"] == "paper"
            ]
            base = same[0]["nmse"] if same else None
        else:
            by_codebooks = reference.get(r["problem"], {}).get("by_codebooks", {})
            base = by_codebooks.get(str(r["codebooks"]), {}).get("nmse_floatlut")
        found.append(r if base is None else {**r, "reference": base, "ratio": r["nmse"] / base})
    return found


def markdown(records: Sequence[dict[str, Any]], codebooks: Sequence[int]) -> str:
    """One table per method, a row per problem: NMSE and, in brackets, its ratio; then the geometric means."""
    parts = []
    for method in dict.fromkeys(r["method"] for r in records):
        here = [r for r in records if r["method"] == method]
        heads = ["problem", "rows x D x M", *(f"C = {c}" for c in codebooks), "seconds of a fit"]
        lines = [f"### {method}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for name in dict.fromkeys(r["problem"] for r in here):
            cells = {r["codebooks"]: r for r in here if r["problem"] == name}
            first = next(iter(cells.values()))
            shape = f"{first['rows']} x {first['features']} x {first['outputs']}"
            seconds = np.median([r["fit_seconds"] for r in cells.values()])
            lines.append(
                "| " + " | ".join([name, shape, *(_cell(cells.get(c)) for c in codebooks), f"{seconds:.1f}"]) + " |"
            )
        ratios = np.array([r["ratio"] for r in here if "ratio" in r])
        if len(ratios):
            mean = np.exp(np.log(ratios).mean())
            lines += ["", f"{len(ratios)} ratios: geometric mean {mean:.3f}, worst {ratios.max():.3f}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    return f"{record['nmse']:.4f}" + (f" ({record['ratio']:.2f})" if "ratio" in record else "")


def picture(path: pathlib.Path, records: Sequence[dict[str, Any]]) -> None:
    """NMSE against the number of codebooks: a panel per problem, a line per method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names, methods = (list(dict.fromkeys(r[k] for r in records)) for k in ("problem", "method"))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), layout="constrained", squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        here = [r for r in records if r["problem"] == name]
        for method in methods:
            points = sorted((r["codebooks"], r["nmse"]) for r in here if r["method"] == method)
            axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=method)
        other = sorted({(r["codebooks"], r["reference"]) for r in here if "reference" in r})
        if other and not any(r.get("ratio") == 1 for r in here):
            axes.plot(*zip(*other, strict=True), "k:", label="reference")
        axes.set(xscale="log", yscale="log", title=name, xlabel="C", ylabel="NMSE")
        axes.set_xticks(sorted({r["codebooks"] for r in here}), sorted({r["codebooks"] for r in here}))
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    grid.flat[0].legend(frameon=False)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=pathlib.Path, help="a folder; without it, scikit-learn's data")
    parser.add_argument("--only", type=lambda s: s.split(","), help="names of problems")
    parser.add_argument("--methods", type=lambda s: s.split(","), default=list(METHODS))
    parser.add_argument("--codebooks", type=lambda s: [int(c) for c in s.split(",")], default=[4, 8, 16, 32, 64])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/quality"))
    args = parser.parse_args(argv)
    reference = None
    problems: Iterable[Matrices] = packaged()
    if args.problems:
        problems = map(Matrices.load, sorted(args.problems.glob("*.npz")))
        if (args.problems / "reference_nmse.json").exists():
            reference = json.loads((args.problems / "reference_nmse.json").read_text())
    problems = (p for p in problems if args.only is None or p.name in args.only)
    records = with_ratios(list(measure(problems, args.methods, args.codebooks)), reference)
    text = markdown(records, args.codebooks)
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "quality.json").write_text(json.dumps(records, indent=1))
    (args.output / "quality.md").write_text(text)
    picture(args.output / "quality.png", records)


if __name__ == "__main__":
    main()
