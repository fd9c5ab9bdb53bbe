"""The second term of the error that codes minimize, for inner products and cosines.

A vector is among the best of a query if the query looks in about the same direction. Errors of that product decide
which vectors become candidates, so that an error along the vector itself costs more than one across it (Guo et al.
2020). Where it is the same for all vectors it changes no ranking, hence the mean of the vectors is subtracted:

    error(v, codes) = e^T M e + (u(v) . e - mean)^2

with the residual `e`, the weights `M` of `build.py`, and `u(v)`, a query in the direction of `v` that is as long as
queries are, times the square root of `_WEIGHT`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_WEIGHT = 0.01
"""Weight of the term, for queries and vectors of length one. With .02 and .04, less was found among 10 candidates of
sentence embeddings and of patches of photographs, and hardly more among 128; only synthetic data gained."""


class SecondTerm(NamedTuple):
    """The numbers of the second term.

    Attributes:
      along: length of `u(v)` in the features of vectors; zero if `v` is.
      beside: the last feature of `u(v)`, which meets the number that is added to products.
      mean: mean of `u(v) . e` over vectors whose codes minimize the first term alone.
    """

    along: float
    beside: float
    mean: float


def without_mean(moment: Float[np.ndarray, "features+1 features+1"]) -> SecondTerm:
    """Returns the term for queries with the second moment `moment`, whose last feature is constant; its mean is 0."""
    squares = np.diagonal(moment)
    return SecondTerm(float(np.sqrt(_WEIGHT * squares[:-1].sum())), float(np.sqrt(_WEIGHT * squares[-1])), 0.0)


def likely_queries(x: Float[Array, "rows features+1"], term: SecondTerm) -> Float[Array, "rows features+1"]:
    """Returns `u(v)` of each vector, which has the number that is added to its products as the last feature."""
    vectors = x[:, :-1]
    squares = (vectors * vectors).sum(-1, keepdims=True)
    unit = vectors / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
    return jnp.concatenate([term.along * unit, jnp.full_like(squares, term.beside)], -1)
