"""Codes for distances: the squared length of what the codes of a vector stand for, in codebooks of its own.

With `v` approximated by `p`, the sum of its prototypes, and the residual `e = v - p`,

    |q - v|^2 = |q - p|^2 - 2 (q - p) . e + |e|^2

The middle term has the mean zero if `e` has nothing to do with `q`, and cancels most of `|e|^2` if `q` is as near to
`v` as it can be. Half of `|e|^2` is between both. Hence a query's product with `v`, to which half the distance is
equal up to what depends on the query only, is approximated by

    q . p + number(v),    number(v) = -(|p|^2 + SHARE * |e|^2) / 2

where `|v|^2` in place of `|p|^2` would not know of the error of `p`. The number is the sum of one constant per
codebook. Those of the first codebooks are learned by regression on the codes, and the last codebook has 16 constants
and no prototypes, for what is left. With a single codebook, nothing is done about what is left.

In an index with lists, codes are made of the residual `v - b` of the center `b` of a list. With `b + p` in the place of
`p`, less what is the same for all vectors of the list,

    number(v) = -(|p|^2 + 2 b . p + SHARE * |e|^2) / 2

where `b . p` differs most, and the prototypes do not know `b`: so with `_ENOUGH` codebooks the last two have constants
alone, those of the second one for what the first one leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jax_maddness.core.types import LEAVES
from jax_maddness.retrieval import quantizer
from jax_maddness.retrieval.lists import Bases
from jax_maddness.retrieval.product_quantization import k_means
from jax_maddness.retrieval.quantizer import Quantizer

SHARE = 0.5
"""The share of `|e|^2` in a number. With 0 and with 1, more candidates of sentence embeddings were needed; of image
gradients with 0, and with 1 about as many."""
_ENOUGH = 8
"""Number of codebooks of which two may be without prototypes; of 4, one more with prototypes found more."""


def of_numbers(num_codebooks: int, has_lists: bool) -> int:
    """Returns how many of the last codebooks have constants and no prototypes."""
    return min(2 if has_lists and num_codebooks >= _ENOUGH else 1, num_codebooks - 1)


def learn(
    sample: Float[np.ndarray, "sample features+1"],
    moment: Float[np.ndarray, "features+1 features+1"],
    num_codebooks: int,
    seed: int,
    step: Callable[[], None],
    bases: Bases | None = None,
) -> Quantizer:
    """Learns prototypes and constants; the arguments are those of `quantizer.learn`. The last feature is not used."""
    sample, moment = sample.copy(), moment.copy()
    sample[:, -1] = moment[-1] = moment[:, -1] = 0.0
    last = of_numbers(num_codebooks, bases is not None)
    learned = quantizer.learn(sample, moment, num_codebooks - last, seed, step)
    codes = quantizer.encode(learned, sample, sweeps=quantizer.sweeps_of(bases))
    wanted = numbers(learned, sample, codes, SHARE, bases)
    center = np.asarray(learned.center).copy()
    center[-1] = wanted.mean(dtype=np.float64)
    constants = quantizer.regress(wanted[:, None], codes, center[-1:], np.eye(1)).constants
    learned = learned._replace(constants=constants, center=jnp.asarray(center))
    left = wanted - center[-1] - chosen_constants(learned, codes)
    for _ in range(last):
        chosen = levels(left, seed)
        left = left - chosen[_nearest(chosen, left)]
        none = np.zeros((1, *learned.prototypes.shape[1:]), np.float32)
        learned = Quantizer(
            jnp.concatenate([learned.prototypes, none]),
            jnp.concatenate([learned.constants, chosen[None]]),
            jnp.concatenate([learned.encoder, np.pad(none, ((0, 0), (0, 0), (0, 1)))]),
            learned.center,
        )
    return learned


def levels(left: Float[np.ndarray, " rows"], seed: int) -> Float[np.ndarray, " 16"]:
    """Returns 16 constants, to the nearest of which numbers like `left` are rounded; 0 where fewer are enough."""
    codes = np.asarray(k_means(left[:, None, None], np.ones(len(left), bool), jax.random.key(seed)))[:, 0]
    counts = np.bincount(codes, minlength=LEAVES)
    return (np.bincount(codes, left, minlength=LEAVES) / np.maximum(counts, 1)).astype(np.float32)


def encode(
    learned: Quantizer,
    x: Float[np.ndarray, "rows features+1"],
    share: float,
    step: Callable[[], None] = lambda: None,
    last: int = 1,
    bases: Bases | None = None,
    gram: jax.Array | None = None,
) -> UInt8[np.ndarray, "rows codebooks"]:
    """Encodes vectors: first their prototypes, then the constant that is nearest to what is left of their numbers.

    Args:
      learned: the result of `learn`.
      x: vectors, whose last feature is not used.
      share: `SHARE`, as it was when the index was built.
      step: is called after each block of vectors.
      last: how many of the last codebooks have constants and no prototypes.
      bases: what the vectors are residuals of, in an index with lists.
      gram: as for `quantizer.encode`.
    """
    # The encoder of the last codebooks is zero: their codes are 0.
    codes = quantizer.encode(learned, x, sweeps=quantizer.sweeps_of(bases), step=step, gram=gram)
    if not last or not len(x):
        return codes
    constants = np.asarray(learned.constants)
    first = len(constants) - last
    left = numbers(learned, x, codes, share, bases) - np.asarray(learned.center)[-1]
    left -= chosen_constants(learned._replace(constants=learned.constants[:first]), codes[:, :first])
    for c in range(first, len(constants)):
        codes[:, c] = _nearest(constants[c], left)
        left -= constants[c, codes[:, c]]
    return codes


def _nearest(constants: Float[np.ndarray, " 16"], left: Float[np.ndarray, " rows"]) -> UInt8[np.ndarray, " rows"]:
    return np.concatenate(
        [np.abs(left[rows, None] - constants).argmin(1).astype(np.uint8) for rows in _blocks(len(left))]
    )


def numbers(
    learned: Quantizer,
    x: Float[np.ndarray, "rows features+1"],
    codes: UInt8[np.ndarray, "rows codebooks"],
    share: float,
    bases: Bases | None = None,
) -> Float[np.ndarray, " rows"]:
    """Returns `number(v)` of each vector, given its codes."""
    result = np.zeros(len(x), np.float32)
    for rows in _blocks(len(x)):
        p = quantizer.decoded(learned, codes[rows])[:, :-1]
        e = x[rows, :-1] - p
        result[rows] = -(np.einsum("vd,vd->v", p, p) + share * np.einsum("vd,vd->v", e, e)) / 2
        if bases is not None:
            result[rows] -= np.einsum("vd,vd->v", bases.at(rows)[:, :-1], p)
    return result


def chosen_constants(learned: Quantizer, codes: UInt8[np.ndarray, "rows codebooks"]) -> Float[np.ndarray, " rows"]:
    """Returns the sum of the constants that each row's codes stand for."""
    constants = np.asarray(learned.constants)
    return constants[np.arange(len(constants)), codes].sum(1)


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(at, at + quantizer.BLOCK) for at in range(0, rows, quantizer.BLOCK))
