"""NMSE on test rows and time relative to XLA's f32 product, of codes, int8 factors, both, and whole int8 products.

    taskset -c 1 python -m benchmarks.factors [--problems FOLDER] [--only a,b] [--method paper] [--output FOLDER]

XLA's int8 product and its low-rank product in f32 are measured as the alternatives. Times are medians of interleaved
rounds on `ROWS` rows, with freed memory retained (`retain_freed_memory`), relative to XLA's f32 product in that run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks import timing
from benchmarks.contenders import run
from benchmarks.packaged import Matrices, packaged
from jax_maddness.learn.tables.factors import principal

SIZES: tuple[tuple[int, dict[str, Any]], ...] = (
    (16, {}),
    (32, {}),
    (16, {"rank": 16}),
    (0, {"rank": 16}),
    (0, {"rank": 32}),
    (0, {"rank": 64}),
    (0, {"rank": 128}),
    (0, {"method": "int8"}),
)
"""Number of codebooks, and the options that differ from the method's."""
LOW_RANKS = (16, 64)
"""Ranks of XLA's product in f32."""
ROWS = 4096
"""Number of rows that are timed."""


@dataclasses.dataclass(frozen=True)
class Timed:
    """A contender of `timing.interleaved`."""

    call: Callable[[], Any]
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def measure(problem: Matrices, method: str, seconds: float) -> list[dict[str, Any]]:
    """Returns a record for each of `SIZES` and `LOW_RANKS` that the problem allows, and for XLA's products."""
    x = jnp.asarray(np.resize(problem.x_test, (ROWS, problem.x_test.shape[1])))
    w, b = jnp.asarray(problem.w), jnp.asarray(problem.b)
    exact = problem.x_test @ problem.w + problem.b
    spread = np.square(exact - (problem.x_train.mean(0, dtype=np.float64) @ problem.w + problem.b)).sum()
    names, errors, calls = ["XLA f32"], [0.0], [run(lambda x, w, b: x @ w + b, x, w, b)]

    def add(name: str, f: Callable[..., jax.Array], *operands: Any) -> None:
        y = np.asarray(jax.jit(f)(jnp.asarray(problem.x_test), *operands), np.float64)
        names.append(name)
        errors.append(float(np.square(y - exact).sum() / spread))
        calls.append(run(f, x, *operands))

    most = min(problem.w.shape)
    for codebooks, term in (s for s in SIZES if s[0] <= len(problem.w) and s[1].get("rank", 0) <= most):
        print(f"{problem.name}: {named(codebooks, term)}", file=sys.stderr, flush=True)
        config = dataclasses.replace(jax_maddness.FitConfig(method), **term)
        op = jax_maddness.fit(problem.x_train, problem.w, problem.b, num_codebooks=codebooks, config=config)
        add(named(codebooks, term), jax_maddness.amm, op)
    centered = problem.x_train - problem.x_train.mean(0)
    for rank in (r for r in LOW_RANKS if r <= most):
        v = principal(centered, problem.w.astype(np.float64), rank).astype(np.float32)
        offset = problem.x_train.mean(0) @ (problem.w - problem.w @ v @ v.T) + problem.b
        add(f"XLA low rank {rank}", lambda x, down, up, b: (x @ down) @ up + b, problem.w @ v, v.T, offset)
    add("XLA int8", int8_dot, *int8_operands(problem.w), b)
    figures = timing.interleaved([Timed(call) for call in calls], seconds=seconds, rounds=(5, 25))
    ratios = [statistics.median(a / b for a, b in zip(own, figures[0], strict=True)) for own in figures]
    shape = {"problem": problem.name, "features": w.shape[0], "outputs": w.shape[1], "method": method}
    results = zip(names, errors, figures, ratios, strict=True)
    return [{**shape, "name": n, "nmse": e, "ms": statistics.median(t), "ratio": r} for n, e, t, r in results]


def int8_operands(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds weights to int8 with a scale per output."""
    scale = np.abs(w).max(0) / 127
    return np.rint(w / scale).astype(np.int8), scale.astype(np.float32)


def int8_dot(x: jax.Array, w: jax.Array, scale: jax.Array, b: jax.Array) -> jax.Array:
    """Computes `x @ w + b` by XLA's int8 product, with a scale per row."""
    by_row = jnp.maximum(jnp.abs(x).max(-1, keepdims=True), 1e-30) / 127
    q = jnp.rint(x / by_row).astype(jnp.int8)
    return jnp.matmul(q, w, preferred_element_type=jnp.int32).astype(jnp.float32) * by_row * scale + b


def named(codebooks: int, term: dict[str, Any]) -> str:
    """Returns the name of a size in the table.

    Example:
      >>> named(16, {"rank": 4}), named(32, {}), named(0, {"method": "int8"}), named(0, {"rank": 16})
      ('C = 16, rank 4', 'C = 32', 'int8', 'rank 16')
    """
    parts = [f"C = {codebooks}"] if codebooks else []
    return ", ".join([*parts, *(str(size) if name == "method" else f"{name} {size}" for name, size in term.items())])


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Returns a row per size and a column per problem: NMSE, and the time in percent of XLA's."""
    problems = {r["problem"]: f"{r['problem']} {r['features']} x {r['outputs']}" for r in records}
    lines = ["| | " + " | ".join(problems.values()) + " |", "|---" * (1 + len(problems)) + "|"]
    for name in dict.fromkeys(r["name"] for r in records):
        cells = {r["problem"]: f"{r['nmse']:.4f}, {100 * r['ratio']:.0f} %" for r in records if r["name"] == name}
        lines.append(f"| {name} | " + " | ".join(cells.get(p, "") for p in problems) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=pathlib.Path, help="a folder of .npz; without it, scikit-learn's data")
    parser.add_argument("--only", type=lambda s: s.split(","), help="names of problems")
    parser.add_argument("--method", default="paper")
    parser.add_argument("--seconds", type=float, default=6, help="of timing, for each problem")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/factors"))
    args = parser.parse_args(argv)
    jax_maddness.retain_freed_memory()
    problems: Iterable[Matrices] = packaged()
    if args.problems:
        problems = map(Matrices.load, sorted(args.problems.glob("*.npz")))
    records: list[dict[str, Any]] = []
    for problem in (p for p in problems if args.only is None or p.name in args.only):
        records += measure(problem, args.method, args.seconds)
    text = markdown(records)
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "factors.json").write_text(json.dumps(records, indent=1))
    (args.output / "factors.md").write_text(text)


if __name__ == "__main__":
    main()
