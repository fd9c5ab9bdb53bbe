"""Time of a sentence encoder, MiniLM, with its products replaced, and with activations and residuals in their kernels.

    taskset -c 1 python -m benchmarks.fused_model [--save]   # one thread; a minute; needs make .venv/.texts

A batch has 64 rows of 16 random tokens; all models are jitted, in turns, of batches that change from call to call. The
cosine to the vectors of the exact model is that of random tokens: it says that `fuse` changes nothing, and not how good
the products are on sentences (`make example-minilm`).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

import jax_maddness
from benchmarks import measured
from benchmarks.orientation import Call
from benchmarks.records import Record
from benchmarks.timing import interleaved, quartiles
from examples import minilm
from jax_maddness import FitConfig, Rule

SENTENCES, TOKENS, BATCHES = 64, 16, 6
PRODUCTS = {"int8": FitConfig("int8"), "factors, rank 64": FitConfig("paper", rank=64)}


def batches() -> list[np.ndarray]:
    """Returns random tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(1000, 30_000, (SENTENCES, TOKENS), np.int32) for _ in range(BATCHES)]


def pure(model: nnx.Module) -> tuple[Callable[..., Any], Any]:
    """Returns a model as a function of its state and a batch, and the state."""
    graph, state = nnx.split(model)
    return lambda state, batch: nnx.merge(graph, state)(batch), state


def measure(seconds: float) -> list[Record]:
    """Returns a record for the exact model, and two for each product."""
    model, tokens = minilm.load(), batches()
    functions = {"exact, XLA float32": pure(model)}
    for name, config in PRODUCTS.items():
        fast = jax_maddness.replace(model, [Rule(".*", num_codebooks=0, config=config)], tokens[:4])
        function, state = pure(fast)
        functions[name] = (function, state)
        functions[f"{name}, fused"] = (jax_maddness.fuse(function), state)
    compiled = {name: (jax.jit(function), state) for name, (function, state) in functions.items()}

    def call(function: Callable[..., Any], state: Any) -> Call:
        turns = itertools.cycle(tokens)
        return Call(lambda: jax.block_until_ready(function(state, next(turns))))

    times = interleaved([call(*one) for one in compiled.values()], seconds=seconds, rounds=(5, 40))
    vectors = {name: np.asarray(function(state, tokens[-1])) for name, (function, state) in compiled.items()}
    exact = vectors["exact, XLA float32"]
    return [
        {"model": name, "ms": quartiles(t)[1], "cosine": float((vectors[name] * exact).sum(-1).mean())}
        for name, t in zip(compiled, times, strict=True)
    ]


def table(records: Sequence[Record]) -> str:
    """Returns a row for each model."""
    exact = records[0]["ms"]
    lines = ["| products of the model | ms a batch | times as fast | cosine |", "|---|---|---|---|"]
    lines += [f"| {r['model']} | {r['ms']:.1f} | {exact / r['ms']:.2f}x | {r['cosine']:.4f} |" for r in records]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40)
    measured.add_option(parser)
    args = parser.parse_args(argv)
    run = measured.Run("fused_model", argv)
    records = measure(args.seconds)
    run.finish(records, table(records), save=args.save)


if __name__ == "__main__":
    main()
