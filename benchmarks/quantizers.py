"""Alternatives to the methods of `fit`: product quantization, with k-means codes in place of trees.

A code is the nearest of 16 prototypes of a codebook, which has contiguous features. Tables hold the products of the
prototypes with `w` in 8 bits, and `aggregate` adds them as for `fit`: look-ups cost the same, and only the encoding
differs. It is the fastest of six encodings that were tried in XLA.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks.approximation import Approximation, Method, in_codebooks
from benchmarks.baselines import single_threaded
from jax_maddness.core.types import LEAVES
from jax_maddness.learn.tables.quantize import STEPS, quantize_tables

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8

ROWS = 20_000
"""Greatest number of rows that k-means learns from."""
QUANTILES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Shares of entries that Bolt's tables may clip at either end."""

Prototypes = np.ndarray
"""An array [codebooks, 16, width]."""


def pq(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """Product quantization (Jegou et al. 2011)."""
    prototypes = k_means(x_train, size)
    return Approximation(_look_up, (_squares(prototypes), _rescaled(_products(prototypes, w), b)))


def bolt(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """The same codes with the tables of Bolt (Blalock & Guttag 2017, section 3.2): see `shared_scale`."""
    prototypes = k_means(x_train, size)
    return Approximation(_look_up, (_squares(prototypes), shared_scale(_products(prototypes, w), b)))


def opq(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """Product quantization of principal components, dealt to codebooks such that products of variances are similar.

    This is the parametric solution of optimized product quantization (Ge et al. 2013). It takes D * D multiply-adds per
    row.
    """
    variances, vectors = np.linalg.eigh(np.cov(x_train.T.astype(np.float64)))
    logs = np.log(np.maximum(variances, 1e-9 * max(variances[-1], 1e-30)))
    logs -= logs.min()
    room = [len(share) for share in np.array_split(logs, size)]
    shares: list[list[int]] = [[] for _ in room]
    for i in np.argsort(-logs):
        open_ones = [share for share, most in zip(shares, room, strict=True) if len(share) < most]
        min(open_ones, key=lambda share: logs[share].sum() if share else 0.0).append(i)
    return rotated(x_train, w, b, size, vectors[:, [i for share in shares for i in share]])


def opq_faiss(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """Product quantization after the rotation of faiss (the non-parametric solution of Ge et al. 2013)."""
    faiss: Any = importlib.import_module("faiss")
    width = -(-len(w) // size) * size
    quantizer = faiss.ProductQuantizer(width, size, 4)
    quantizer.cp.min_points_per_centroid = 1
    rotation = faiss.OPQMatrix(len(w), size, width)
    rotation.pq, rotation.niter, rotation.max_train_points = quantizer, 20, ROWS
    with single_threaded():
        rotation.train(np.resize(x_train, (max(LEAVES, len(x_train)), len(w))))
    return rotated(x_train, w, b, size, faiss.vector_to_array(rotation.A).reshape(width, len(w)).T)


def rotated(
    x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int, rotation: Float[np.ndarray, "features rotated"]
) -> Approximation:
    """Product quantization of `x @ rotation`."""
    rotation = rotation.astype(np.float32)
    quantized = pq(x_train @ rotation, rotation.T @ w, b, size)
    return Approximation(_rotate_and_look_up, (jnp.asarray(rotation), quantized.operands))


def k_means(x: np.ndarray, codebooks: int) -> Prototypes:
    """Learns 16 prototypes of the features of each codebook; with fewer rows, some are repeated."""
    from sklearn.cluster import KMeans

    x = np.random.default_rng(0).permutation(x)[:ROWS]
    clusters = min(LEAVES, len(x))
    with single_threaded():
        centers_of_codebooks = [
            KMeans(clusters, n_init=1, max_iter=50, random_state=0).fit(part).cluster_centers_
            for part in _parts(x, codebooks).transpose(1, 0, 2)
        ]
    return np.stack([np.resize(centers, (LEAVES, centers.shape[1])) for centers in centers_of_codebooks])


def _parts(x: Any, codebooks: int) -> Any:
    """Splits `x [rows, features]` into [rows, codebooks, width] of contiguous features, padded with zeros."""
    if x.shape[1] % codebooks == 0:
        return x.reshape(len(x), codebooks, -1)
    shares = np.array_split(np.arange(x.shape[1]), codebooks)
    index = np.stack([np.pad(s, (0, len(shares[0]) - len(s)), constant_values=x.shape[1]) for s in shares])
    return (np if isinstance(x, np.ndarray) else jnp).pad(x, ((0, 0), (0, 1)))[:, index]


def _squares(prototypes: Prototypes) -> tuple[Array, Array]:
    """Returns the operands of `nearest`: the prototypes and half their squared lengths."""
    return jnp.asarray(prototypes), jnp.asarray((prototypes**2).sum(-1) / 2)


def _products(prototypes: Prototypes, w: np.ndarray) -> Float[np.ndarray, "codebooks 16 outputs"]:
    return np.einsum("ckd,mcd->ckm", prototypes, _parts(np.ascontiguousarray(w.T), len(prototypes)), optimize=True)


def _rescaled(tables: np.ndarray, b: np.ndarray) -> jax_maddness.LookupTables:
    """Makes 8-bit tables as `fit` does, with a scale and an offset per output."""
    values, scale, offset = quantize_tables(jnp.asarray(tables), jnp.ones(tables.shape[:2], bool))
    return jax_maddness.LookupTables(values, scale, offset + b)


def shared_scale(tables: Float[np.ndarray, "codebooks 16 outputs"], b: np.ndarray) -> jax_maddness.LookupTables:
    """Makes 8-bit tables as Bolt does: one scale for all, an offset per codebook, and quantiles clipped if that helps.

    Bolt weights entries by their frequency in queries; here all columns of `w` are known and have equal weight. The
    sums are exact.
    """
    best = (np.inf, np.zeros(tables.shape, np.uint8), 0.0, 0.0)
    for share in QUANTILES:
        low, high = np.quantile(tables, (share, 1 - share), axis=(1, 2), keepdims=True)
        scale = max(float((high - low).max()), 1e-30) / STEPS
        values = np.clip(np.round((tables - low) / scale), 0, STEPS)
        error = float(((values * scale + low - tables) ** 2).sum())
        if error < best[0]:
            best = (error, values.astype(np.uint8), scale, float(low.sum()))
    _, values, scale, offset = best
    by_output = jnp.asarray(np.ascontiguousarray(values.transpose(2, 0, 1)))
    return jax_maddness.LookupTables(by_output, jnp.full(len(b), scale, jnp.float32), jnp.float32(offset + b))


def nearest(x: Array, squares: tuple[Array, Array]) -> UInt8[Array, "rows codebooks"]:
    """Encodes rows as the nearest prototype of each codebook."""
    prototypes, halves = squares
    parts = _parts(x, len(prototypes))
    return jnp.argmin(halves - (parts[:, :, None] * prototypes).sum(-1), -1).astype(jnp.uint8)


def _look_up(x: Array, operands: tuple[tuple[Array, Array], jax_maddness.LookupTables]) -> Array:
    squares, tables = operands
    sums = jax_maddness.aggregate(nearest(x, squares), tables)
    return tables.scale * sums.astype(jnp.float32) + tables.offset


def _rotate_and_look_up(x: Array, operands: tuple[Array, Any]) -> Array:
    rotation, inner_operands = operands
    return _look_up(jax.lax.dot(x, rotation), inner_operands)


METHODS = (
    Method("pq", pq, in_codebooks, needs="sklearn"),
    Method("opq", opq, in_codebooks, needs="sklearn"),
    Method("opq-faiss", opq_faiss, in_codebooks, needs="faiss"),
    Method("bolt", bolt, in_codebooks, needs="sklearn"),
)
