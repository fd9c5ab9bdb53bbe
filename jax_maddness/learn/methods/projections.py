"""Projections of a codebook's features: the start of oblique trees, and their rounding to integers.

rows --round--> q --directions, splits--> projections, thresholds --train--> better ones --integers--> ObliqueTrees

A codebook's features contribute `z_g @ w_g` to the outputs. The principal directions of this contribution, expressed in
the features, are the projections to start from; the paper's split search chooses among them at each level. All learning
is on standardized rows, `z = q * STEP`: these are the values that `encode` compares, in units of a standard deviation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Int32

from jax_maddness.core.int8 import GREATEST_SCALE, LEAST_SCALE, LIMIT
from jax_maddness.core.types import LEVELS
from jax_maddness.learn.data import shapes
from jax_maddness.learn.methods.splits import grow_trees

STEP = np.float32(6 / LIMIT)
"""Standard deviations per step of a rounded feature: 6 reach the limit; 3 to 10 make no difference."""
OUTPUTS = 256
"""Largest number of outputs to train on: the principal ones of `x @ w`, which have nearly all of its variance."""
NUM_DIRECTIONS = 8
"""Number of directions per codebook that the split search chooses from."""
GROWN_ROWS = 4096
"""Largest number of rows that trees are grown on."""
NODE_LEVEL = np.repeat(np.arange(LEVELS), 2 ** np.arange(LEVELS))
"""The level of each node in heap order."""
_FAR = 8.0  # standard deviations: the threshold of nodes that do not split


class FloatTrees(NamedTuple):
    """Trees on standardized rows `z`.

    At level `l`, a row goes right in codebook `c` if `projections[c, l] . z[features[c]]` is above the threshold. The
    `features` of each codebook are kept separately, with -1 as padding where a codebook has fewer than `width`.

    Attributes:
      projections: weights of the features at each level, per standard deviation; 0 for padding.
      thresholds: threshold of each node in heap order, in units of the projections of `z`.
    """

    projections: Float[Array, "codebooks 4 width"]
    thresholds: Float[Array, "codebooks 15"]


def rounding(x: Float[np.ndarray, "rows features"]) -> tuple[Float[np.ndarray, " features"], ...]:
    """Returns `center` and `scale` of `ObliqueTrees` for given rows.

    The center is the mean, and the scale is in steps per unit, such that 6 standard deviations reach 127. A constant
    feature gets scale 0.
    """
    center = x.mean(0, dtype=np.float64).astype(np.float32)
    deviation = np.sqrt(np.square(x - center, dtype=np.float64).mean(0))
    tiny = np.finfo(np.float32).eps * np.abs(center)  # what rounding alone may leave of a constant
    varies = (deviation > tiny) & (x.max(0) > x.min(0))
    scale = 1 / (STEP * np.where(varies, deviation, 1.0))
    return center, np.where(varies, np.clip(scale, LEAST_SCALE, GREATEST_SCALE), 0.0).astype(np.float32)


def standardized_weights(w: np.ndarray, scale: np.ndarray) -> Float[np.ndarray, "features outputs"]:
    """Returns `v` such that `z @ v` is about `(x - center) @ w`; 0 for constant features."""
    return w / np.where(scale > 0, STEP * scale.astype(np.float64), np.inf)[:, None]


def principal_outputs(
    covariance: Float[np.ndarray, "features features"], v: Float[np.ndarray, "features outputs"], most: int = OUTPUTS
) -> Float[np.ndarray, "outputs kept"]:
    """Returns orthonormal columns that span the `most` principal directions of `z @ v`; the identity if it has no more.

    Subspace iteration finds them without decomposing a matrix as large as the features or the outputs.
    """
    outputs = v.shape[1]
    if outputs <= most:
        return np.eye(outputs)
    basis = np.random.default_rng(0).standard_normal((outputs, most))
    for _ in range(4):
        basis = np.linalg.qr(v.T @ (covariance @ (v @ basis)))[0]
    return basis


def directions(
    covariance: Float[np.ndarray, "features features"],
    v: Float[np.ndarray, "features outputs"],
    groups: Int32[np.ndarray, "codebooks width"],
    count: int = NUM_DIRECTIONS,
) -> Float[np.ndarray, "codebooks width count"]:
    """Returns projections of each group's features that are the principal components of its outputs `z_g @ v_g`.

    With `h h^T` the group's covariance and `u_k` the eigenvectors of `h^T v_g v_g^T h`, direction `k` is
    `v_g v_g^T h u_k`, divided by the root of the eigenvalue, which is then the variance of the projection: distances
    between projected rows are distances between outputs. Missing features and directions are 0.
    """
    own = groups >= 0
    features = np.where(own, groups, 0)  # padding reads feature 0; its weights and covariances are set to 0
    weights = np.where(own[..., None], v[features], 0.0)
    products = weights @ weights.transpose(0, 2, 1)
    variance, axes = np.linalg.eigh(
        covariance[features[:, :, None], features[:, None, :]] * (own[:, :, None] & own[:, None, :])
    )
    root = axes * np.sqrt(np.maximum(variance, 0.0))[:, None]
    energy, axes = np.linalg.eigh(root.transpose(0, 2, 1) @ products @ root)
    energy, axes = energy[:, ::-1][:, :count], axes[:, :, ::-1][:, :, :count]
    # Directions with next to no energy are rounding errors, and dividing by its root would blow them up.
    usable = energy > 1e-9 * energy[:, :1]
    return products @ root @ axes * np.where(usable, 1 / np.sqrt(np.where(usable, energy, 1.0)), 0.0)[:, None]


def grow(
    z: Float[np.ndarray, "rows features"],
    groups: Int32[np.ndarray, "codebooks width"],
    group_axes: Float[np.ndarray, "codebooks width count"],
) -> FloatTrees:
    """Grows trees whose levels take the best of the given directions, by the split search of `grow_trees`.

    Args:
      z: standardized rows.
      groups: features of each codebook, padded with -1.
      group_axes: projections of each group's features, as `directions` returns them.

    Returns:
      Trees whose projections are scaled to a standard deviation of 1.
    """
    rows = z[:GROWN_ROWS]
    codebooks, _, count = group_axes.shape
    scores = np.stack([rows[:, g] @ a.astype(np.float32) for g, a in zip(groups, group_axes, strict=True)], axis=1)
    factor = np.ldexp(np.float32(1), -np.frexp(max(np.abs(scores).max(), 1e-30))[1])
    size, max_axes = shapes.rounded(codebooks, shapes.CODEBOOKS), shapes.rounded(count, NUM_DIRECTIONS)
    columns = shapes.pad(scores.transpose(1, 0, 2), size, shapes.rounded(len(rows), shapes.ROWS), max_axes)
    real, counted = (
        shapes.pad(np.ones((codebooks, count), bool), size, max_axes),
        np.arange(columns.shape[1]) < len(rows),
    )
    grown = map(np.asarray, grow_trees(columns, real, counted, factor, max_axes))
    chosen, thresholds = (a[:codebooks] for a in grown)
    deviation = np.take_along_axis(scores.std(0), chosen, axis=1)
    deviation = np.where(deviation > 0, deviation, 1.0)
    projections = np.take_along_axis(group_axes, chosen[:, None], axis=2).transpose(0, 2, 1) / deviation[..., None]
    # The threshold of a node that does not split is the largest float; training needs one within its reach.
    with np.errstate(over="ignore"):
        thresholds = np.clip(thresholds / deviation[:, NODE_LEVEL], -_FAR, _FAR)
    return FloatTrees(jax.device_put(projections.astype(np.float32)), jax.device_put(thresholds.astype(np.float32)))


@jax.jit
def integers(trees: FloatTrees) -> tuple[Int8[Array, "codebooks 4 width"], Int32[Array, "codebooks 15"]]:
    """Returns projections scaled to a largest entry of 127 and rounded to integers, and thresholds for them on `q`."""
    largest = jnp.abs(trees.projections).max(-1, keepdims=True)
    factor = LIMIT / jnp.maximum(largest, 1e-20)
    limit = 2.0**31 - 256  # the largest int32 that f32 can hold
    # For an integer s, `s > t` is the same as `s > floor(t)`, so flooring loses nothing.
    thresholds = jnp.floor(trees.thresholds * factor[:, NODE_LEVEL, 0] / STEP)
    projections = jnp.rint(trees.projections * factor).astype(jnp.int8)
    return projections, jnp.clip(thresholds, -limit, limit).astype(jnp.int32)
