"""Alternatives to look-ups in MiniLM: layers in int8, and distilled dense FFNs with fewer hidden units."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from examples.minilm import Layer, MiniLM
from jax_maddness.nn.layers import int8_low_rank as products
from jax_maddness.nn.planning import measure

Batch = tuple[np.ndarray, np.ndarray]
"""Tokens [batch, tokens], and the vectors [batch, width] that the exact model computes from them."""


class Int8(nnx.Module):
    """A layer by XLA's int8 dot, with a step per row, computed at run time, and one per output."""

    def __init__(self, layer: nnx.Linear):
        self.w, self.step = (nnx.data(jnp.asarray(a)) for a in products.to_int8(np.asarray(layer.kernel[...])))
        self.bias = nnx.data(layer.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        return products.int8_dynamic(x, self.w, self.step) + self.bias


def in_int8(model: MiniLM, attention: bool = True) -> MiniLM:
    """Returns a copy with every product with weights in int8, or only those of the FFNs."""
    copy = nnx.clone(model)
    for layer in copy.layers:
        layer.up, layer.down = Int8(layer.up), Int8(layer.down)
        if attention:
            layer.attention.qkv, layer.attention.out = Int8(layer.attention.qkv), Int8(layer.attention.out)
    return copy


def ffn(layer: Layer, x: jax.Array) -> jax.Array:
    """Computes the two dense layers of `layer` for `x [..., width]`."""
    return layer.down(jax.nn.gelu(layer.up(x), approximate=False))


def compiled(function: Callable[[nnx.Module, jax.Array], jax.Array], module: nnx.Module, x: jax.Array) -> Callable:
    """Returns `function(module, x)` as one compiled function of arrays like `x`."""
    graph, state = nnx.split(module)
    run = jax.jit(lambda state, x: function(nnx.merge(graph, state), x)).lower(state, x).compile()
    return lambda x: run(state, x)


def dense(width: int, hidden: int, int8: bool) -> nnx.Module:
    """Returns an FFN with random weights, of which only the time matters."""
    rngs = nnx.Rngs(0)
    made = nnx.Dict(up=nnx.Linear(width, hidden, rngs=rngs), down=nnx.Linear(hidden, width, rngs=rngs))
    return nnx.Dict(up=Int8(made.up), down=Int8(made.down)) if int8 else made


def hidden_in_time(layer: Layer, rows: int, width: int, candidates: Sequence[int], int8: bool) -> int:
    """Returns the greatest of `candidates` hidden units with which a dense FFN takes no longer than `layer`."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((rows, width), np.float32))
    modules = [layer, *(dense(width, hidden, int8) for hidden in candidates)]
    calls = [functools.partial(compiled(ffn, module, x), x) for module in modules]
    (limit, _), *times = measure.interleaved(calls, seconds=2.0)
    return max((h for h, (ms, _) in zip(candidates, times, strict=True) if ms <= limit), default=min(candidates))


def pruned(model: MiniLM, activations: Sequence[np.ndarray], hidden: int) -> MiniLM:
    """Returns a copy whose FFNs keep their `hidden` most important units, with `down` fitted to the former outputs.

    Args:
      model: the exact model.
      activations: for each layer, inputs of `down`, float32 [rows, hidden units].
      hidden: number of units to keep: those of greatest root mean square times the norm of their row in `down`.
    """
    copy = nnx.clone(model)
    for layer, rows in zip(copy.layers, activations, strict=True):
        kernel = np.asarray(layer.down.kernel[...])
        importance = np.sqrt(np.square(rows).mean(0)) * np.linalg.norm(kernel, axis=1)
        kept = np.sort(np.argsort(-importance)[:hidden])
        a, wanted = rows[:, kept], rows @ kernel
        mean, wanted_mean = a.mean(0), wanted.mean(0)
        gram = (a - mean).T @ (a - mean)
        gram += 1e-4 * np.trace(gram) / len(kept) * np.eye(len(kept), dtype=np.float32)
        fitted = np.linalg.solve(gram, (a - mean).T @ (wanted - wanted_mean))
        bias = np.asarray(layer.down.bias[...]) + wanted_mean - mean @ fitted
        layer.up = _linear(np.asarray(layer.up.kernel[...])[:, kept], np.asarray(layer.up.bias[...])[kept])
        layer.down = _linear(fitted, bias)
    return copy


def _linear(kernel: np.ndarray, bias: np.ndarray) -> nnx.Linear:
    made = nnx.Linear(*kernel.shape, rngs=nnx.Rngs(0))
    made.kernel[...], made.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
    return made


def distance(vectors: jax.Array, _: object, batch: Batch) -> jax.Array:
    """Returns the loss of distillation: the mean squared distance to the exact vectors, 2 (1 - cosine)."""
    return jnp.mean(jnp.sum(jnp.square(vectors - batch[1]), -1))


def distilled(model: MiniLM, batches: Sequence[Batch], steps: int, rate: float, words: str) -> MiniLM:
    """Returns a copy, all of whose parameters are trained on `distance` with Adam; `words` label the progress bar."""
    copy = nnx.clone(model)
    optimizer = nnx.Optimizer(copy, optax.adam(optax.cosine_decay_schedule(rate, steps)), wrt=nnx.Param)

    @nnx.jit
    def step(model: MiniLM, optimizer: nnx.Optimizer, batch: Batch) -> None:
        optimizer.update(model, nnx.grad(lambda model: distance(model(batch[0]), None, batch))(model))

    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(batches)) for _ in range(-(-steps // len(batches)))])[:steps]
    for i in tqdm(order, desc=words, unit=" steps"):
        step(copy, optimizer, batches[i])
    return copy
