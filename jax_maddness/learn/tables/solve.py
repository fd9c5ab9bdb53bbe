"""The steps from codes to lookup tables that all methods share, for any kind of trees.

rows, trees --encode--> codes --gather--> Statistics --solve--> float tables --to_lookup_tables--> LookupTables
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_maddness.core.types import LEAVES, LookupTables
from jax_maddness.learn import validate
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.statistics import Statistics
from jax_maddness.learn.tables.quantize import quantize_tables
from jax_maddness.learn.tables.ridge import Solution, explained, fit_prototypes

RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Weights of the penalty that are tried on held-out rows, in rows."""
_log = logging.getLogger(__name__)


def padded_own(own: Bool[np.ndarray, "codebooks features"] | None, statistics: Statistics) -> Array:
    """Pads `own` to the sizes of `statistics`, or assigns features by `explained` where it is None."""
    if own is None:
        return explained(statistics)
    size, width = statistics.sums.shape
    return jnp.asarray(shapes.pad(own, size // LEAVES, width))


def solve(
    statistics: Statistics, own: Array, w: Float[np.ndarray, "features outputs"], rows: int, ridge: float
) -> Solution:
    """Solves the float tables by `fit_prototypes`, with 10 times the `ridge` for as long as f32 cannot factorize.

    A penalty of more than `rows` ends the attempts, whatever the result.

    Args:
      statistics: statistics of the training rows about their mean.
      own: features in which prototypes shrink toward bucket means, padded.
      w: weights.
      rows: number of rows that `statistics` counted.
      ridge: weight of the penalty to begin with, in rows.
    """
    w = shapes.pad(w, statistics.sums.shape[1], shapes.rounded(w.shape[1], shapes.OUTPUTS))
    while True:
        solution = fit_prototypes(statistics, own, w, rows, ridge)
        if np.isfinite(validate.largest(solution.weights)) or ridge > rows:
            _log.info("ridge %g, condition %.1e", ridge, solution.condition)
            return solution
        ridge *= 10


def nearest_minimum(error: Callable[[int], float], first: int, size: int) -> int:
    """Searches `range(size)` from `first` on, always toward the smaller error, and returns a local minimum of `error`.

    Neighboring penalties have similar errors, so such a search finds a good one without solving for all of them.

    Example:
      >>> nearest_minimum(lambda i: (i - 4) ** 2, 2, 7)
      4
    """
    errors: dict[int, float] = {}
    best = first
    while True:
        current = best
        for i in (current - 1, current, current + 1):
            if 0 <= i < size and i not in errors:
                errors[i] = error(i)
        best = min(errors, key=lambda i: errors[i])
        if best == current:
            return current


@jax.jit
def predict(weights: Float[Array, "codes outputs"], intercept: Array, codes: Array) -> Float[Array, "rows outputs"]:
    """Returns the outputs of float tables for given codes; codebooks that are padding have weight 0."""
    return jax.nn.one_hot(codes, LEAVES, dtype=jnp.float32).reshape(len(codes), -1) @ weights + intercept


def to_lookup_tables(
    solution: Solution,
    shares: Float[np.ndarray, " codes"],
    constant: Float[np.ndarray, " outputs"],
    exponent: int,
    bias: Float[np.ndarray, " outputs"],
    codebooks: int,
) -> LookupTables:
    """Quantizes the tables of `2**exponent * (G @ weights + intercept + constant) + bias` to 8 bits.

    Rounding leaves the mean over the training rows as it is: what it changes there is part of the offset.

    Args:
      solution: float tables, whose codebooks and outputs are padded.
      shares: share of the training rows that have each code; 0 for codes without rows.
      constant: product of the mean row with the weights, in the units of `solution`.
      exponent: exponent of the power of two by which learning divided the products.
      bias: vector that is added to every row of the product, in the user's units.
      codebooks: number of codebooks that are not padding.

    Raises:
      ValueError: float32 does not hold the outputs' scale or offset.
    """
    outputs = len(bias)
    tables = solution.weights.reshape(-1, LEAVES, solution.weights.shape[1])
    values, scale, _ = quantize_tables(tables, jnp.asarray(shares.reshape(-1, LEAVES) > 0))
    values = np.ascontiguousarray(np.asarray(values)[:outputs, :codebooks])
    scale, intercept = (np.asarray(a, np.float64)[:outputs] for a in (scale, solution.intercept))
    # A few outlier rows make the steps coarse, and the entries of all other rows small beside them. Most rows then have
    # the same rounding errors, which add up over codebooks: up to half of an op's error. The offset makes up for them.
    mean = shares @ np.asarray(solution.weights, np.float64)[:, :outputs]
    rounded_mean = scale * (values.reshape(outputs, -1) @ shares[: codebooks * LEAVES])
    scale, offset = (np.ldexp(a, exponent) for a in (scale, mean - rounded_mean + intercept + constant))
    return LookupTables(jax.device_put(values), *validate.in_range(scale, offset + np.asarray(bias, np.float64)))
