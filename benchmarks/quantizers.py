"""What the methods of `fit` are compared with: product quantisation, k-means codes in place of trees.

Codes are the nearest of 16 prototypes per codebook, contiguous features to a codebook; tables hold the prototypes'
products with `w`, in 8 bits, and `aggregate` adds them as it does ours: so look-ups cost the same, and the encoding
makes the difference. It is the quickest of six that were tried in XLA.
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
"""Rows that k-means sees at most."""
QUANTILES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Shares of entries that Bolt's tables may clip at either end."""

Prototypes = np.ndarray
"""[codebooks, 16, width]"""


def pq(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """Product quantisation (Jegou et al. 2011)."""
    prototypes = k_means(x_train, size)
    return Approximation(_look_up, (_squares(prototypes), _rescaled(_products(prototypes, w), b)))


def bolt(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """The same codes with the tables of Bolt (Blalock & Guttag 2017, section 3.2): see `shared_scale`."""
    prototypes = k_means(x_train, size)
    return Approximation(_look_up, (_squares(prototypes), shared_scale(_products(prototypes, w), b)))


def opq(x_train: np.ndarray, w: np.ndarray, b: np.ndarray, size: int) -> Approximation:
    """After a rotation: principal components, dealt to codebooks so that all have alike products of variances.

    The parametric solution of optimised product quantisation (Ge et al. 2013). It costs D * D MACs a row.
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
    """After faiss's rotation, which alternates with k-means (the non-parametric solution of the same paper)."""
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
    """Product quantisation of `x @ rotation`."""
    rotation = rotation.astype(np.float32)
    found = pq(x_train @ rotation, rotation.T @ w, b, size)
    return Approximation(_rotate_and_look_up, (jnp.asarray(rotation), found.operands))


def k_means(x: np.ndarray, codebooks: int) -> Prototypes:
    """16 prototypes for each codebook's features; some twice where there are fewer distinct rows."""
    from sklearn.cluster import KMeans

    x = np.random.default_rng(0).permutation(x)[:ROWS]
    clusters = min(LEAVES, len(x))
    with single_threaded():
        found = [
            KMeans(clusters, n_init=1, max_iter=50, random_state=0).fit(part).cluster_centers_
            for part in _parts(x, codebooks).transpose(1, 0, 2)
        ]
    return np.stack([np.resize(centers, (LEAVES, centers.shape[1])) for centers in found])


def _parts(x: Any, codebooks: int) -> Any:
    """[rows, features] -> [rows, codebooks, width]: contiguous features, and a zero where there is one too few."""
    if x.shape[1] % codebooks == 0:
        return x.reshape(len(x), codebooks, -1)
    shares = np.array_split(np.arange(x.shape[1]), codebooks)
    index = np.stack([np.pad(s, (0, len(shares[0]) - len(s)), constant_values=x.shape[1]) for s in shares])
    return (np if isinstance(x, np.ndarray) else jnp).pad(x, ((0, 0), (0, 1)))[:, index]


def _squares(prototypes: Prototypes) -> tuple[Array, Array]:
    """What distances are made of: prototypes, and half their squares."""
    return jnp.asarray(prototypes), jnp.asarray((prototypes**2).sum(-1) / 2)


def _products(prototypes: Prototypes, w: np.ndarray) -> Float[np.ndarray, "codebooks 16 outputs"]:
    return np.einsum("ckd,mcd->ckm", prototypes, _parts(np.ascontiguousarray(w.T), len(prototypes)), optimize=True)


def _rescaled(tables: np.ndarray, b: np.ndarray) -> jax_maddness.LookupTables:
    """8-bit tables as `fit` makes them: a scale and an offset per output."""
    values, scale, offset = quantize_tables(jnp.asarray(tables), jnp.ones(tables.shape[:2], bool))
    return jax_maddness.LookupTables(values, scale, offset + b)


def shared_scale(tables: Float[np.ndarray, "codebooks 16 outputs"], b: np.ndarray) -> jax_maddness.LookupTables:
    """8-bit tables as Bolt's: one scale for all of them, an offset per codebook, quantiles clipped if that pays.

    Bolt weighs the outer entries by how often queries ask for them; here all columns of `w` are known, and count alike.
    The sums are exact.
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
    """The nearest prototype of each codebook."""
    prototypes, halves = squares
    parts = _parts(x, len(prototypes))
    return jnp.argmin(halves - (parts[:, :, None] * prototypes).sum(-1), -1).astype(jnp.uint8)


def _look_up(x: Array, operands: tuple[tuple[Array, Array], jax_maddness.LookupTables]) -> Array:
    squares, tables = operands
    sums = jax_maddness.aggregate(nearest(x, squares), tables)
    return tables.scale * sums.astype(jnp.float32) + tables.offset


def _rotate_and_look_up(x: Array, operands: tuple[Array, Any]) -> Array:
    rotation, rest = operands
    return _look_up(jax.lax.dot(x, rotation), rest)


METHODS = (
    Method("pq", pq, in_codebooks, needs="sklearn"),
    Method("opq", opq, in_codebooks, needs="sklearn"),
    Method("opq-faiss", opq_faiss, in_codebooks, needs="faiss"),
    Method("bolt", bolt, in_codebooks, needs="sklearn"),
)
