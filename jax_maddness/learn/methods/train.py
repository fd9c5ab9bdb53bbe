"""Training of float trees and tables by gradient descent through the decisions, judged on held-out rows.

In the forward pass a row reaches one leaf, as in inference. In the backward pass it reaches leaf `k` with probability

    p_k = product over the levels of sigmoid(+-(s_l - threshold) / temperature)

so that projections and thresholds have gradients (a straight-through estimator); the temperature falls during
training. Every `INTERVAL` steps the trees are rounded to integers, their tables are solved in closed form (or, with a
loss of the user's, taken as they are), and the model is judged on held-out rows. The best model is the result.

Training rows are mixed: `sqrt(1 - a^2) row + a other`, with random `a`, has the covariance of the rows, and its exact
outputs are the same mixture of theirs, as the product is linear. With these mixtures, hundreds of rows are enough.
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
"""Number of rows per training step."""
TEMPERATURES = (0.2, 0.03)
"""First and last temperature, in standard deviations of a projection."""
RATE = 0.004
"""Learning rate of Adam, relative to the root mean square of each array; it falls to zero as half a cosine."""
MIXING = 0.7
"""Largest share of another row in a mixture."""
PATIENCE = 4
"""Number of evaluations on held-out rows without a smaller error that training continues after."""
ADAM = optax.scale_by_adam()
"""The optimizer, without a learning rate."""


class Samples(NamedTuple):
    """Rows to learn from, or held-out rows. Nothing is padded if the loss is the user's, as it would see the padding.

    Attributes:
      q: rounded rows; 0 for padding.
      targets: exact outputs of the rows minus the mean of the training rows' outputs; 0 for padding.
      number: number of rows that are not padding.
      extra: arrays for a loss of the user's, each with a leading dimension of rows.
    """

    q: Int8[Array, "rows features"]
    targets: Float[Array, "rows outputs"]
    number: Int32[Array, ""] | int
    extra: tuple[Array, ...] = ()


class Model(NamedTuple):
    """The parameters that are trained.

    The features that each codebook projects are kept separately; a codebook without features is padding.

    Attributes:
      trees: projections and thresholds.
      tables: vector of outputs that each code stands for, in the units of the targets.
      intercept: constant of each output, in the same units.
    """

    trees: FloatTrees
    tables: Float[Array, "codes outputs"]
    intercept: Float[Array, " outputs"]


def projected(
    q: Array, features: Int32[Array, "codebooks width"], projections: Array
) -> Float[Array, "rows codebooks 4"]:
    """Returns the projection that each level compares, for rows `q` [rows, features].

    All projections are one matrix, with zeros for features that a codebook does not project. The zeros cost less than
    gathering features would: the product is no larger than that with the tables.
    """
    # Padding is written to a row below the matrix, which the mode drops.
    codebooks = jnp.arange(len(features))[:, None]
    places = jnp.where(features >= 0, features, q.shape[1])
    matrix = jnp.zeros((q.shape[1], len(features), LEVELS))
    matrix = matrix.at[places, codebooks].add(projections.transpose(0, 2, 1), mode="drop")
    s = jnp.matmul(q.astype(jnp.float32), matrix.reshape(q.shape[1], -1), precision="highest")
    return s.reshape(len(q), len(features), LEVELS)


def leaves(s: Float[Array, "rows codebooks 4"], thresholds: Float[Array, "codebooks 15"]) -> Float[Array, "rows codes"]:
    """Returns the leaf that each row reaches in each codebook, as one-hot codes."""
    # Each level splits every node in two, so the nodes of a level, left to right, double until they are the leaves.
    reached = jnp.ones((*s.shape[:2], 1), bool)
    for level in range(LEVELS):
        right = s[..., level, None] > thresholds[:, 2**level - 1 : 2 ** (level + 1) - 1]
        reached = jnp.stack([reached & ~right, reached & right], axis=-1).reshape(*s.shape[:2], -1)
    return reached.reshape(len(s), -1).astype(jnp.float32)


def probabilities(s: Array, thresholds: Array, temperature: Array) -> Float[Array, "rows codes"]:
    """Returns the probability of each leaf if rows go right at random, more likely the further above the threshold."""
    p = jnp.ones((*s.shape[:2], 1))
    for level in range(LEVELS):
        node_thresholds = thresholds[:, 2**level - 1 : 2 ** (level + 1) - 1]
        right = p * jax.nn.sigmoid((s[..., level, None] - node_thresholds) / temperature)
        p = jnp.stack([p - right, right], axis=-1).reshape(*s.shape[:2], -1)
    return p.reshape(len(s), -1)


def predict(model: Model, features: Array, z: Array, temperature: Array) -> Float[Array, "rows outputs"]:
    """Returns the model's outputs for standardized rows `z`, with the gradients of the soft decisions."""
    s = projected(z, features, model.trees.projections)
    hard = leaves(s, model.trees.thresholds)
    soft = probabilities(s, model.trees.thresholds, temperature)
    # `soft - stop_gradient(soft)` is zero, so the value is that of `hard` and the gradient that of `soft`.
    return ((hard + soft - lax.stop_gradient(soft)) * _real_codes(features)) @ model.tables + model.intercept


def _real_codes(features: Int32[Array, "codebooks width"]) -> Bool[Array, " codes"]:
    """Returns a mask of the codes whose codebooks are not padding."""
    return jnp.repeat((features >= 0).any(1), LEAVES)


@jax.jit
def codes(trees: FloatTrees, features: Array, q: Int8[Array, "rows features"]) -> Float[Array, "rows codes"]:
    """Returns one-hot codes of the integer form of `trees`; floats are exact below 1,040 features per codebook."""
    projections, thresholds = integers(trees)
    one_hot = leaves(projected(q, features, projections.astype(jnp.float32)), thresholds.astype(jnp.float32))
    return one_hot * _real_codes(features)


@jax.jit
def solve(
    trees: FloatTrees,
    features: Int32[Array, "codebooks width"],
    own: Int32[Array, "codebooks own"],
    rows: Samples,
    v: Float[Array, "features outputs"],
    ridge: Float[Array, ""],
) -> Model:
    """Solves tables for the integer form of `trees` by ridge regression, as `fit_prototypes` does, for the targets.

    Args:
      trees: projections and thresholds.
      features: features that each codebook projects, padded with -1.
      own: features in which tables shrink toward the codebook's bucket means; a partition, padded with -1.
      rows: training rows.
      v: weights from standardized rows `z = q * STEP` to the targets.
      ridge: weight of the penalty, in rows.

    Returns:
      The float trees with the tables of their integer form.
    """
    one_hot = codes(trees, features, rows.q) * (jnp.arange(len(rows.q)) < rows.number)[:, None]
    # Tables are solved for the rounded trees, so that they make up for errors of the rounding.
    gram = jnp.matmul(one_hot.T, one_hot, precision="highest")
    counts = jnp.maximum(jnp.diagonal(gram), 1.0).reshape(-1, LEAVES, 1)
    z = rows.q.astype(jnp.float32) * STEP
    z = z - z.sum(0) / rows.number
    own_features = jnp.maximum(own, 0)
    sums = jnp.einsum("nck,ncw->ckw", one_hot.reshape(len(z), -1, LEAVES), z[:, own_features])
    # The prior of a table is the product of its bucket means, in the codebook's own features only, with the weights.
    means = jnp.where(own[:, None] >= 0, sums / counts, 0.0)
    prior = jnp.einsum("ckw,cwm->ckm", means, v[own_features]).reshape(len(gram), -1)
    # As in `fit_prototypes`, the residual of the prior is regressed, so that the penalty shrinks toward the prior.
    residual_sums = jnp.matmul(one_hot.T, rows.targets, precision="highest") - jnp.matmul(
        gram, prior, precision="highest"
    )
    corrections, intercept = ridge_regression(gram.astype(jnp.int32), residual_sums, rows.number, ridge)[:2]
    return Model(trees, prior + corrections, intercept)


@jax.jit
def judge(model: Model, features: Array, held_out: Samples, loss: Objective) -> Float[Array, ""]:
    """Returns the loss of the model's integer form on held-out rows."""
    y = codes(model.trees, features, held_out.q) @ model.tables + model.intercept
    return loss(y, held_out.targets, *held_out.extra)


@jax.jit
def squared_errors(model: Model, features: Array, held_out: Samples) -> Float[Array, " rows"]:
    """Returns the squared error of the model's integer form on each held-out row; 0 for padding."""
    y = codes(model.trees, features, held_out.q) @ model.tables + model.intercept
    # The intercept alone gives padding an output, and so an error that must not count.
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
    """Takes steps of Adam on minibatches of mixed rows, one step per entry of the schedule.

    Args:
      state: the model, and the state of Adam.
      features: features that each codebook projects, padded with -1.
      rows: training rows.
      schedule: number of each step, and the share of training that is done before it, from 0 to 1.
      mixing: largest share `a` of the other row; 0 if there are `extra` arrays, which cannot be mixed.
      seed: random key, from which each step derives its own.
      loss: loss of outputs, exact outputs and the minibatch's part of `rows.extra`.

    Returns:
      The model and the state of Adam after the last step.
    """
    # Adam's updates have a size of about 1 whatever the gradients', so each array gets a rate in proportion to its own
    # size. Thresholds are measured in standard deviations, and so have a size of 1.
    model = state[0]
    rates = Model(FloatTrees(_size(model.trees.projections), jnp.ones(())), _size(model.tables), _size(model.tables))

    def step(state: tuple[Model, Any], entry: tuple[Array, Array]) -> tuple[tuple[Model, Any], None]:
        number, progress = entry
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
    """Returns the root mean square of the entries that are not 0; zeros are padding."""
    return jnp.sqrt(jnp.square(a).sum() / jnp.maximum((a != 0).sum(), 1))


def _minibatch(rows: Samples, mixing: Array, key: Array) -> tuple[Array, Array, tuple[Array, ...]]:
    """Draws `BATCH` random rows, each mixed with another: standardized rows, targets and the rows' `extra` entries."""
    row_key, other_key, share_key = jax.random.split(key, 3)
    row = jax.random.randint(row_key, (BATCH,), 0, rows.number)
    other = jax.random.randint(other_key, (BATCH,), 0, rows.number)
    a = mixing * jax.random.uniform(share_key, (BATCH, 1))
    # The squares of the shares add up to 1, which keeps the covariance of the rows.
    b = jnp.sqrt(1 - a * a)
    z = STEP * (b * rows.q[row] + a * rows.q[other])
    return z, b * rows.targets[row] + a * rows.targets[other], tuple(e[row] for e in rows.extra)


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
    """Trains a model, and returns the one with the least error of all that were evaluated, `start` included.

    Args:
      start: model to begin with, in the units of `rows.targets`.
      features: features that each codebook projects, padded with -1.
      rows: training rows.
      judged: function from a model to the one that would be used in its place, with tables solved for its integer form,
        for example, and to the error of that one on held-out rows.
      steps: largest number of steps, a multiple of `INTERVAL`.
      mixing: largest share of the other row in a mixture.
      seed: seed of the minibatches.
      loss: loss of outputs, exact outputs, and the minibatch's part of `rows.extra`.
      patience: number of evaluations without a smaller error that training continues after.
      done: function that is called after each evaluation.

    Returns:
      The best model, as `judged` returned it, and its error on held-out rows.
    """
    best = judged(start)
    state, waited = (start, ADAM.init(start)), 0
    # Early stopping guards against overfitting; the best model counts, so training on a little longer costs only time.
    for first in range(0, steps, INTERVAL):
        numbers = jnp.arange(first, first + INTERVAL)
        schedule = numbers, numbers / steps
        state = advance(state, features, rows, schedule, jnp.float32(mixing), jax.random.key(seed), loss)
        current = judged(state[0])
        done()
        waited = 0 if current[1] < best[1] else waited + 1
        best = min(best, current, key=lambda pair: pair[1])
        if waited > patience:
            break
    return best
