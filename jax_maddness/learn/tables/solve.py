"""codes -> lookup tables: the steps that all methods share, from any kind of trees.

rows, trees --encode--> codes --gather--> Statistics --solve--> float tables --to_lookup_tables--> LookupTables
"""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from jax_maddness.core.types import LEAVES, LookupTables
from jax_maddness.learn import validate
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.statistics import Statistics
from jax_maddness.learn.tables.quantize import quantize_tables
from jax_maddness.learn.tables.ridge import Solution, explained, fit_prototypes

RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Penalties that `validated_ridge` tries, in rows."""
_log = logging.getLogger(__name__)


def padded_own(own: Bool[np.ndarray, "codebooks features"] | None, statistics: Statistics) -> Array:
    """`own` in the statistics' sizes, or what `explained` says."""
    if own is None:
        return explained(statistics)
    size, width = statistics.sums.shape
    return jnp.asarray(shapes.pad(own, size // LEAVES, width))


def solve(
    statistics: Statistics, own: Array, w: Float[np.ndarray, "features outputs"], rows: int, ridge: float
) -> Solution:
    """`fit_prototypes`, with a tenfold `ridge` as long as f32 cannot factorise the system."""
    w = shapes.pad(w, statistics.sums.shape[1], shapes.rounded(w.shape[1], shapes.OUTPUTS))
    while True:
        found = fit_prototypes(statistics, own, w, rows, ridge)
        if np.isfinite(validate.largest(found.weights)) or ridge > rows:
            _log.info("ridge %g, condition %.1e", ridge, found.condition)
            return found
        ridge *= 10


def validated_ridge(
    statistics: Statistics,
    own: Array,
    w: Float[np.ndarray, "features outputs"],
    rows: int,
    codes: UInt8[np.ndarray, "held_out codebooks"],
    y: Float[np.ndarray, "held_out outputs"],
) -> tuple[float, Float[np.ndarray, " held_out"]]:
    """Which of `RIDGES` leaves the least squared error on held-out rows, and that error, row by row.

    Args:
      statistics: of the rows to learn from, about their mean.
      own: as `fit_prototypes` takes it.
      w: the weights.
      rows: how many rows `statistics` counted.
      codes: of the held-out rows; more of them than `y` has are there to fill the array.
      y: their exact outputs, less those of the mean row.
    """
    codes = shapes.pad(codes, len(codes), len(own))
    errors = []
    for ridge in RIDGES:
        found = solve(statistics, own, w, rows, ridge)
        expected = np.asarray(predict(found.weights, found.intercept, codes), np.float64)
        error = ((expected[: len(y), : y.shape[1]] - y) ** 2).sum(1)
        errors.append(np.where(np.isfinite(error), error, np.inf))
    best = int(np.argmin([error.sum() for error in errors]))
    return RIDGES[best], errors[best]


@jax.jit
def predict(weights: Float[Array, "codes outputs"], intercept: Array, codes: Array) -> Float[Array, "rows outputs"]:
    """What float tables say of codes; padded codebooks have weight 0."""
    return jax.nn.one_hot(codes, LEAVES, dtype=jnp.float32).reshape(len(codes), -1) @ weights + intercept


def to_lookup_tables(
    found: Solution,
    used: Bool[np.ndarray, " codes"],
    constant: Float[np.ndarray, " outputs"],
    exponent: int,
    bias: Float[np.ndarray, " outputs"],
    codebooks: int,
) -> LookupTables:
    """8-bit tables of `2**exponent * (G @ weights + intercept + constant) + bias`.

    Args:
      found: float tables, padded; of `codebooks` and as many outputs as `bias`, the rest is left out.
      used: which codes have rows.
      constant: the product of the mean row.
      exponent: what learning scaled by.
      bias: what the user wants added.
    """
    outputs = len(bias)
    tables = found.weights.reshape(-1, LEAVES, found.weights.shape[1])
    values, scale, offset = quantize_tables(tables, jnp.asarray(used.reshape(-1, LEAVES)))
    scale, offset, intercept = (np.asarray(a, np.float64)[:outputs] for a in (scale, offset, found.intercept))
    scale, offset = (np.ldexp(a, exponent) for a in (scale, offset + intercept + constant))
    values = jax.device_put(np.ascontiguousarray(np.asarray(values)[:outputs, :codebooks]))  # asarray would compile
    return LookupTables(values, *validate.in_range(scale, offset + np.asarray(bias, np.float64)))
