"""Product quantization, the start of `quantizer.py`: k-means in groups of components (Jegou et al. 2011).

The components are principal ones, dealt out to groups whose products of variances are about equal (Ge et al. 2013).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt8

from jax_maddness.core.types import LEAVES
from jax_maddness.learn.data import shapes

_LLOYD_STEPS = 10


def first_codes(
    x: Float[np.ndarray, "sample features"],
    moment: Float[np.ndarray, "features features"],
    num_codebooks: int,
    seed: int,
) -> UInt8[np.ndarray, "sample codebooks"]:
    """Encodes rows with mean 0 by product quantization of the principal components of `x M^(1/2)`."""
    values, axes = np.linalg.eigh(moment)
    root = axes * np.sqrt(np.maximum(values, 0.0))
    covariance = root.T @ (x.T @ x / np.float32(len(x))).astype(np.float64) @ root
    variances, directions = np.linalg.eigh(covariance)
    rotation = (root @ directions)[:, ::-1].astype(np.float32)
    groups = deal(variances[::-1], num_codebooks)
    z = np.pad(x @ rotation, ((0, 0), (0, 1)))[:, groups]  # group member -1 selects the zero that is appended
    padded = shapes.pad(z, shapes.rounded(len(z), shapes.ROWS), *z.shape[1:])
    return np.asarray(k_means(padded, np.arange(len(padded)) < len(z), jax.random.key(seed)))[: len(z)]


def deal(variances: Float[np.ndarray, " features"], num_codebooks: int) -> Int32[np.ndarray, "codebooks width"]:
    """Deals components, the largest first, to the group whose variances have the least product so far.

    Groups have equal width; -1 stands for no component.

    Example:
      >>> deal(np.array([8.0, 4.0, 2.0, 1.0]), 2).tolist()
      [[0, 3], [1, 2]]
    """
    least = max(float(variances.max()) * 1e-7, 1e-30)
    logs = np.log(np.maximum(variances, least) / least) + 1e-9
    width = -(-len(logs) // num_codebooks)
    groups: list[list[int]] = [[] for _ in range(num_codebooks)]
    totals = np.zeros(num_codebooks)
    for component, log in enumerate(logs):
        group = int(totals.argmin())
        groups[group].append(component)
        totals[group] = totals[group] + log if len(groups[group]) < width else np.inf
    return np.array([group + [-1] * (width - len(group)) for group in groups], np.int32)


@jax.jit
def k_means(
    z: Float[Array, "rows codebooks width"], counted: Bool[Array, " rows"], key: Array
) -> UInt8[Array, "rows codebooks"]:
    """Runs k-means for 16 means in each codebook; returns the nearest mean of each row.

    The start is k-means++ (Arthur & Vassilvitskii 2007), followed by Lloyd's steps. Rows that are not `counted` are
    padding.
    """
    keys = jax.random.split(key, z.shape[1])
    return lax.map(lambda args: _k_means(args[0], args[1], counted), (jnp.moveaxis(z, 1, 0), keys)).T


def _k_means(z: Float[Array, "rows width"], key: Array, counted: Bool[Array, " rows"]) -> UInt8[Array, " rows"]:
    def choose(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        means, distance = state
        row = z[
            jax.random.categorical(jax.random.fold_in(key, i), jnp.where(counted, jnp.log(distance + 1e-30), -jnp.inf))
        ]
        return means.at[i].set(row), jnp.minimum(distance, ((z - row) ** 2).sum(-1))

    def nearest(means: Array) -> Array:
        return ((means**2).sum(-1) - 2 * z @ means.T).argmin(-1).astype(jnp.uint8)

    def step(_: Array, means: Array) -> Array:
        one_hot = jax.nn.one_hot(nearest(means), LEAVES) * counted[:, None]
        counts = one_hot.sum(0)[:, None]
        return jnp.where(counts > 0, one_hot.T @ z / jnp.maximum(counts, 1), means)

    start = (jnp.zeros((LEAVES, z.shape[1]), z.dtype), jnp.full(len(z), 1e30, z.dtype))
    means, _ = lax.fori_loop(0, LEAVES, choose, start)
    return nearest(lax.fori_loop(0, _LLOYD_STEPS, step, means))
