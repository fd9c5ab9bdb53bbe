"""x_train, w -> integer block-oblique trees: levels compare projections of a codebook's features.

rows --round--> q --directions, splits--> projections, thresholds --train--> better ones --integers--> ObliqueTrees

The start: a codebook's features contribute `z_g @ w_g` to the outputs. Their principal directions in output space, back
in feature space, are what is worth knowing about the group; the paper's split search chooses among them.
All learning is on standardised rows, `z = q * STEP`, the very values that `encode` compares, in units of a standard
deviation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Int32

from jax_maddness.core.types import LEVELS
from jax_maddness.learn.data import shapes
from jax_maddness.learn.methods.splits import grow_trees

LIMIT = 127
STEP = np.float32(6 / LIMIT)
"""Standard deviations per step of a rounded feature: 6 reach the limit; 3 to 10 make no difference."""
OUTPUTS = 256
"""Outputs that training sees: the principal ones of `x @ w`, which have nearly all of its variance."""
CANDIDATES = 8
"""Directions per codebook that the split search chooses from."""
GROWN_ROWS = 4096
"""Rows that trees are grown on."""
NODE_LEVEL = np.repeat(np.arange(LEVELS), 2 ** np.arange(LEVELS))
"""The level of each node in heap order."""
_FAR = 8.0  # standard deviations: the threshold of nodes that do not split


class FloatTrees(NamedTuple):
    """Trees on standardised rows `z`: right at level `l` where `projections[c, l] . z[features[c]] > threshold`.

    `features` go beside it, with -1 where a codebook has fewer than `width`.

    Attributes:
      projections: 0 where there is no feature.
      thresholds: heap order.
    """

    projections: Float[Array, "codebooks 4 width"]
    thresholds: Float[Array, "codebooks 15"]


def rounding(x: Float[np.ndarray, "rows features"]) -> tuple[Float[np.ndarray, " features"], ...]:
    """`center` and `scale` of `ObliqueTrees`: the mean; steps per unit such that 6 standard deviations reach 127.

    A constant feature gets scale 0.
    """
    center = x.mean(0, dtype=np.float64).astype(np.float32)
    deviation = np.sqrt(np.square(x - center, dtype=np.float64).mean(0))
    tiny = np.finfo(np.float32).eps * np.abs(center)  # what rounding alone may leave of a constant
    varies = (deviation > tiny) & (x.max(0) > x.min(0))
    scale = 1 / (STEP * np.where(varies, deviation, 1.0))
    return center, np.where(varies, np.clip(scale, 2.0**-100, 2.0**100), 0.0).astype(np.float32)


def rounded(x: Float[np.ndarray, "rows features"], center: np.ndarray, scale: np.ndarray) -> Int8[np.ndarray, "..."]:
    """`q` of `ObliqueTrees`, of finite rows."""
    return np.clip(np.rint((x - center) * scale), -LIMIT, LIMIT).astype(np.int8)


def standardised_weights(w: np.ndarray, scale: np.ndarray) -> Float[np.ndarray, "features outputs"]:
    """`v` such that `z @ v` is about `(x - center) @ w`."""
    return w / np.where(scale > 0, STEP * scale.astype(np.float64), np.inf)[:, None]


def principal_outputs(
    covariance: Float[np.ndarray, "features features"], v: Float[np.ndarray, "features outputs"], most: int = OUTPUTS
) -> Float[np.ndarray, "outputs kept"]:
    """Orthonormal columns that span the `most` principal directions of `z @ v`; the identity if it has no more.

    By subspace iteration, which needs no decomposition of a matrix as large as the features or the outputs.
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
    count: int = CANDIDATES,
) -> Float[np.ndarray, "codebooks width count"]:
    """Of each group, the projections of its features that are the principal components of their outputs `z_g @ v_g`.

    With `h h^T` the group's covariance and `u_k` the eigenvectors of `h^T v_g v_g^T h`, direction `k` is
    `v_g v_g^T h u_k`, divided by the root of the eigenvalue, which is then the variance of the projection: distances
    between projected rows are distances between outputs. Missing features and directions are 0.
    """
    own = groups >= 0
    at = np.where(own, groups, 0)
    weights = np.where(own[..., None], v[at], 0.0)
    products = weights @ weights.transpose(0, 2, 1)
    variance, axes = np.linalg.eigh(covariance[at[:, :, None], at[:, None, :]] * (own[:, :, None] & own[:, None, :]))
    root = axes * np.sqrt(np.maximum(variance, 0.0))[:, None]
    energy, axes = np.linalg.eigh(root.transpose(0, 2, 1) @ products @ root)
    energy, axes = energy[:, ::-1][:, :count], axes[:, :, ::-1][:, :, :count]
    usable = energy > 1e-9 * energy[:, :1]
    return products @ root @ axes * np.where(usable, 1 / np.sqrt(np.where(usable, energy, 1.0)), 0.0)[:, None]


def grow(
    z: Float[np.ndarray, "rows features"],
    groups: Int32[np.ndarray, "codebooks width"],
    candidates: Float[np.ndarray, "codebooks width count"],
) -> FloatTrees:
    """Trees whose levels take the best of the `candidates`, by the split search of `grow_trees`.

    Projections are scaled to a standard deviation of 1.
    """
    rows = z[:GROWN_ROWS]
    codebooks, _, count = candidates.shape
    scores = np.stack([rows[:, g] @ a.astype(np.float32) for g, a in zip(groups, candidates, strict=True)], axis=1)
    factor = np.ldexp(np.float32(1), -np.frexp(max(np.abs(scores).max(), 1e-30))[1])
    size, most = shapes.rounded(codebooks, shapes.CODEBOOKS), shapes.rounded(count, CANDIDATES)
    columns = shapes.pad(scores.transpose(1, 0, 2), size, shapes.rounded(len(rows), shapes.ROWS), most)
    there, counted = shapes.pad(np.ones((codebooks, count), bool), size, most), np.arange(columns.shape[1]) < len(rows)
    grown = map(np.asarray, grow_trees(columns, there, counted, factor, most))
    chosen, thresholds = (a[:codebooks] for a in grown)
    deviation = np.take_along_axis(scores.std(0), chosen, axis=1)
    deviation = np.where(deviation > 0, deviation, 1.0)
    projections = np.take_along_axis(candidates, chosen[:, None], axis=2).transpose(0, 2, 1) / deviation[..., None]
    with np.errstate(over="ignore"):
        thresholds = np.clip(thresholds / deviation[:, NODE_LEVEL], -_FAR, _FAR)
    return FloatTrees(jax.device_put(projections.astype(np.float32)), jax.device_put(thresholds.astype(np.float32)))


@jax.jit
def integers(trees: FloatTrees) -> tuple[Int8[Array, "codebooks 4 width"], Int32[Array, "codebooks 15"]]:
    """Projections scaled so that the largest entry is 127, rounded to integers, and thresholds for them on `q`."""
    largest = jnp.abs(trees.projections).max(-1, keepdims=True)
    factor = LIMIT / jnp.maximum(largest, 1e-20)
    limit = 2.0**31 - 256  # the largest int32 that f32 can hold
    thresholds = jnp.floor(trees.thresholds * factor[:, NODE_LEVEL, 0] / STEP)
    projections = jnp.rint(trees.projections * factor).astype(jnp.int8)
    return projections, jnp.clip(thresholds, -limit, limit).astype(jnp.int32)
