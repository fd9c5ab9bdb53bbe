"""Biases for codes: a bias far below all others, which masks a vector, must not determine the scale of the tables."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

_QUERIES, _VECTORS = 256, 4096
"""Greatest numbers of sample queries and of vectors from whose products the range of products is taken."""
_MARGIN = 1.5
"""By how much products of later queries may exceed the range of those of the sample."""
_WINNERS = 32
"""A vector is masked if at least this many have biases so much greater that it never wins over one of them."""


def shielded(
    bias: Float[np.ndarray, " vectors"],
    queries: Float[np.ndarray, "queries features"],
    vectors: Float[np.ndarray, "vectors features"],
) -> Float[np.ndarray, " vectors"]:
    """Returns biases with the same best vectors for every query, and gaps no wider than products can bridge.

    Sorted, neighboring biases that differ by more than the range of all products of a query are moved together until
    they differ by that range: the vectors above such a gap win over those below it before and after. All other
    differences are kept, except below a gap with `_WINNERS` vectors above it, where all biases become equal. The middle
    one of the `_WINNERS` greatest keeps its value. Codes and tables are made from these biases, so that -1e9 costs them
    no accuracy; rescoring adds the true ones.

    Args:
      bias: finite float32.
      queries, vectors: samples of them, of which the first ones are used.

    Example:
      >>> one = np.ones((2, 1), np.float32)
      >>> shielded(np.float32([-1e9, 0, 1, 2]), one, one * [[0], [2]]).tolist()
      [-3.0, 0.0, 1.0, 2.0]
    """
    products = queries[:_QUERIES].astype(np.float64) @ vectors[:_VECTORS].astype(np.float64).T
    widest = _MARGIN * float(np.ptp(products, axis=1).max(initial=0.0))
    order = np.argsort(bias, kind="stable")
    gaps = np.diff(bias[order].astype(np.float64))
    wide = np.flatnonzero(gaps > widest)
    if not len(wide) or not widest:
        return bias
    masks = wide[wide < len(bias) - _WINNERS]  # gap `i` has `len(bias) - 1 - i` vectors above it
    gaps[: masks.max(initial=0)] = 0.0
    moved = np.concatenate([[0.0], np.cumsum(np.minimum(gaps, widest))])
    kept = len(bias) - (min(_WINNERS, len(bias)) + 1) // 2
    result = np.empty(len(bias))
    result[order] = moved - moved[kept] + bias[order[kept]]
    return result.astype(np.float32)
