"""codes -> lookup tables: the steps that all methods share, from any kind of trees.

rows, trees --encode--> codes --gather--> Statistics --solve--> float tables --look_up--> LookupTables
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core.encode import encode
from jax_maddness.core.types import LEAVES, LookupTables, ObliqueTrees, SplitTrees
from jax_maddness.learn import validate
from jax_maddness.learn.data import shapes
from jax_maddness.learn.tables.quantize import quantize_tables
from jax_maddness.learn.tables.ridge import Solution, Statistics, explained, fit_prototypes

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, UInt8

    from jax_maddness.learn.data.rows import Rows

RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Penalties that `validated_ridge` tries, in rows."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a method hands over: which leaf a row reaches, and how to find what the leaves stand for.

    Attributes:
      trees: what `encode` takes.
      own: the features in which the tables shrink toward each codebook's bucket means; None: those it explains best.
      ridge: weight of the penalty, in rows.
      tables: what to look up, as `solve` finds it, where training has found it already; None: solve for it.
      errors: squared, of each row that `axis.Trial` holds out, before anything was learned from it; None: not known.
    """

    trees: Any
    own: Bool[np.ndarray, "codebooks features"] | None
    ridge: float
    tables: Solution | None = None
    errors: Float[np.ndarray, " held_out"] | None = None


def encoder(trees: SplitTrees | ObliqueTrees) -> Callable[[np.ndarray], UInt8[np.ndarray, "rows codebooks"]]:
    """`encode` for rows with as many features as `Rows.blocks` gives them: compiled for padded sizes of trees, too."""
    codebooks = trees.num_codebooks
    size = shapes.rounded(codebooks, shapes.CODEBOOKS)
    padded: SplitTrees | ObliqueTrees
    if isinstance(trees, ObliqueTrees):
        padded = shapes.pad_oblique_trees(trees, size, shapes.rounded(len(trees.center), shapes.FEATURES))
    else:
        padded = shapes.pad_trees(trees, size)
    return lambda x: np.asarray(encode(jnp.asarray(x), padded))[:, :codebooks]


def gather(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    encoded: Callable[[np.ndarray], UInt8[np.ndarray, "rows codebooks"]],
    mean: Float[np.ndarray, " features"],
    factor: np.float32,
    step: Callable[[], None] = lambda: None,
) -> Statistics:
    """The regression's statistics of `(x - mean) * factor`, block by block; codebooks and features are padded.

    Args:
      blocks: rows and which of them count, as `BatchedRows.blocks` yields them.
      encoded: rows -> codes.
      mean: of all rows.
      factor: a power of two that brings the largest magnitude near 1.
      step: called after every block.
    """
    statistics: Statistics | None = None
    for x, counted in blocks:
        codes = encoded(x)
        if statistics is None:
            codebooks = shapes.rounded(codes.shape[1], shapes.CODEBOOKS)
            statistics = Statistics.zeros(codebooks, x.shape[1])
            center = shapes.pad((mean * factor).astype(np.float32), x.shape[1])
        real = np.arange(codebooks) < codes.shape[1]
        codes = shapes.pad(codes, len(x), codebooks)
        statistics = jax.block_until_ready(_add(statistics, x, codes, counted, real, factor, center))
        step()
    assert statistics is not None
    return statistics


@functools.partial(jax.jit, donate_argnums=0)
def _add(
    statistics: Statistics, x: Array, codes: Array, counted: Array, real: Array, factor: Array, center: Array
) -> Statistics:
    return statistics.add(x * factor - center, codes, counted, real)


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
        expected = np.asarray(_predict(found.weights, found.intercept, codes), np.float64)
        error = ((expected[: len(y), : y.shape[1]] - y) ** 2).sum(1)
        errors.append(np.where(np.isfinite(error), error, np.inf))
    best = int(np.argmin([error.sum() for error in errors]))
    return RIDGES[best], errors[best]


def errors_of(
    learned: Learned, rows: Rows, w: Float[np.ndarray, "features outputs"], x: Float[np.ndarray, "others features"]
) -> Float[np.ndarray, " others"]:
    """Squared errors of float tables solved from `rows`, on each of the rows `x`."""
    statistics = rows.statistics(learned.trees, lambda: None)
    found = solve(statistics, padded_own(learned.own, statistics), w, rows.count, learned.ridge)
    size = shapes.rounded(len(x), shapes.ROWS)
    codes = encoder(learned.trees)(shapes.pad(x, size, shapes.rounded(x.shape[1], shapes.FEATURES)))
    codes = shapes.pad(codes, size, statistics.sums.shape[0] // LEAVES)
    y = np.asarray(_predict(found.weights, found.intercept, codes), np.float64)[: len(x), : w.shape[1]]
    return ((y / rows.factor - (x - rows.mean) @ w) ** 2).sum(1)


@jax.jit
def _predict(weights: Float[Array, "codes outputs"], intercept: Array, codes: Array) -> Float[Array, "rows outputs"]:
    """What float tables say of codes; padded codebooks have weight 0."""
    return jax.nn.one_hot(codes, LEAVES, dtype=jnp.float32).reshape(len(codes), -1) @ weights + intercept


def look_up(
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
