"""Learns the centers of lists by k-means, and finds the center that is nearest to each vector."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32

from jax_maddness.learn.data import shapes

PER_LIST = 128
"""Greatest number of vectors for each list that centers are learned from."""
STEPS = 10
"""Number of Lloyd's steps."""
_AT_ONCE = 2**19  # products of vectors with centers that are in memory at once: so many stay in the cache


def learn(
    sample: Float[np.ndarray, "sample features"],
    num_lists: int,
    rng: np.random.Generator,
    step: Callable[[], None] = lambda: None,
) -> Float[np.ndarray, "lists features"]:
    """Learns centers by Lloyd's steps, from vectors of the sample as the first centers.

    A center that no vector is nearest to moves to the vector that is farthest from its own center, one for each.

    Args:
      sample: vectors, at least as many as there are lists.
      num_lists: number of centers.
      rng: chooses the first centers.
      step: is called after each of `STEPS` steps.
    """
    centers = sample[np.sort(rng.choice(len(sample), num_lists, replace=False))].astype(np.float32)
    for _ in range(STEPS):
        nearest, distances = assign(sample, centers)
        order = np.argsort(nearest, kind="stable")
        counts = np.bincount(nearest, minlength=num_lists)
        filled = np.flatnonzero(counts)
        starts = (np.cumsum(counts) - counts)[filled]
        centers = centers.copy()
        centers[filled] = np.add.reduceat(sample[order], starts, axis=0, dtype=np.float32) / counts[filled, None]
        empty = np.flatnonzero(counts == 0)
        centers[empty] = sample[np.argsort(-distances, kind="stable")[: len(empty)]]
        step()
    return centers


def assign(
    x: Float[np.ndarray, "rows features"], centers: Float[np.ndarray, "lists features"]
) -> tuple[Int32[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Returns the nearest center of each row, of equal ones the first, and its squared distance."""
    most = max(_AT_ONCE // len(centers), shapes.ROWS)
    size = min(most, shapes.rounded(len(x), shapes.ROWS))
    on_device = jnp.asarray(centers)
    nearest, distances = [], []
    for at in range(0, len(x), size):
        rows = x[at : at + size]
        found = _nearest(shapes.pad(rows, size, x.shape[1]), on_device)
        nearest.append(np.asarray(found[0])[: len(rows)])
        distances.append(np.asarray(found[1])[: len(rows)])
    none = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return np.concatenate([none[0], *nearest]), np.concatenate([none[1], *distances])


@jax.jit
def _nearest(
    x: Float[Array, "rows features"], centers: Float[Array, "lists features"]
) -> tuple[Int32[Array, " rows"], Float[Array, " rows"]]:
    # By columns and without `argmax`, which takes several times as long on CPUs as the product.
    gains = lax.optimization_barrier(centers @ x.T - (centers * centers).sum(-1)[:, None] / 2)
    greatest = gains.max(0)
    numbers = jnp.arange(centers.shape[0], dtype=jnp.int32)[:, None]
    nearest = jnp.where(gains >= greatest[None, :], numbers, centers.shape[0]).min(0)
    return nearest, jnp.maximum((x * x).sum(-1) - 2 * greatest, 0.0)
