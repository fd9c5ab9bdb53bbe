"""A small Flax classifier of real digits: exact, in int8 and by look-ups, all under jit (`make demo`).

Trains a two-hidden-layer nnx model on scikit-learn's handwritten digits, learns an op for each hidden layer from
training activations, and prints accuracy, error, time and size side by side. Writes a picture of accuracy against
time. Run `python examples/digits.py --help` for its options.
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
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jax_maddness

WIDTH = 1024
METHOD = jax_maddness.FitConfig("paper")  # the fastest to learn; "auto", the default, has smaller errors
CODEBOOKS = ((16, 64), (32, 128), (64, 256))  # of the two hidden layers, in each model


class Classifier(nnx.Module):
    """A classifier with two hidden layers: 64 pixels -> WIDTH -> WIDTH -> 10 digits."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.List([nnx.Linear(64, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)])
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.head(x)


class LookUp(nnx.Module):
    """The replacement of a Linear layer by look-ups: one call of `amm`."""

    def __init__(self, linear: nnx.Linear, x_train: jax.Array, num_codebooks: int):
        w, b = linear.kernel[...], linear.bias[...]
        self.op = nnx.data(jax_maddness.fit(x_train, w, bias=b, num_codebooks=num_codebooks, config=METHOD))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax_maddness.amm(x, self.op)


class Int8(nnx.Module):
    """The alternative to look-ups: XLA's int8 dot, with a scale per output and per row, the latter at run time."""

    def __init__(self, linear: nnx.Linear):
        w = linear.kernel[...]
        scale = jnp.max(jnp.abs(w), axis=0) / 127
        self.w = nnx.data(jnp.round(w / scale).astype(jnp.int8))
        self.scale, self.bias = nnx.data(scale), nnx.data(linear.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        step = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-12) / 127
        dot = jnp.matmul(jnp.round(x / step).astype(jnp.int8), self.w, preferred_element_type=jnp.int32)
        return dot * (step * self.scale) + self.bias


def load_data() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns pixels in [0, 1] and labels. Training images are also shifted by a pixel in four directions."""
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(images / 16, labels, test_size=0.3, stratify=labels, random_state=0)
    square = x.reshape(-1, 8, 8)
    shifts = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    moved = [np.pad(square, ((0, 0), (1, 1), (1, 1)))[:, 1 + i : 9 + i, 1 + j : 9 + j] for i, j in shifts]
    x_train = np.concatenate(moved).reshape(-1, 64)
    return jnp.float32(x_train), jnp.tile(jnp.int32(y), len(shifts)), jnp.float32(x_test), jnp.int32(y_test)


def train(x: jax.Array, y: jax.Array, steps: int = 200) -> Classifier:
    """Trains a classifier with Adam on the cross-entropy for a few seconds."""
    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(optax.cosine_decay_schedule(1e-3, steps)), wrt=nnx.Param)

    @nnx.jit
    def step(model: Classifier, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> None:
        def loss(model: Classifier) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(0, len(x), 256)
        step(model, optimizer, x[rows], y[rows])
    return model


def with_hidden(model: Classifier, hidden: list[nnx.Module]) -> Classifier:
    """Returns a copy of `model` with other hidden layers; the original is unchanged."""
    copy = nnx.clone(model)
    copy.hidden = nnx.List(hidden)
    return copy


def compiled(model: Classifier, x: jax.Array) -> Callable[[], jax.Array]:
    """Returns the whole forward pass on `x` as one compiled function without arguments."""
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(state, x).compile()
    return lambda: run(state, x)


def median_milliseconds(calls: list[Callable[[], jax.Array]], rounds: int) -> list[float]:
    """Returns medians over rounds in which every function is called in turn, so that drift affects all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call().block_until_ready()
            own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own[len(own) // 5 :]) for own in times]


def nmse(actual: jax.Array, exact: jax.Array, mean: jax.Array) -> float:
    """Returns the normalized mean squared error about the mean of the training outputs."""
    return float(jnp.sum((actual - exact) ** 2) / jnp.sum((exact - mean) ** 2))


def nbytes(model: Classifier) -> int:
    """Returns the bytes of the hidden layers."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(nnx.state(model.hidden)))


def variants(model: Classifier, x_train: jax.Array) -> tuple[dict[str, Classifier], list[jax.Array]]:
    """Returns the models to compare, and the inputs of each hidden layer on the training rows."""
    inputs = [x_train, nnx.relu(model.hidden[0](x_train))]
    models = {"exact f32": model, "int8 dynamic": with_hidden(model, [Int8(layer) for layer in model.hidden])}
    for codebooks in CODEBOOKS:
        layers = [LookUp(*layer) for layer in zip(model.hidden, inputs, codebooks, strict=True)]
        models["amm C = {}, {}".format(*codebooks)] = with_hidden(model, layers)
    return models, inputs


def measure(models: dict[str, Classifier], inputs: list[jax.Array], x_test, y_test, batch: int, rounds: int) -> list:
    """Returns a row for each model: name, accuracy, NMSE of each layer, milliseconds, bytes."""
    exact = models["exact f32"]
    test_inputs = [x_test, nnx.relu(exact.hidden[0](x_test))]
    rows = jnp.resize(x_test, (batch, x_test.shape[1]))
    times = median_milliseconds([compiled(m, rows) for m in models.values()], rounds)
    table = []
    for (name, model), milliseconds in zip(models.items(), times, strict=True):
        accuracy = float(jnp.mean(jnp.argmax(compiled(model, x_test)(), -1) == y_test))
        errors = [
            nmse(layer(x), linear(x), linear(x_train).mean(0))
            for layer, linear, x, x_train in zip(model.hidden, exact.hidden, test_inputs, inputs, strict=True)
        ]
        table.append((name, accuracy, errors, milliseconds, nbytes(model)))
    return table


def print_table(table: list, batch: int) -> None:
    """Prints the table as Markdown."""
    f32 = table[0][3]
    print(
        f"| hidden layers | test accuracy | NMSE 64 -> {WIDTH} | NMSE {WIDTH} -> {WIDTH} "
        f"| ms per batch of {batch} | speed-up | bytes of weights |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, accuracy, errors, milliseconds, size in table:
        print(
            f"| {name} | {accuracy:.4f} | {errors[0]:.2g} | {errors[1]:.2g} "
            f"| {milliseconds:.2f} | {f32 / milliseconds:.1f}x | {size:,} |"
        )


def draw(table: list, batch: int, path: str) -> None:
    """Draws accuracy against time, with a labeled point for each model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot([row[3] for row in table[2:]], [row[1] for row in table[2:]], color="tab:orange", alpha=0.4, zorder=1)
    for i, (name, accuracy, _, milliseconds, _) in enumerate(table):
        color, marker = ("tab:gray", "s") if i == 0 else ("tab:blue", "D") if i == 1 else ("tab:orange", "o")
        axes.scatter(milliseconds, accuracy, color=color, marker=marker, zorder=2)
        axes.annotate(
            name,
            (milliseconds, accuracy),
            xytext=(0, 8 if i % 2 else -14),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set(
        xscale="log",
        xlabel=f"milliseconds per batch of {batch} (whole model, log scale)",
        ylabel="test accuracy",
        title=f"Digits, hidden layers 64 -> {WIDTH} -> {WIDTH}",
    )
    axes.margins(x=0.2, y=0.2)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Trains, replaces layers, measures, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2048, help="rows per timed call")
    parser.add_argument("--rounds", type=int, default=40, help="timed calls of each model, interleaved")
    parser.add_argument("--picture", default="demo.png", help="where to write the picture")
    args = parser.parse_args()
    start = time.perf_counter()
    x_train, y_train, x_test, y_test = load_data()
    model = train(x_train, y_train)
    print(f"trained on {len(x_train)} images in {time.perf_counter() - start:.1f} s", flush=True)
    start = time.perf_counter()
    models, inputs = variants(model, x_train)
    print(
        f"learned {2 * len(CODEBOOKS)} ops in {time.perf_counter() - start:.1f} s; tier {jax_maddness.active_tier()}\n",
        flush=True,
    )
    table = measure(models, inputs, x_test, y_test, args.batch, args.rounds)
    print_table(table, args.batch)
    draw(table, args.batch, args.picture)
    print(f"\npicture: {args.picture}")


if __name__ == "__main__":
    main()
