"""Codes for distances: the squared length of what the codes of a vector stand for, in a codebook of its own.

With `v` approximated by `p`, the sum of its prototypes, and the residual `e = v - p`,

    |q - v|^2 = |q - p|^2 - 2 (q - p) . e + |e|^2

The middle term has the mean zero if `e` has nothing to do with `q`, and cancels most of `|e|^2` if `q` is as near to
`v` as it can be. Half of `|e|^2` is between both. Hence a query's product with `v`, to which half the distance is
equal up to what depends on the query only, is approximated by

    q . p + number(v),    number(v) = -(|p|^2 + SHARE * |e|^2) / 2

where `|v|^2` in place of `|p|^2` would not know of the error of `p`. The number is the sum of one constant per
codebook. Those of the first codebooks are learned by regression on the codes, and the last codebook has 16 constants
and no prototypes, for what is left. With a single codebook, nothing is done about what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jax_maddness.core.types import LEAVES
from jax_maddness.retrieval import quantizer
from jax_maddness.retrieval.quantizer import Quantizer

SHARE = 0.5
"""The share of `|e|^2` in a number. With 0 and with 1, more candidates of sentence embeddings were needed; of image
gradients with 0, and with 1 about as many."""


def learn(
    sample: Float[np.ndarray, "sample features+1"],
    moment: Float[np.ndarray, "features+1 features+1"],
    num_codebooks: int,
    seed: int,
    step: Callable[[], None],
) -> Quantizer:
    """Learns prototypes and constants; the arguments are those of `quantizer.learn`. The last feature is not used."""
    sample, moment = sample.copy(), moment.copy()
    sample[:, -1] = moment[-1] = moment[:, -1] = 0.0
    learned = quantizer.learn(sample, moment, max(num_codebooks - 1, 1), seed, step)
    codes = quantizer.encode(learned, sample)
    wanted = numbers(learned, sample, codes, SHARE)
    center = np.asarray(learned.center).copy()
    center[-1] = wanted.mean(dtype=np.float64)
    constants = quantizer.regress(wanted[:, None], codes, center[-1:], np.eye(1)).constants
    learned = learned._replace(constants=constants, center=jnp.asarray(center))
    if num_codebooks == 1:
        return learned
    left = wanted - center[-1] - chosen_constants(learned, codes)
    none = np.zeros((1, *learned.prototypes.shape[1:]), np.float32)
    return Quantizer(
        jnp.concatenate([learned.prototypes, none]),
        jnp.concatenate([constants, levels(left, seed)[None]]),
        jnp.concatenate([learned.encoder, np.pad(none, ((0, 0), (0, 0), (0, 1)))]),
        learned.center,
    )


def levels(left: Float[np.ndarray, " rows"], seed: int) -> Float[np.ndarray, " 16"]:
    """Returns 16 constants, to the nearest of which numbers like `left` are rounded; 0 where fewer are enough."""
    codes = np.asarray(quantizer.k_means(left[:, None, None], np.ones(len(left), bool), jax.random.key(seed)))[:, 0]
    counts = np.bincount(codes, minlength=LEAVES)
    return (np.bincount(codes, left, minlength=LEAVES) / np.maximum(counts, 1)).astype(np.float32)


def encode(
    learned: Quantizer, x: Float[np.ndarray, "rows features+1"], share: float, step: Callable[[], None] = lambda: None
) -> UInt8[np.ndarray, "rows codebooks"]:
    """Encodes vectors: first their prototypes, then the constant that is nearest to what is left of their numbers.

    Args:
      learned: the result of `learn`.
      x: vectors, whose last feature is not used.
      share: `SHARE`, as it was when the index was built.
      step: is called after each block of vectors.
    """
    codes = quantizer.encode(learned, x, step=step)  # the encoder of the last codebook is zero: its codes are 0
    if len(learned.prototypes) == 1 or not len(x):
        return codes
    first, last = learned._replace(constants=learned.constants[:-1]), np.asarray(learned.constants)[-1]
    left = numbers(learned, x, codes, share) - np.asarray(learned.center)[-1]
    left -= chosen_constants(first, codes[:, :-1])
    codes[:, -1] = np.abs(left[:, None] - last).argmin(1)
    return codes


def numbers(
    learned: Quantizer,
    x: Float[np.ndarray, "rows features+1"],
    codes: UInt8[np.ndarray, "rows codebooks"],
    share: float,
) -> Float[np.ndarray, " rows"]:
    """Returns `number(v)` of each vector, given its codes."""
    result = np.zeros(len(x), np.float32)
    for rows in _blocks(len(x)):
        p = quantizer.decoded(learned, codes[rows])[:, :-1]
        e = x[rows, :-1] - p
        result[rows] = -(np.einsum("vd,vd->v", p, p) + share * np.einsum("vd,vd->v", e, e)) / 2
    return result


def chosen_constants(learned: Quantizer, codes: UInt8[np.ndarray, "rows codebooks"]) -> Float[np.ndarray, " rows"]:
    """Returns the sum of the constants that each row's codes stand for."""
    constants = np.asarray(learned.constants)
    return constants[np.arange(len(constants)), codes].sum(1)


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(at, at + quantizer.BLOCK) for at in range(0, rows, quantizer.BLOCK))
