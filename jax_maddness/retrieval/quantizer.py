"""vectors -> prototypes -> codes: additive quantisation, for vectors at rest, whose codes may take long to find.

A vector is approximated by a sum of prototypes, one of each codebook, all of them dense; then its product with a query
is a sum of look-ups: `q . v` is about `sum_c q . prototypes[c, code_c(v)]`. What is added to products (a bias, or half
the squared length for distances) is one feature more, which queries have as 1. What counts is the error of products, so
codes minimise `e^T M e` with `e` what the sum leaves of the vector, and `M` the second moment of the queries.

    sample --rotation--> groups --k_means--> codes --+--> prototypes, by ridge regression (learn/tables/ridge.py)
                                                ^    |
                                                +----+  encode: each codebook's code in turn, given the others'

The start is product quantisation (Jegou et al. 2011) of principal components, dealt out to groups whose products of
variances are about equal (Ge et al. 2013); alternating after it is additive quantisation (Babenko & Lempitsky 2014),
its codes found by coordinate descent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt8

from jax_maddness.core.types import LEAVES
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.statistics import Statistics
from jax_maddness.learn.tables.ridge import ridge_regression
from jax_maddness.learn.validate import largest

BLOCK = 4096
"""Vectors that are encoded at once, at most."""
ROUNDS = 4
"""Times that prototypes and codes are improved in turn: on sentence embeddings more bring next to nothing."""
SWEEPS = 4
"""Times that `encode` considers every codebook's code."""
_LLOYD_STEPS = 10
_RIDGE = 0.1  # in rows: for codes that are rare; there are mostly as many rows as vectors to approximate
_dot = functools.partial(jnp.matmul, precision="highest")


class Quantizer(NamedTuple):
    """What codes stand for.

    Attributes:
      prototypes: their sum, one of each codebook, is a vector less its mean.
      constants: the same for what is added to products.
      encoder: `[prototypes, constants] @ M`.
      center: the mean vector, and the mean of what is added.
    """

    prototypes: Float[Array, "codebooks 16 features"]
    constants: Float[Array, "codebooks 16"]
    encoder: Float[Array, "codebooks 16 features+1"]
    center: Float[Array, " features+1"]


def learn(
    sample: Float[np.ndarray, "sample features+1"],
    moment: Float[np.ndarray, "features+1 features+1"],
    num_codebooks: int,
    seed: int,
    step: Callable[[], None],
) -> Quantizer:
    """Prototypes for vectors like those of `sample`, and queries with the second moment `moment`.

    Calls `step` after each of `ROUNDS + 1` parts.
    """
    center = sample.mean(0, dtype=np.float64).astype(np.float32)
    codes = first_codes(sample - center, moment, num_codebooks, seed)
    step()
    for _ in range(ROUNDS):
        quantizer = regress(sample, codes, center, moment)
        codes = encode(quantizer, sample, start=codes, sweeps=1)
        step()
    return regress(sample, codes, center, moment)


def first_codes(
    x: Float[np.ndarray, "sample features"],
    moment: Float[np.ndarray, "features features"],
    num_codebooks: int,
    seed: int,
) -> UInt8[np.ndarray, "sample codebooks"]:
    """Product quantisation of the principal components of `x M^(1/2)`, of rows with mean 0."""
    values, axes = np.linalg.eigh(moment)
    root = axes * np.sqrt(np.maximum(values, 0.0))
    covariance = root.T @ (x.T @ x / np.float32(len(x))).astype(np.float64) @ root
    variances, directions = np.linalg.eigh(covariance)
    rotation = (root @ directions)[:, ::-1].astype(np.float32)
    groups = deal(variances[::-1], num_codebooks)
    z = np.pad(x @ rotation, ((0, 0), (0, 1)))[:, groups]  # group member -1 is the zero at the end
    padded = shapes.pad(z, shapes.rounded(len(z), shapes.ROWS), *z.shape[1:])
    return np.asarray(k_means(padded, np.arange(len(padded)) < len(z), jax.random.key(seed)))[: len(z)]


def deal(variances: Float[np.ndarray, " features"], num_codebooks: int) -> Int32[np.ndarray, "codebooks width"]:
    """Deals components, the largest first, to the group whose variances have the least product so far.

    Groups are of equal width; -1 stands for no component.

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
    """Each codebook's nearest of 16 means, which k-means++ (Arthur & Vassilvitskii 2007) and Lloyd's steps find.

    Only rows that are `counted` matter.
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


def regress(
    x: Float[np.ndarray, "rows features+1"],
    codes: UInt8[np.ndarray, "rows codebooks"],
    center: Float[np.ndarray, " features+1"],
    moment: Float[np.ndarray, "features+1 features+1"],
) -> Quantizer:
    """The prototypes that leave the least of `x - center`, given its codes. `M` plays no part in which are best."""
    statistics = Statistics.zeros(codes.shape[1], x.shape[1])
    for rows, code, counted in _blocks(x, codes, center):
        statistics = _add(statistics, rows, code, np.arange(len(rows)) < counted)
    ridge = _RIDGE
    while not np.isfinite(largest(prototypes := _solve(statistics, len(x), ridge))) and ridge < len(x):
        ridge *= 10
    encoder = _dot(prototypes, jnp.float32(moment))
    return Quantizer(prototypes[..., :-1], prototypes[..., -1], encoder, jnp.asarray(center))


def _blocks(x: np.ndarray, codes: np.ndarray, center: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Rows less `center` and their codes in blocks of one size, so that all is compiled once, and how many count."""
    size = min(BLOCK, shapes.rounded(len(x), shapes.ROWS))
    for at in range(0, len(x), size):
        rows, code = x[at : at + size] - center, codes[at : at + size]
        yield shapes.pad(rows, size, x.shape[1]), shapes.pad(code, size, codes.shape[1]), len(rows)


@jax.jit
def _add(statistics: Statistics, x: Array, codes: Array, counted: Array) -> Statistics:
    return statistics.add(x, codes, counted)


@jax.jit
def _solve(statistics: Statistics, rows: Array, ridge: Array) -> Float[Array, "codebooks 16 features+1"]:
    found = ridge_regression(statistics.gram, statistics.sums, rows, ridge)
    prototypes = found.weights.reshape(-1, LEAVES, statistics.sums.shape[1])
    return prototypes.at[0].add(found.intercept)  # every vector has one code of the first codebook


def encode(
    quantizer: Quantizer,
    x: Float[np.ndarray, "rows features+1"],
    start: UInt8[np.ndarray, "rows codebooks"] | None = None,
    sweeps: int = SWEEPS,
    step: Callable[[], None] = lambda: None,
) -> UInt8[np.ndarray, "rows codebooks"]:
    """Codes of vectors: from `start`, or from none, each codebook's code in turn is chosen anew, `sweeps` times.

    A start from product quantisation leaves a tenth less error than one from none, but finds no more neighbours.
    Calls `step` after each block of `BLOCK` vectors.
    """
    codes = np.zeros((len(x), len(quantizer.prototypes)), np.uint8) if start is None else start
    found = []
    for rows, code, count in _blocks(x, codes, np.asarray(quantizer.center)):
        found.append(np.asarray(_improve(quantizer, rows, code, start is not None, sweeps))[:count])
        step()
    return np.concatenate([codes[:0], *found])


@jax.jit
def _improve(
    quantizer: Quantizer, x: Array, codes: Array, started: Array, sweeps: Array
) -> UInt8[Array, "rows codebooks"]:
    """With `p` the prototypes of the other codebooks' codes, prototype `k` leaves the least of `x` where

    `x^T M k - k^T M k / 2 - sum over p of p^T M k` is greatest. Codes are one-hot, so that the sum is a product. Before
    a codebook has a code, it counts as the mean of its prototypes.
    """
    codebooks = len(quantizer.prototypes)
    prototypes = jnp.concatenate([quantizer.prototypes, quantizer.constants[..., None]], -1)
    prototypes, encoder = (a.reshape(codebooks * LEAVES, -1) for a in (prototypes, quantizer.encoder))
    gram = _dot(prototypes, encoder.T)
    gains = x @ encoder.T - jnp.diagonal(gram) / 2
    codebook = jnp.arange(codebooks * LEAVES) // LEAVES
    gram = jnp.where(codebook[:, None] == codebook, 0.0, gram)

    def step(i: Array, chosen: Array) -> Array:
        at = i % codebooks * LEAVES
        others = chosen @ lax.dynamic_slice_in_dim(gram, at, LEAVES, 1)
        best = (lax.dynamic_slice_in_dim(gains, at, LEAVES, 1) - others).argmax(-1)
        return lax.dynamic_update_slice_in_dim(chosen, jax.nn.one_hot(best, LEAVES, dtype=x.dtype), at, 1)

    chosen = jax.nn.one_hot(codes, LEAVES, dtype=x.dtype).reshape(gains.shape)
    chosen = jnp.where(started, chosen, 1 / LEAVES)
    chosen = lax.fori_loop(0, sweeps * codebooks, step, chosen)
    return chosen.reshape(len(x), codebooks, LEAVES).argmax(-1).astype(jnp.uint8)
