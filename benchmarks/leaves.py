"""Would trees of depth 5 or 6, with 32 or 64 leaves, pay? NMSE of the same learner with deeper trees; no kernels.

    python -m benchmarks.leaves [--problems FOLDER] [--only a,b] [--methods paper,oblique] [--output FOLDER]

The depth is a constant of `core/types.py` that everything else is expressed by: each depth is learned in a process of
its own, where that constant is another one. Everything then is as for depth 4, the 8-bit tables too, in pure JAX.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

SIZES = ((4, 16), (4, 32), (4, 64), (5, 16), (5, 32), (6, 12), (6, 16))
"""Depth and codebooks. 16 codebooks of 64 leaves have the bytes of 64 codebooks of 16, and the look-ups of 16; 12 have
three quarters of them."""


def with_depth(levels: int) -> None:
    """Makes trees that deep in this process; before anything imports the package. Kernels know depth 4 alone."""
    os.environ["JAX_MADDNESS_BACKEND"] = "jax"
    package = importlib.util.find_spec("jax_maddness")
    assert package is not None
    assert package.origin is not None
    source = pathlib.Path(package.origin).with_name("core") / "types.py"
    text = source.read_text().replace("\nLEVELS = 4\n", f"\nLEVELS = {levels}\n")
    module = types.ModuleType("jax_maddness.core.types")
    sys.modules[module.__name__] = module
    exec(compile(text, source, "exec"), module.__dict__)  # noqa: S102
    assert levels == module.LEVELS, "core/types.py states its depth differently"


def learn(args: argparse.Namespace) -> None:
    """Prints a record for each problem and method, and each number of codebooks of one depth."""
    with_depth(args.levels)
    import jax_maddness
    from benchmarks.packaged import Matrices, packaged
    from benchmarks.quality import nmse

    problems = map(Matrices.load, sorted(args.problems.glob("*.npz"))) if args.problems else packaged()
    for problem in (p for p in problems if args.only is None or p.name in args.only):
        for method in args.methods:
            for c in [c for levels, c in SIZES if levels == args.levels and c <= len(problem.w)]:
                config = jax_maddness.FitConfig(method)
                op = jax_maddness.fit(problem.x_train, problem.w, problem.b, num_codebooks=c, config=config)
                assert op.tables.values.shape[-1] == 2**args.levels
                record = {"problem": problem.name, "method": method, "leaves": 2**args.levels, "codebooks": c}
                print(json.dumps(record | {"rows": len(problem.x_train), "nmse": nmse(op, problem)}), flush=True)


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """A row per method and problem; the last one is the geometric mean of what each size has to 16 codebooks of 16."""
    sizes = [(2**levels, c) for levels, c in SIZES]
    lines = ["| method | problem | rows | " + " | ".join(f"{k} x {c}" for k, c in sizes) + " |"]
    lines.append("|---" * (3 + len(sizes)) + "|")
    for method in dict.fromkeys(r["method"] for r in records):
        ratios: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
        for name in dict.fromkeys(r["problem"] for r in records):
            here = [r for r in records if (r["method"], r["problem"]) == (method, name)]
            found = {(r["leaves"], r["codebooks"]): r["nmse"] for r in here}
            cells = [f"{found[s]:.4f}" if s in found else "" for s in sizes]
            lines.append(f"| {method} | {name} | {here[0]['rows']} | " + " | ".join(cells) + " |")
            for size in found:
                ratios[size].append(found[size] / found[16, 16])
        means = [f"{np.exp(np.log(r).mean()):.2f}" if (r := ratios[s]) else "" for s in sizes]
        lines.append(f"| {method} | ratio to 16 x 16 | | " + " | ".join(means) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Starts a process for each depth, prints the table, writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=pathlib.Path, help="a folder of .npz; without it, scikit-learn's data")
    parser.add_argument("--only", type=lambda s: s.split(","), help="names of problems")
    parser.add_argument("--methods", type=lambda s: s.split(","), default=["paper", "oblique"])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/leaves"))
    parser.add_argument("--levels", type=int, help="learn trees that deep in this process: what this command starts")
    args = parser.parse_args(argv)
    if args.levels:
        return learn(args)
    records: list[dict[str, Any]] = []
    for levels in dict.fromkeys(levels for levels, _ in SIZES):
        command = [sys.executable, "-m", "benchmarks.leaves", *(sys.argv[1:] if argv is None else argv)]
        out = subprocess.run([*command, "--levels", str(levels)], check=True, stdout=subprocess.PIPE, text=True).stdout
        records += map(json.loads, out.splitlines())
    text = markdown(records)
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "leaves.json").write_text(json.dumps(records, indent=1))
    (args.output / "leaves.md").write_text(text)
    return None


if __name__ == "__main__":
    main()
