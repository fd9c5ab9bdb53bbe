"""Alternatives to the methods of `fit`: the exact product, int8, products of low rank, sketches.

Product quantization is in quantizers.py. All are learned from the same rows and are plain JAX that XLA compiles.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from benchmarks.approximation import Approximation, Method, in_ranks, one_size
from benchmarks.contenders import int8_columns, int8_dynamic

if TYPE_CHECKING:
    from jaxtyping import Array, Float

SPARSE_ROWS = 1000
"""Number of rows that sparse PCA learns from; with more it would take longer than minutes."""
SPARSE_RANK = 32
"""The largest number of sparse components."""


def exact(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """XLA's product in float32, to which all times are relative."""
    return Approximation(_affine, (jnp.asarray(w), jnp.asarray(b)))


def _affine(x: Array, operands: tuple[Array, Array]) -> Array:
    w, b = operands
    return x @ w + b


def int8(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """XLA's int8 dot, with a scale per row of `x`, computed at run time, and one per output."""
    return Approximation(_int8, (*int8_columns(jnp.asarray(w)), jnp.asarray(b)))


def _int8(x: Array, operands: tuple[Array, Array, Array]) -> Array:
    w8, w_step, b = operands
    return int8_dynamic(x, w8, w_step) + b


def low_rank(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """The best product of rank r for these rows (reduced-rank regression).

    With the covariance `S = L @ L.T` of the rows, the error of the outputs is `|L.T @ (w - w_r)|^2`, so that `w_r`
    keeps the first r right singular vectors of `L.T @ w`.
    """
    _, covariance = _moments(x_train)
    _, _, right = np.linalg.svd(np.linalg.cholesky(covariance).T @ w, full_matrices=False)
    return projected(x_train, w, b, w @ right[:size].T)


def pca(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """A projection on the first r principal components of the rows, which do not depend on `w`."""
    return projected(x_train, w, b, np.linalg.eigh(_moments(x_train)[1])[1][:, ::-1][:, :size])


def sparse_pca(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """A projection on sparse components by scikit-learn, timed as a dense product, as XLA has no faster sparse one."""
    from sklearn.decomposition import MiniBatchSparsePCA

    rows = np.random.default_rng(0).permutation(len(x_train))[:SPARSE_ROWS]
    x = x_train[rows] - x_train[rows].mean(0)
    size = min(size, SPARSE_RANK)
    with single_threaded():
        estimator = MiniBatchSparsePCA(size, batch_size=64, max_iter=30, method="cd", random_state=0)
        components = estimator.fit(x / max(float(x.std()), 1e-30)).components_
    return projected(x_train, w, b, components.T)


def random(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """A Gaussian sketch `x @ p` of r numbers, from which least squares, not `p.T @ w`, predicts the outputs."""
    return projected(x_train, w, b, np.random.default_rng(0).standard_normal((len(w), size)))


def projected(
    x_train: np.ndarray, w: np.ndarray, b: np.ndarray, p: Float[np.ndarray, "features rank"]
) -> Approximation:
    """Learns `(x @ p) @ a + c` by least squares on the training rows; it takes r * (D + M) multiply-adds per row.

    With full rank it is exact for any `p`, because the shrunk covariance of `_moments` has variance in all directions.
    """
    mean, covariance = _moments(x_train)
    a = np.linalg.lstsq(p.T @ covariance @ p, p.T @ covariance @ w)[0]
    c = b + mean @ (w - p @ a)
    return Approximation(_projected, tuple(jnp.asarray(each, jnp.float32) for each in (p, a, c)))


def _projected(x: Array, operands: tuple[Array, Array, Array]) -> Array:
    p, a, c = operands
    return (x @ p) @ a + c


def _moments(x: np.ndarray) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, "features features"]]:
    """Returns the mean and the covariance, shrunk toward a multiple of the identity (Ledoit & Wolf 2004).

    The covariance has the eigenvectors of the sample covariance and is never singular, even with few rows or constant
    features.
    """
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(np.asarray(x, np.float64))
    floor = 1e-9 * max(float(np.trace(covariance)) / len(covariance), 1e-30)
    return x.mean(0, dtype=np.float64), covariance + floor * np.eye(len(covariance))


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Limits scikit-learn to one thread, as more would mostly wait on small problems, and silences its warnings."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def few_ranks(features: int, outputs: int, codebooks: object) -> dict[str, int]:
    """Returns the ranks up to `SPARSE_RANK`."""
    return {label: rank for label, rank in in_ranks(features, outputs, ()).items() if rank <= SPARSE_RANK}


METHODS = (
    Method("exact", exact, one_size),
    Method("int8", int8, one_size),
    Method("low-rank", low_rank, in_ranks, needs="sklearn"),
    Method("pca", pca, in_ranks, needs="sklearn"),
    Method("sparse-pca", sparse_pca, few_ranks, needs="sklearn"),
    Method("random", random, in_ranks, needs="sklearn"),
)
