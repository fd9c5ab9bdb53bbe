"""Effect of `prune_unused_outputs` on 1024 -> 4096 -> relu -> 1000 with look-ups in the second layer or in both.

    taskset -c 1 python -m benchmarks.prune [--rows 512] [--codebooks 16,64] [--method paper] [--seconds 20]

Weights are random; rows lie near a plane of 32 dimensions. Times are medians of interleaved rounds in one process, with
freed memory retained (`retain_freed_memory`). NMSE is that of the outputs on the timed rows, which are held out. int8
is measured as the alternative.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_maddness
from benchmarks import machine, timing
from jax_maddness import FitConfig, Rule
from jax_maddness.nn.layers.int8_low_rank import int8_dynamic, to_int8

WIDTHS = (1024, 4096, 1000)
LEARN_FROM = 4096
"""Number of training rows."""


@dataclasses.dataclass(frozen=True)
class Timed:
    """A contender of `timing.interleaved`."""

    call: Callable[[], Any]
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def perceptron(widths: Sequence[int]) -> nnx.Sequential:
    """Returns a model of two layers with random weights and biases."""
    rngs = nnx.Rngs(0, params=1)
    first, second = (
        nnx.Linear(n, m, bias_init=nnx.initializers.normal(0.1), rngs=rngs) for n, m in itertools.pairwise(widths)
    )
    return nnx.Sequential(first, nnx.relu, second)


def in_int8(model: nnx.Sequential) -> Callable[[jax.Array], jax.Array]:
    """Returns the model with both layers as int8 products of XLA."""
    arrays = [nnx.to_pure_dict(nnx.state(layer)) for layer in model.layers[::2]]
    parts = [(*to_int8(np.asarray(layer["kernel"])), layer["bias"]) for layer in arrays]

    def run(x: jax.Array) -> jax.Array:
        hidden, last = parts
        x = nnx.relu(int8_dynamic(x, *hidden[:2]) + hidden[2])
        return int8_dynamic(x, *last[:2]) + last[2]

    return run


def contenders(
    widths: Sequence[int], rows: int, codebooks: Sequence[int], method: str
) -> tuple[dict[str, Any], jax.Array]:
    """Returns models by name and the rows to run them on; prints the reports of pruning."""
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((32, widths[0])) / 32**0.5
    x = rng.standard_normal((LEARN_FROM + rows, 32)) @ plane
    x = (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
    model = perceptron(widths)
    models: dict[str, Any] = {"exact f32": model, "int8, dynamic": in_int8(model)}
    batches = [jnp.asarray(x[:LEARN_FROM])]
    captured = jax_maddness.capture(model, batches, Rule(".*"), max_rows=LEARN_FROM, progress=False)
    for c in codebooks:
        for pattern, layers in (("layers/2", "second layer"), (".*", "both layers")):
            rule = Rule(pattern, num_codebooks=c, config=FitConfig(method))
            fast = jax_maddness.replace(model, rule, batches, captured=captured, progress=False)
            models[f"{layers}, C = {c}"] = fast
            models[f"{layers}, C = {c}, pruned"], report = jax_maddness.prune_unused_outputs(
                fast, batches[0], return_report=True
            )
            print(f"{layers}, C = {c}:", report, sep="\n", end="\n\n")
    return models, jnp.asarray(x[LEARN_FROM:])


def table(models: dict[str, Any], x: jax.Array, seconds: float) -> str:
    """Returns the table of times, measured in turn, and errors."""
    timed = [Timed(_compiled(model, x)) for model in models.values()]
    figures = timing.interleaved(timed, seconds=seconds, rounds=(5, 200))
    exact = np.asarray(models["exact f32"](x))
    times = [statistics.median(milliseconds) for milliseconds in figures]
    lines = [f"| {len(x)} rows | ms | times as fast as exact | NMSE |", "|---|---|---|---|"]
    for (name, model), time in zip(models.items(), times, strict=True):
        error = float(np.mean((np.asarray(model(x)) - exact) ** 2) / np.var(exact))
        lines.append(f"| {name} | {time:.2f} | {times[0] / time:.2f} | {error:.4f} |")
    return "\n".join(lines)


def _compiled(model: Any, x: jax.Array) -> Callable[[], Any]:
    if not isinstance(model, nnx.Module):
        run = jax.jit(model)
        return lambda: jax.block_until_ready(run(x))
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    return lambda: jax.block_until_ready(compiled(state, x))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--codebooks", default="16,64")
    parser.add_argument("--method", default="paper", choices=["paper", "axis"])
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)))
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args(arguments)
    jax_maddness.retain_freed_memory()
    facts = machine.facts()
    print(facts["cpu"], facts["date"], f"{facts['processors']} processors", sep=", ", end="\n\n")
    widths, codebooks = (list(map(int, text.split(","))) for text in (options.widths, options.codebooks))
    print(table(*contenders(widths, options.rows, codebooks, options.method), options.seconds))


if __name__ == "__main__":
    main()
