"""NMSE and time of products on real layers of pretrained models: XLA's, torch's, and ours.

    python -m benchmarks.layers.measure [--layers FOLDER] [--number 39] [--method paper] [--only a,b] [--threads 1]

The folder is what `python -m benchmarks.layers.harvest` writes, or any folder of `.npz` files with `x_train`, `x_test`,
`w` and optionally `b`. A layer is measured at the number of rows of one inference, which are test rows. NMSE = |Y -
Y_hat|^2 / |Y - mean_train(Y)|^2 on test rows. Times are medians of interleaved rounds of jitted calls, whose rows
change from call to call, with freed memory retained (`retain_freed_memory`). The command writes layers.json, layers.md
and layers.png; layers that layers.json has are measured again only with `--again`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks import contenders, files, machine, measured, timing
from benchmarks.layers import picture, report
from benchmarks.layers.contenders import OURS, Contender, ours, rivals
from benchmarks.layers.sample import Layer, layers_in, stratified
from benchmarks.packaged import Matrices

COPIES = 4
"""Number of different blocks of rows that the calls of a contender take in turn."""


def measure(layer: Layer, method: str, seconds: float, threads: int) -> list[dict[str, Any]]:
    """Returns a record of every product of a layer."""
    matrices = layer.load()
    facts = {"layer": layer.name, "model": layer.model, "domain": layer.domain, "method": method, "rows": layer.rows}
    facts |= {"features": layer.features, "outputs": layer.outputs}
    measured = products(layer, matrices, [*rivals(matrices, threads), *ours(matrices, method)], seconds)
    return [facts | product for product in measured]


def products(layer: Layer, matrices: Matrices, entrants: list[Contender], seconds: float) -> list[dict[str, Any]]:
    """Returns error and time of every product; `time` is in units of that of the first."""
    exact = matrices.x_test.astype(np.float64) @ matrices.w + matrices.b
    center = matrices.x_train.mean(0, dtype=np.float64) @ matrices.w + matrices.b
    spread = np.square(exact - center).sum()
    x_test, shape = jnp.asarray(matrices.x_test), (layer.rows, layer.features)
    errors = [np.square(np.asarray(c.prepare(x_test)()) - exact).sum() / spread for c in entrants]
    blocks = [jnp.asarray(np.resize(np.roll(matrices.x_test, -97 * i, axis=0), shape)) for i in range(COPIES)]
    figures = timing.interleaved([_in_turn(c, blocks) for c in entrants], seconds=seconds, rounds=(5, 25))
    return [
        {"name": c.name, "family": c.family, "ours": c.family in OURS, "nmse": float(error)}
        | {"ms": statistics.median(own), "time": _median_ratio(own, figures[0])}
        for c, error, own in zip(entrants, errors, figures, strict=True)
    ]


def _in_turn(contender: Contender, blocks: Sequence[jax.Array]) -> timing.Timed:
    """Returns a call of `contender` on one block after the other."""
    calls = itertools.cycle([contender.prepare(block) for block in blocks])
    return contenders.Contender(contender.name, contender.family, lambda: next(calls)())


def _median_ratio(own: Sequence[float], reference: Sequence[float]) -> float:
    """Returns the median over rounds of the ratio of two times."""
    return statistics.median(a / b for a, b in zip(own, reference, strict=True))


def write(folder: pathlib.Path, facts: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
    """Writes records, table and picture."""
    folder.mkdir(parents=True, exist_ok=True)
    text = machine.headline(facts, None) + "\n" + report.markdown(records)
    files.write_text(folder / "layers.json", json.dumps({"facts": facts, "records": records}, indent=1))
    files.write_text(folder / "layers.md", text)
    picture.draw(folder / "layers.png", records, f"{facts['cpu']}, {facts['date'][:10]}")


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=pathlib.Path, default=pathlib.Path("build/layers/harvest"))
    parser.add_argument("--number", type=int, default=39, help="of layers, sampled from all models")
    parser.add_argument("--only", type=lambda s: s.split(","), help="parts of names of layers")
    parser.add_argument("--method", default="paper", help="of learning codes; the others are closer and take longer")
    parser.add_argument("--threads", type=int, default=1, help="processors that the process may use")
    parser.add_argument("--seconds", type=float, default=6, help="of timing, for each layer")
    parser.add_argument("--again", action="store_true", help="measure layers again that layers.json has")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/layers"))
    measured.add_option(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the table."""
    args, command = parsed(argv), measured.command("layers.measure", argv)
    processors = sorted(os.sched_getaffinity(0))[-args.threads :]
    os.sched_setaffinity(0, processors)  # before XLA starts its threads
    jax_maddness.retain_freed_memory()
    layers = [la for la in layers_in(args.layers) if args.only is None or any(part in la.name for part in args.only)]
    layers = stratified(layers, args.number)
    path = args.output / "layers.json"
    records: list[dict[str, Any]] = []
    if path.exists() and not args.again:
        records = [r for r in json.loads(path.read_text())["records"] if r["method"] == args.method]
    done = {r["layer"] for r in records}
    facts, before, start = machine.facts(), machine.work(), time.monotonic()
    todo = [layer for layer in layers if layer.name not in done]
    for i, layer in enumerate(todo):
        shape = f"{layer.rows} x {layer.features} x {layer.outputs}"
        elapsed = time.monotonic() - start
        print(f"[{i + 1}/{len(todo)}, {elapsed:.0f} s] {layer.name}: {shape}", file=sys.stderr, flush=True)
        records += measure(layer, args.method, args.seconds, len(processors))
        facts["others"] = machine.others(before, machine.work())
        write(args.output, facts, records)
    print(report.markdown(records))
    if args.save:
        measured.write("layers", command, facts, records, args.threads)


if __name__ == "__main__":
    main()
