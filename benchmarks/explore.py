"""Error and time of every size of op on real layers, for the page of docs/ on which a reader moves them.

    python -m benchmarks.explore [--layers FOLDER] [--only a,b] [--output docs/_static/explore.json]

The folder is what `python -m benchmarks.layers.harvest` writes. NMSE is that of test rows; times are medians of
interleaved rounds of jitted calls with one thread, whose rows change from call to call, divided by the time of XLA's
f32 product in the same round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax_maddness
from benchmarks import files, machine
from benchmarks.layers.contenders import Contender, jitted, rivals
from benchmarks.layers.measure import products
from benchmarks.layers.sample import Layer, layers_in
from benchmarks.packaged import Matrices

CODEBOOKS = RANKS = (0, 4, 8, 16, 32, 64)
"""The positions of the two sliders of the page."""
LAYERS = ("crepe_tiny conv1", "minilm lin.4_attention_self_query", "ppocr_rec 857_MatMul")
"""A convolution of a pitch tracker, a projection of a sentence encoder, the head of a text recogniser."""


def sizes(layer: Matrices) -> Iterator[Contender]:
    """Yields an op of every number of codebooks and rank, named "C, rank"; and the whole product in int8."""
    for codebooks in CODEBOOKS:
        for rank in RANKS:
            if codebooks + rank > 0 and rank <= min(layer.w.shape):
                yield _op(layer, f"{codebooks}, {rank}", codebooks, rank=rank)
    yield dataclasses.replace(_op(layer, "int8", 0, method="int8"), family="our int8")


def _op(layer: Matrices, name: str, codebooks: int, **options: Any) -> Contender:
    config = dataclasses.replace(jax_maddness.FitConfig("paper"), **options)
    op = jax_maddness.fit(layer.x_train, layer.w, layer.b, num_codebooks=codebooks, config=config, progress=False)
    return jitted(name, "size", jax_maddness.amm, op)


def record(layer: Layer, seconds: float) -> dict[str, Any]:
    """Returns what the page shows of a layer."""
    matrices = layer.load()
    exact, int8 = [c for c in rivals(matrices, 1) if c.family in ("XLA f32", "XLA int8")]
    measured = products(layer, matrices, [exact, int8, *sizes(matrices)], seconds)
    figures = {p["name"]: [float(f"{p['nmse']:.3g}"), float(f"{p['time']:.3g}")] for p in measured}
    facts = {"name": layer.name, "domain": layer.domain, "rows": layer.rows}
    facts |= {"features": layer.features, "outputs": layer.outputs, "exact_ms": float(f"{measured[0]['ms']:.3g}")}
    return facts | {"figures": figures}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=pathlib.Path, default=pathlib.Path("build/layers/harvest"))
    parser.add_argument("--only", type=lambda s: s.split(","), default=LAYERS, help="names of layers")
    parser.add_argument("--seconds", type=float, default=20, help="of timing, for each layer")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("docs/_static/explore.json"))
    args = parser.parse_args(argv)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before XLA starts its threads
    jax_maddness.retain_freed_memory()
    layers = [layer for layer in layers_in(args.layers) if layer.name in args.only]
    if not layers:
        sys.exit(f"{args.layers} has none of these layers: {', '.join(args.only)}.")
    records = []
    for layer in layers:
        print(f"{layer.name}: {layer.rows} x {layer.features} x {layer.outputs}", file=sys.stderr, flush=True)
        records.append(record(layer, args.seconds))
    facts = machine.facts()
    contents = {"cpu": facts["cpu"], "date": facts["date"][:10], "jax": facts["versions"]["jax"]}
    contents |= {"codebooks": CODEBOOKS, "ranks": RANKS, "layers": records}
    files.write_text(args.output, json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
