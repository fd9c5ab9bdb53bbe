"""The criterion by which the codes of stored vectors are chosen, which depends on the metric.

An index keeps the numbers of its criterion, so that vectors that are added to it later are encoded by the same one:

    ()                       the error of products alone (quantizer.py); indexes of file versions 1 and 2
    (along, beside, mean)    for "ip" and "cosine": with the second term (second_term.py)
    (share,)                 for "l2": with lengths (lengths.py)
    (share, last)            the same with `last` codebooks for numbers alone, for residuals of the centers of lists
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jax_maddness.retrieval import lengths, quantizer
from jax_maddness.retrieval.lists import Bases
from jax_maddness.retrieval.powers import exponent_of
from jax_maddness.retrieval.quantizer import Quantizer
from jax_maddness.retrieval.second_term import SecondTerm, likely_queries, without_mean

Criterion = tuple[float, ...]


def learn(
    sample: Float[np.ndarray, "sample features+1"],
    moment: Float[np.ndarray, "features+1 features+1"],
    metric: str,
    num_codebooks: int,
    seed: int,
    step: Callable[[], None],
    bases: Bases | None = None,
) -> tuple[Quantizer, Criterion]:
    """Learns prototypes and the numbers of the criterion for `metric`; other arguments as in `quantizer.learn`.

    If there are `bases`, the sample has residuals of these.
    """
    if metric == "l2":
        weights = rooted(about(moment, sample[:, :-1].mean(0, dtype=np.float64)))
        last = lengths.of_numbers(num_codebooks, bases is not None)
        learned = lengths.learn(sample, weights, num_codebooks, seed, step, bases)
        return learned, (lengths.SHARE,) if bases is None else (lengths.SHARE, float(last))
    if not sample[:, -1].any():  # the last feature has no part in scores; it must not determine the scale either
        moment = np.pad(moment[:-1, :-1], (0, 1))
        moment = np.ldexp(moment, -exponent_of(np.diagonal(moment)))
    learned = quantizer.learn(sample, rooted(moment), num_codebooks, seed, step)
    return learned, tuple(_with_mean(without_mean(moment), learned, sample, bases))


def _with_mean(term: SecondTerm, learned: Quantizer, sample: np.ndarray, bases: Bases | None) -> SecondTerm:
    """Returns `term` with the mean of at most `BLOCK` vectors, which are taken from all parts of the sample."""
    rows = slice(None, None, -(-len(sample) // quantizer.BLOCK))
    some = sample[rows]
    vectors = some if bases is None else some + bases.at(rows)
    along = np.asarray(likely_queries(jnp.asarray(vectors), term), np.float64)
    residual = quantizer.residuals(learned, some, quantizer.encode(learned, some))
    return term._replace(mean=float(np.einsum("vd,vd->v", along, residual).mean()))


def encode(
    learned: Quantizer,
    x: Float[np.ndarray, "rows features+1"],
    criterion: Criterion,
    step: Callable[[], None] = lambda: None,
    bases: Bases | None = None,
    gram: Array | None = None,
) -> UInt8[np.ndarray, "rows codebooks"]:
    """Encodes vectors by a criterion; the other arguments are those of `quantizer.encode`."""
    if len(criterion) in (1, 2):
        share, last = criterion[0], lengths.of_numbers(len(learned.prototypes), False)
        return lengths.encode(learned, x, share, step, int(criterion[1]) if len(criterion) == 2 else last, bases, gram)
    term = SecondTerm(*criterion) if criterion else None
    sweeps = quantizer.sweeps_of(bases)
    return quantizer.encode(learned, x, sweeps=sweeps, step=step, term=term, bases=bases, gram=gram)


def about(
    moment: Float[np.ndarray, "features+1 features+1"], center: Float[np.ndarray, " features"]
) -> Float[np.ndarray, "features+1 features+1"]:
    """Returns the second moment of queries minus `center`, as distances do not change when all is shifted alike.

    Example:
      >>> about(np.array([[13.0, 3.0], [3.0, 1.0]]), np.array([2.0])).tolist()
      [[5.0, 1.0], [1.0, 1.0]]
    """
    shift = np.eye(len(moment))
    shift[:-1, -1] = -center
    return shift @ moment @ shift.T


def rooted(moment: Float[np.ndarray, "features+1 features+1"]) -> Float[np.ndarray, "features+1 features+1"]:
    """Returns weights between those of the queries' second moment and equal ones: its square root, of the same trace.

    The second moment is that of all queries, but candidates are decided by the vectors near a query, whose products
    with it differ in fewer of the directions that all queries have. The last feature keeps its weight, and has no part
    in those of the others.

    Example:
      >>> rooted(np.diag([16.0, 4.0, 3.0])).round(3).tolist()
      [[13.333, 0.0, 0.0], [0.0, 6.667, 0.0], [0.0, 0.0, 3.0]]
    """
    values, axes = np.linalg.eigh(moment[:-1, :-1])
    roots = np.sqrt(np.maximum(values, 0.0))
    result = np.zeros_like(moment)
    result[:-1, :-1] = (axes * roots) @ axes.T * (np.maximum(values, 0.0).sum() / max(roots.sum(), 1e-30))
    result[-1, -1] = moment[-1, -1]
    return result
