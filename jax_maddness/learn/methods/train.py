"""Float trees and tables -> better ones: gradient descent through the decisions, judged on rows held out.

Forward, a row reaches one leaf, as in inference. Backward, it reaches leaf `k` with probability

    p_k = product over the levels of sigmoid(+-(s_l - threshold) / temperature)

so that projections and thresholds have gradients (a straight-through estimator); the temperature falls as training
goes on. Every `INTERVAL` steps the trees are rounded to integers, their tables are solved in closed form (or, with a
loss of the user's, taken as they are) and judged on the held-out rows: the best is what counts.

Training rows are mixed: `sqrt(1 - a^2) row + a other`, with random `a`, has the covariance of the rows, and its exact
outputs are the same mixture of theirs, as the product is linear. That is what makes hundreds of rows enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jax import lax
from jaxtyping import Array, Bool, Float, Int8, Int32

from jax_maddness.core.types import LEAVES, LEVELS
from jax_maddness.learn.config import INTERVAL
from jax_maddness.learn.methods.objective import SQUARED_ERROR, Objective
from jax_maddness.learn.methods.projections import STEP, FloatTrees, integers
from jax_maddness.learn.tables.ridge import ridge_regression

BATCH = 512
"""Rows per step."""
TEMPERATURES = (0.2, 0.03)
"""The first and the last, in standard deviations of a projection."""
RATE = 0.004
"""Adam's, relative to the root mean square of what it changes; falls to zero as half a cosine."""
MIXING = 0.7
"""The largest share of another row."""
PATIENCE = 4
"""Looks at the held-out rows without a gain that end training."""
ADAM = optax.scale_by_adam()


class Samples(NamedTuple):
    """Rows to learn from or to judge by. With a loss of the user's, which would see it, nothing is padded.

    Attributes:
      q: rounded rows; 0 where arrays are padded.
      targets: their exact outputs, about the mean of the training rows; 0 where arrays are padded.
      number: how many rows there are; the others are there to fill the arrays.
      extra: what a loss of the user's wants besides; each with a leading dimension of rows.
    """

    q: Int8[Array, "rows features"]
    targets: Float[Array, "rows outputs"]
    number: Int32[Array, ""] | int
    extra: tuple[Array, ...] = ()


class Model(NamedTuple):
    """What is trained; the features that each codebook sees go beside it: one that sees none counts for nothing."""

    trees: FloatTrees
    tables: Float[Array, "codes outputs"]
    intercept: Float[Array, " outputs"]


def projected(
    q: Array, features: Int32[Array, "codebooks width"], projections: Array
) -> Float[Array, "rows codebooks 4"]:
    """What the levels compare: `q [rows, features]` times all projections as one matrix with zeros in it.

    The zeros cost less than to gather features would: the product is no larger than that with the tables.
    """
    codebooks = jnp.arange(len(features))[:, None]
    places = jnp.where(features >= 0, features, q.shape[1])
    matrix = jnp.zeros((q.shape[1], len(features), LEVELS))
    matrix = matrix.at[places, codebooks].add(projections.transpose(0, 2, 1), mode="drop")
    s = jnp.matmul(q.astype(jnp.float32), matrix.reshape(q.shape[1], -1), precision="highest")
    return s.reshape(len(q), len(features), LEVELS)


def leaves(s: Float[Array, "rows codebooks 4"], thresholds: Float[Array, "codebooks 15"]) -> Float[Array, "rows codes"]:
    """One-hot: which leaf a row reaches."""
    reached = jnp.ones((*s.shape[:2], 1), bool)
    for level in range(LEVELS):
        right = s[..., level, None] > thresholds[:, 2**level - 1 : 2 ** (level + 1) - 1]
        reached = jnp.stack([reached & ~right, reached & right], axis=-1).reshape(*s.shape[:2], -1)
    return reached.reshape(len(s), -1).astype(jnp.float32)


def probabilities(s: Array, thresholds: Array, temperature: Array) -> Float[Array, "rows codes"]:
    """`leaves` with decisions made at random: the chance of each."""
    p = jnp.ones((*s.shape[:2], 1))
    for level in range(LEVELS):
        nodes = thresholds[:, 2**level - 1 : 2 ** (level + 1) - 1]
        right = p * jax.nn.sigmoid((s[..., level, None] - nodes) / temperature)
        p = jnp.stack([p - right, right], axis=-1).reshape(*s.shape[:2], -1)
    return p.reshape(len(s), -1)


def predict(model: Model, features: Array, z: Array, temperature: Array) -> Float[Array, "rows outputs"]:
    """The model's outputs, with the gradients of the soft decisions."""
    s = projected(z, features, model.trees.projections)
    hard = leaves(s, model.trees.thresholds)
    soft = probabilities(s, model.trees.thresholds, temperature)
    return ((hard + soft - lax.stop_gradient(soft)) * _real(features)) @ model.tables + model.intercept


def _real(features: Int32[Array, "codebooks width"]) -> Bool[Array, " codes"]:
    """The codes of codebooks that are not there to fill the arrays."""
    return jnp.repeat((features >= 0).any(1), LEAVES)


@jax.jit
def codes(trees: FloatTrees, features: Array, q: Int8[Array, "rows features"]) -> Float[Array, "rows codes"]:
    """One-hot codes of the integer form of `trees`, in floats that are exact below 1,040 features per codebook."""
    projections, thresholds = integers(trees)
    one_hot = leaves(projected(q, features, projections.astype(jnp.float32)), thresholds.astype(jnp.float32))
    return one_hot * _real(features)


@jax.jit
def solve(
    trees: FloatTrees,
    features: Int32[Array, "codebooks width"],
    own: Int32[Array, "codebooks own"],
    rows: Samples,
    v: Float[Array, "features outputs"],
    ridge: Float[Array, ""],
) -> Model:
    """Tables for the integer form of `trees` by ridge regression, as in `fit_prototypes`, for `targets` directly.

    Args:
      trees: projections and thresholds.
      features: what they project.
      own: features in which tables shrink toward the codebook's bucket means; a partition, padded with -1.
      rows: training rows.
      v: the outputs of `z = q * STEP`.
      ridge: weight of the penalty, in rows.
    """
    one_hot = codes(trees, features, rows.q) * (jnp.arange(len(rows.q)) < rows.number)[:, None]
    gram = jnp.matmul(one_hot.T, one_hot, precision="highest")
    counts = jnp.maximum(jnp.diagonal(gram), 1.0).reshape(-1, LEAVES, 1)
    z = rows.q.astype(jnp.float32) * STEP
    z = z - z.sum(0) / rows.number
    at = jnp.maximum(own, 0)
    sums = jnp.einsum("nck,ncw->ckw", one_hot.reshape(len(z), -1, LEAVES), z[:, at])
    means = jnp.where(own[:, None] >= 0, sums / counts, 0.0)
    prior = jnp.einsum("ckw,cwm->ckm", means, v[at]).reshape(len(gram), -1)
    left = jnp.matmul(one_hot.T, rows.targets, precision="highest") - jnp.matmul(gram, prior, precision="highest")
    corrections, intercept = ridge_regression(gram.astype(jnp.int32), left, rows.number, ridge)[:2]
    return Model(trees, prior + corrections, intercept)


@jax.jit
def judge(model: Model, features: Array, held_out: Samples, loss: Objective) -> Float[Array, ""]:
    """The loss of the model's integer form."""
    y = codes(model.trees, features, held_out.q) @ model.tables + model.intercept
    return loss(y, held_out.targets, *held_out.extra)


@jax.jit
def squared_errors(model: Model, features: Array, held_out: Samples) -> Float[Array, " rows"]:
    """Of the model's integer form, row by row; 0 for rows that do not count."""
    y = codes(model.trees, features, held_out.q) @ model.tables + model.intercept
    return jnp.where(jnp.arange(len(y)) < held_out.number, jnp.square(y - held_out.targets).sum(-1), 0.0)


@jax.jit
def advance(
    state: tuple[Model, Any],
    features: Int32[Array, "codebooks width"],
    rows: Samples,
    schedule: tuple[Array, Array],
    mixing: Float[Array, ""],
    seed: Array,
    loss: Objective,
) -> tuple[Model, Any]:
    """Some steps of Adam on minibatches of mixed rows, one per entry of the schedule.

    Args:
      state: the model, and Adam's state.
      features: what the trees project.
      rows: training rows.
      schedule: the number of each step, and how far training is then, from 0 to 1.
      mixing: the largest share `a` of the other row; 0 where there is `extra`, which does not mix.
      seed: a key.
      loss: of the outputs.
    """
    model = state[0]
    rates = Model(FloatTrees(_size(model.trees.projections), jnp.ones(())), _size(model.tables), _size(model.tables))

    def step(state: tuple[Model, Any], now: tuple[Array, Array]) -> tuple[tuple[Model, Any], None]:
        number, progress = now
        hot, cold = TEMPERATURES
        z, targets, extra = _minibatch(rows, mixing, jax.random.fold_in(seed, number))

        def objective(model: Model) -> Array:
            y = predict(model, features, z, hot * (cold / hot) ** progress)
            return loss(y, targets, *extra)

        update, adam = ADAM.update(jax.grad(objective)(state[0]), state[1])
        rate = RATE * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return (jax.tree.map(lambda p, u, size: p - rate * size * u, state[0], update, rates), adam), None

    return lax.scan(step, state, schedule)[0]


def _size(a: Array) -> Array:
    """The root mean square of the entries that are not 0."""
    return jnp.sqrt(jnp.square(a).sum() / jnp.maximum((a != 0).sum(), 1))


def _minibatch(rows: Samples, mixing: Array, key: Array) -> tuple[Array, Array, tuple[Array, ...]]:
    """`BATCH` random rows, each mixed with another, standardised."""
    first, second, share = jax.random.split(key, 3)
    one = jax.random.randint(first, (BATCH,), 0, rows.number)
    other = jax.random.randint(second, (BATCH,), 0, rows.number)
    a = mixing * jax.random.uniform(share, (BATCH, 1))
    b = jnp.sqrt(1 - a * a)
    z = STEP * (b * rows.q[one] + a * rows.q[other])
    return z, b * rows.targets[one] + a * rows.targets[other], tuple(e[one] for e in rows.extra)


def train(
    start: Model,
    features: Int32[Array | np.ndarray, "codebooks width"],
    rows: Samples,
    judged: Callable[[Model], tuple[Model, float]],
    *,
    steps: int,
    mixing: float,
    seed: int,
    loss: Objective = SQUARED_ERROR,
    patience: int = PATIENCE,
    done: Callable[[], None] = lambda: None,
) -> tuple[Model, float]:
    """The best model on the way, by `judged`, the start included.

    Args:
      start: a model in whose units `rows.targets` are.
      features: what the trees project.
      rows: training rows.
      judged: what would be delivered, and its error on held-out rows.
      steps: at most so many; a multiple of `INTERVAL`.
      mixing: see `advance`.
      seed: of the minibatches.
      loss: of outputs, exact outputs, and the minibatch's part of `rows.extra`.
      patience: how many looks at the held-out rows may bring nothing before training ends.
      done: called after each of them.
    """
    best = judged(start)
    state, waited = (start, ADAM.init(start)), 0
    for first in range(0, steps, INTERVAL):
        numbers = jnp.arange(first, first + INTERVAL)
        schedule = numbers, numbers / steps
        state = advance(state, features, rows, schedule, jnp.float32(mixing), jax.random.key(seed), loss)
        now = judged(state[0])
        done()
        waited = 0 if now[1] < best[1] else waited + 1
        best = min(best, now, key=lambda pair: pair[1])
        if waited > patience:
            break
    return best
