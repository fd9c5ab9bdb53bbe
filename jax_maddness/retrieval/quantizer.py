"""Additive quantization of the vectors of an index: learns prototypes and finds codes.

A vector is approximated by a sum of prototypes, one of each codebook, all of them dense. Then its product with a query
is a sum of look-ups: `q . v` is about `sum_c q . prototypes[c, code_c(v)]`. A number that is added to products (a bias,
or minus half the squared length for distances) is treated as one more feature, which is 1 in every query. The error of
products matters, so codes minimize `e^T M e`, where `e` is the residual of the vector and `M` are weights made from the
second moment of the queries; `criterion.py` has these, and what is added for each metric. Vectors are encoded once and
searched often, so that codes may take long to find.

    sample --rotation--> groups --k_means--> codes --+--> prototypes, by ridge regression (learn/tables/ridge.py)
                                                ^    |
                                                +----+  encode: each codebook's code in turn, given the others'

The start is product quantization (`product_quantization.py`). The alternation after it is additive quantization
(Babenko & Lempitsky 2014), with codes found by coordinate descent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jaxtyping import Array, Float, UInt8

from jax_maddness.core.types import LEAVES
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.statistics import Statistics
from jax_maddness.learn.tables.ridge import ridge_regression
from jax_maddness.learn.validate import largest
from jax_maddness.retrieval.lists import Bases
from jax_maddness.retrieval.product_quantization import first_codes
from jax_maddness.retrieval.second_term import SecondTerm, likely_queries

BLOCK = 4096
"""Greatest number of vectors that are encoded at once."""
ROUNDS = 4
"""Number of times that prototypes and codes are improved in turn; more rounds hardly help on sentence embeddings."""
SWEEPS = 4
"""Number of times that `encode` chooses the code of every codebook."""
SWEEPS_OF_RESIDUALS = 2
"""The same for residuals of centers: on image descriptors 4 hardly find more, and many vectors take long to encode."""
_FEW = (1, 8)
"""Sizes of blocks of few vectors, as `add_vectors` is given; others are padded to `shapes.ROWS` and more."""
_RIDGE = 0.1  # in rows; small, as it has to regularize the prototypes of rare codes only
_dot = functools.partial(jnp.matmul, precision="highest")


class Quantizer(NamedTuple):
    """The prototypes that codes stand for, in float32.

    Attributes:
      prototypes: the sum of one prototype per codebook approximates a vector minus the mean vector.
      constants: the sum of one constant per codebook approximates the number that is added to the products of a vector,
        minus its mean.
      encoder: `[prototypes, constants] @ M`, from which `encode` computes the gain of each code.
      center: the mean vector, then the mean of the number that is added.
    """

    prototypes: Float[Array, "codebooks 16 features"]
    constants: Float[Array, "codebooks 16"]
    encoder: Float[Array, "codebooks 16 features+1"]
    center: Float[Array, " features+1"]


export.register_namedtuple_serialization(Quantizer, serialized_name="jax_maddness.Quantizer")


def learn(
    sample: Float[np.ndarray, "sample features+1"],
    moment: Float[np.ndarray, "features+1 features+1"],
    num_codebooks: int,
    seed: int,
    step: Callable[[], None],
) -> Quantizer:
    """Learns prototypes for vectors like those of `sample`, the errors of which have the weights `moment`.

    Args:
      sample: vectors, with the number that is added to their products as the last feature.
      moment: weights M, such as the second moment of the queries, whose last feature is 1.
      num_codebooks: C.
      seed: seed of k-means.
      step: is called after each of `ROUNDS + 1` parts, to report progress.
    """
    center = sample.mean(0, dtype=np.float64).astype(np.float32)
    codes = first_codes(sample - center, moment, num_codebooks, seed)
    step()
    for _ in range(ROUNDS):
        quantizer = regress(sample, codes, center, moment)
        codes = encode(quantizer, sample, start=codes, sweeps=1)
        step()
    return regress(sample, codes, center, moment)


def regress(
    x: Float[np.ndarray, "rows features+1"],
    codes: UInt8[np.ndarray, "rows codebooks"],
    center: Float[np.ndarray, " features+1"],
    moment: Float[np.ndarray, "features+1 features+1"],
) -> Quantizer:
    """Learns the prototypes that approximate `x - center` best by ridge regression, given its codes.

    The best prototypes do not depend on `moment`, which only enters the encoder. The ridge is increased until the
    solution is finite.
    """
    statistics = Statistics.zeros(codes.shape[1], x.shape[1])
    for rows, code, counted in _blocks(x, codes, center):
        statistics = _add(statistics, rows, code, np.arange(len(rows)) < counted)
    ridge = _RIDGE
    while not np.isfinite(largest(prototypes := _solve(statistics, len(x), ridge))) and ridge < len(x):
        ridge *= 10
    encoder = _dot(prototypes, jnp.float32(moment))
    return Quantizer(prototypes[..., :-1], prototypes[..., -1], encoder, jnp.asarray(center))


def _blocks(x: np.ndarray, codes: np.ndarray, center: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields rows minus `center`, their codes and the number of rows, in padded blocks of one size, to compile once."""
    few = next((size for size in _FEW if len(x) <= size), None)
    size = few or min(BLOCK, shapes.rounded(len(x), shapes.ROWS))
    for at in range(0, len(x), size):
        rows, code = x[at : at + size] - center, codes[at : at + size]
        if len(rows) < size:
            yield shapes.pad(rows, size, x.shape[1]), shapes.pad(code, size, codes.shape[1]), len(rows)
        else:
            yield rows, code, size


@jax.jit
def _add(statistics: Statistics, x: Array, codes: Array, counted: Array) -> Statistics:
    return statistics.add(x, codes, counted)


@jax.jit
def _solve(statistics: Statistics, rows: Array, ridge: Array) -> Float[Array, "codebooks 16 features+1"]:
    solution = ridge_regression(statistics.gram, statistics.sums, rows, ridge)
    prototypes = solution.weights.reshape(-1, LEAVES, statistics.sums.shape[1])
    return prototypes.at[0].add(solution.intercept)  # every vector has one code of the first codebook


def encode(
    quantizer: Quantizer,
    x: Float[np.ndarray, "rows features+1"],
    start: UInt8[np.ndarray, "rows codebooks"] | None = None,
    sweeps: int = SWEEPS,
    step: Callable[[], None] = lambda: None,
    term: SecondTerm | None = None,
    bases: Bases | None = None,
    gram: Float[Array, "codes codes"] | None = None,
) -> UInt8[np.ndarray, "rows codebooks"]:
    """Encodes vectors by coordinate descent: chooses the code of each codebook in turn, `sweeps` times.

    Starting from the codes of product quantization reduces the error by a tenth, but recall is the same.

    Args:
      quantizer: the prototypes.
      x: vectors, with the number that is added to their products as the last feature.
      start: the codes to start from; None: no codebook has a code at first.
      sweeps: number of times that the code of every codebook is chosen.
      step: is called after each block of `BLOCK` vectors, to report progress.
      term: the second term of the error, if it has one.
      bases: what the vectors are residuals of; the second term is that of the vectors themselves.
      gram: the result of `gram_of`, which takes longer than to encode a few vectors; None: it is computed here.
    """
    codes = np.zeros((len(x), len(quantizer.prototypes)), np.uint8) if start is None else start
    improved = []
    at = 0
    for rows, code, count in _blocks(x, codes, np.asarray(quantizer.center)):
        of_rows = slice(at, at + count)
        base = None if term is None or bases is None else shapes.pad(bases.at(of_rows), len(rows), x.shape[1])
        better = _improve(quantizer, rows, code, start is not None, sweeps, term, base, gram)
        improved.append(np.asarray(better)[:count])
        at += count
        step()
    return np.concatenate([codes[:0], *improved])


def sweeps_of(bases: Bases | None) -> int:
    """Returns the number of times that `encode` chooses the code of every codebook for vectors, or for residuals."""
    return SWEEPS if bases is None else SWEEPS_OF_RESIDUALS


@jax.jit
def gram_of(quantizer: Quantizer) -> Float[Array, "codes codes"]:
    """Returns the products of all prototypes with all rows of the encoder."""
    prototypes, encoder = _flat(quantizer)
    return _dot(prototypes, encoder.T)


def _flat(quantizer: Quantizer) -> tuple[Float[Array, "codes features+1"], Float[Array, "codes features+1"]]:
    """Returns the prototypes, with their constants, and the encoder, a row for each code of each codebook."""
    prototypes = jnp.concatenate([quantizer.prototypes, quantizer.constants[..., None]], -1)
    return prototypes.reshape(-1, prototypes.shape[-1]), quantizer.encoder.reshape(-1, prototypes.shape[-1])


@jax.jit
def _improve(
    quantizer: Quantizer,
    x: Array,
    codes: Array,
    started: Array,
    sweeps: Array,
    term: SecondTerm | None,
    base: Array | None,
    gram: Array | None,
) -> UInt8[Array, "rows codebooks"]:
    """Chooses the code of each codebook in turn, given the codes of the others.

    The best prototype `k` of a codebook is the one for which `x^T M k - k^T M k / 2 - sum_p p^T M k` is greatest, where
    `p` runs over the prototypes of the other codebooks' codes. Codes are one-hot, so that this sum is a product. Before
    a codebook has a code, the mean of its prototypes takes the place of one.

    The second term adds `(u.x - mean - sum_p u.p) u.k - (u.k)^2 / 2`.
    """
    codebooks = len(quantizer.prototypes)
    prototypes, encoder = _flat(quantizer)
    gram = gram_of(quantizer) if gram is None else gram
    gains = x @ encoder.T - jnp.diagonal(gram) / 2
    codebook = jnp.arange(codebooks * LEAVES) // LEAVES
    gram = jnp.where(codebook[:, None] == codebook, 0.0, gram)
    if term is not None:
        u = likely_queries(x + quantizer.center + (0.0 if base is None else base), term)
        along, error = _dot(u, prototypes.T), (u * x).sum(-1, keepdims=True) - term.mean

    def step(i: Array, chosen: Array) -> Array:
        at = i % codebooks * LEAVES
        others = chosen @ lax.dynamic_slice_in_dim(gram, at, LEAVES, 1)
        gain = lax.dynamic_slice_in_dim(gains, at, LEAVES, 1) - others
        if term is not None:
            parts, own = chosen * along, lax.dynamic_slice_in_dim(along, at, LEAVES, 1)
            removed = lax.dynamic_slice_in_dim(parts, at, LEAVES, 1).sum(-1, keepdims=True)
            gain += (error - parts.sum(-1, keepdims=True) + removed - own / 2) * own
        best = gain.argmax(-1)
        return lax.dynamic_update_slice_in_dim(chosen, jax.nn.one_hot(best, LEAVES, dtype=x.dtype), at, 1)

    chosen = jax.nn.one_hot(codes, LEAVES, dtype=x.dtype).reshape(gains.shape)
    chosen = jnp.where(started, chosen, 1 / LEAVES)
    chosen = lax.fori_loop(0, sweeps * codebooks, step, chosen)
    return chosen.reshape(len(x), codebooks, LEAVES).argmax(-1).astype(jnp.uint8)


def residuals(
    quantizer: Quantizer, x: Float[np.ndarray, "rows features+1"], codes: UInt8[np.ndarray, "rows codebooks"]
) -> Float[np.ndarray, "rows features+1"]:
    """Returns vectors minus what their codes stand for."""
    return x - decoded(quantizer, codes)


def decoded(quantizer: Quantizer, codes: UInt8[np.ndarray, "rows codebooks"]) -> Float[np.ndarray, "rows features+1"]:
    """Returns what codes stand for: the center, and a prototype and a constant for each code."""
    prototypes, constants, center = map(np.asarray, (quantizer.prototypes, quantizer.constants, quantizer.center))
    both = np.concatenate([prototypes, constants[..., None]], -1)
    return center + sum(both[c, codes[:, c]] for c in range(len(both)))
