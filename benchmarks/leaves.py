"""NMSE of the same learners with trees of depth 5 and 6, which have 32 and 64 leaves, in place of 4; no kernels.

    python -m benchmarks.leaves [--problems FOLDER] [--only a,b] [--methods paper,oblique] [--output FOLDER]

The depth is a constant of `core/trees/base.py`, from which everything else is derived. Each depth is learned in a
process of its own, which changes that constant. All else is as for depth 4, 8-bit tables included, in pure JAX.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
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
"""Depth and number of codebooks. 16 codebooks of 64 leaves take as many bytes as 64 codebooks of 16 leaves, and as many
look-ups as 16; 12 codebooks take three quarters of both."""


class _Deeper(importlib.machinery.SourceFileLoader):
    """Loads `core/trees/base.py` with another depth of trees."""

    levels = 0

    def get_code(self, fullname: str) -> types.CodeType:
        """Compiles the source, which states the depth in one line."""
        source, depth = self.get_data(self.path).decode(), "\nLEVELS = 4\n"
        assert depth in source, "core/trees/base.py states its depth differently"
        return compile(source.replace(depth, f"\nLEVELS = {self.levels}\n"), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `core/trees/base.py`, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns the spec of the module with the loader that changes it."""
        if fullname != "jax_maddness.core.trees.base":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Deeper(fullname, spec.origin)
        return spec


def with_depth(levels: int) -> None:
    """Sets the depth of trees in this process, before anything imports the package; kernels support depth 4 only."""
    os.environ["JAX_MADDNESS_BACKEND"] = "jax"
    _Deeper.levels = levels
    sys.meta_path.insert(0, _Finder())


def learn(args: argparse.Namespace) -> None:
    """Prints a record for each problem, method and number of codebooks of one depth."""
    with_depth(args.levels)
    import jax_maddness
    from benchmarks.approximation import Approximation
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
                error = nmse(Approximation(jax_maddness.amm, op), problem)
                print(json.dumps(record | {"rows": len(problem.x_train), "nmse": error}), flush=True)


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Returns a table with a row per method and problem, and the geometric means of the ratios to 16 x 16."""
    sizes = [(2**levels, c) for levels, c in SIZES]
    lines = ["| method | problem | rows | " + " | ".join(f"{k} x {c}" for k, c in sizes) + " |"]
    lines.append("|---" * (3 + len(sizes)) + "|")
    for method in dict.fromkeys(r["method"] for r in records):
        ratios: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
        for name in dict.fromkeys(r["problem"] for r in records):
            of_problem = [r for r in records if (r["method"], r["problem"]) == (method, name)]
            errors = {(r["leaves"], r["codebooks"]): r["nmse"] for r in of_problem}
            cells = [f"{errors[s]:.4f}" if s in errors else "" for s in sizes]
            lines.append(f"| {method} | {name} | {of_problem[0]['rows']} | " + " | ".join(cells) + " |")
            for size in errors:
                ratios[size].append(errors[size] / errors[16, 16])
        means = [f"{np.exp(np.log(r).mean()):.2f}" if (r := ratios[s]) else "" for s in sizes]
        lines.append(f"| {method} | ratio to 16 x 16 | | " + " | ".join(means) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Starts a process for each depth; prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=pathlib.Path, help="a folder of .npz; without it, scikit-learn's data")
    parser.add_argument("--only", type=lambda s: s.split(","), help="names of problems")
    parser.add_argument("--methods", type=lambda s: s.split(","), default=["paper", "oblique"])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/leaves"))
    parser.add_argument("--levels", type=int, help="depth of the trees of a process that the command starts")
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
