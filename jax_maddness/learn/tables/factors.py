"""Splits `w` into int8 factors and a remainder, whose product the look-ups approximate:

    x @ w = u @ up + x @ remainder + constant,   u = int8 projections of x - center (`Factors`)

The features that add most to the variance of the outputs get a direction each. The product of the others has principal
directions `v` in output space: `down = w @ v`, `up = v^T` is the best approximation of that rank (reduced-rank
regression). Both are found on rows that are rounded to int8 already, and the remainder is what the rounded `down`
leaves, so that codes correct a part of its rounding.

Measured on the problems of benchmarks/quality.py and not better: steps for 4, 6 or 8 standard deviations in place of
the greatest magnitude of the sample; least squares for `up`, given the rounded projections, at any penalty (1 % of the
error at best). One more alternative: choosing features one after the other by how much of the outputs they explain,
together with the features that vary with them. The feature that explains most is one that codes approximate well.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int8

from jax_maddness.core import int8
from jax_maddness.core.terms.factors import MAX_SHIFT, Factors
from jax_maddness.core.types import LookupTables, MaddnessOp
from jax_maddness.learn import validate
from jax_maddness.learn.config import FitConfig, validate_terms
from jax_maddness.learn.data.rounding import rounded
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.tables.quantize import STEPS

ROWS = 2**14
"""Largest number of rows that the directions are learned from: a random sample."""
LEAST, GREATEST = int8.LIMIT * 2.0**-99, int8.LIMIT * 2.0**99
"""The range of the greatest magnitude of a feature about its mean: its scale is then in the range of `Factors`."""
_SPARE, _ITERATIONS = 16, 6  # directions beyond the rank, and steps, of the subspace iteration


class FloatFactors(NamedTuple):
    """Factors whose second matrix is still to be rounded.

    Attributes:
      center, scale, steps: as in `Factors`.
      down: as in `Factors`, but not in groups.
      up: weights of the directions, in units of the outputs per step of `u`.
      constant: added to the outputs of every row.
    """

    center: Float[np.ndarray, " features"]
    scale: Float[np.ndarray, " features"]
    down: Int8[np.ndarray, "features rank"]
    steps: Float[np.ndarray, " rank"]
    up: Float[np.ndarray, "rank outputs"]
    constant: Float[np.ndarray, " outputs"]


def split(
    rows: Rows, w: Float[np.ndarray, "features outputs"], config: FitConfig
) -> tuple[FloatFactors | None, Float[np.ndarray, "features outputs"]]:
    """Returns the factors that `config` asks for (None for none), and the remainder of `w`.

    Args:
      rows: the training rows.
      w: weights.
      config: options of learning; `rank` and `outliers` are the number of directions, which is rounded up to a multiple
        of 4.

    Raises:
      ValueError: `config` asks for a larger rank or more features than `w` has.
    """
    validate_terms(config, *w.shape)
    if not (config.rank or config.outliers):
        return None, w
    x = sample(rows)
    center, scale = rounding(x)
    q = rounded(x, center, scale)
    units = np.divide(1.0, scale, where=scale > 0, out=np.zeros(len(scale)))  # of x per step of q
    weights = w * units[:, None]
    down, up = _directions(q, weights, config)
    largest = np.abs(down).max(0)
    down = np.rint(down * np.divide(int8.LIMIT, largest, where=largest > 0, out=np.zeros(len(largest))))
    _, steps = rounding(q.astype(np.float32) @ down.astype(np.float32))
    up *= np.divide(largest, int8.LIMIT * steps, where=steps > 0, out=np.zeros(len(steps)))[:, None]
    product = (down * steps) @ up  # in steps of q
    remainder = w - np.where(scale > 0, scale, 0.0)[:, None] * product
    constant = center @ (w - remainder)
    factors = FloatFactors(center, scale, down.astype(np.int8), steps, up, constant)
    return factors, remainder.astype(np.float32)


def sample(rows: Rows) -> Float[np.ndarray, "sample features"]:
    """Returns at most `ROWS` random rows."""
    return rows.sample[np.random.default_rng(0).permutation(len(rows.sample))[:ROWS]]


def rounding(x: Float[np.ndarray, "rows features"]) -> tuple[Float[np.ndarray, " features"], ...]:
    """Returns `center` and `scale` for given rows: the mean, and steps such that the greatest magnitude reaches 127.

    A constant feature gets scale 0.
    """
    mean = x.mean(0, dtype=np.float64)
    center = mean.astype(np.float32)
    # The greatest |x - center|, without an array as large as `x`: rounded differences keep their order.
    limit = np.maximum(x.max(0) - center, center - x.min(0)).astype(np.float64)
    tiny = 2 * np.finfo(np.float32).eps * np.abs(mean)  # what rounding alone may leave of a constant
    varies = limit > np.maximum(tiny, np.finfo(np.float32).tiny)
    if varies.any() and not LEAST < limit[varies].max() < GREATEST:
        raise ValueError(
            f"`x_train` varies by {limit[varies].max():.2g}; int8 factors take rows that vary by {LEAST:.1g} to "
            f"{GREATEST:.1g}. Scale `x_train` by a power of two, and `w` by its inverse."
        )
    varies &= limit > LEAST
    scale = int8.LIMIT / np.where(varies, limit, 1.0)
    return center, np.where(varies, scale, 0.0).astype(np.float32)


def _directions(
    q: Int8[np.ndarray, "rows features"], w: Float[np.ndarray, "features outputs"], config: FitConfig
) -> tuple[Float[np.ndarray, "features rank"], Float[np.ndarray, "rank outputs"]]:
    """Returns the two factors of `w` before rounding: chosen features first, then principal directions."""
    x = q.astype(np.float32)
    x -= x.mean(0)
    # A power of two brings the products near 1; scaling by it rounds nothing.
    exponent = np.frexp(np.abs(w).max())[1]
    rest = np.ldexp(w, -exponent)
    indices = np.argsort(-np.square(x).mean(0) * np.square(rest).sum(1), kind="stable")[: config.outliers]
    chosen = np.eye(len(w))[:, indices]
    kept = rest[indices]
    rest[indices] = 0  # these features have directions already
    count = config.rank + -(config.rank + config.outliers) % int8.GROUP
    v = principal(x, rest, count)
    down, up = np.concatenate([chosen, rest @ v], 1), np.ldexp(np.concatenate([kept, v.T]), exponent)
    missing = config.outliers + count - down.shape[1]  # where `w` has fewer directions than a multiple of 4
    return np.pad(down, [(0, 0), (0, missing)]), np.pad(up, [(0, missing), (0, 0)])


def principal(
    x: Float[np.ndarray, "rows features"], w: Float[np.ndarray, "features outputs"], rank: int
) -> Float[np.ndarray, "outputs rank"]:
    """Returns the leading principal directions of `x @ w`, as orthonormal columns, by subspace iteration.

    Only products of `x` with thin matrices are taken: nothing is as large as features x features. Directions without
    variance stand at the end, so that `rank = min(features, outputs)` leaves no remainder.

    Args:
      x: rows about their mean.
      w: weights.
      rank: number of directions; fewer are returned if there are fewer outputs or features.
    """
    v = np.random.default_rng(0).standard_normal((w.shape[1], min(rank + _SPARE, *w.shape)))
    single = w.astype(np.float32)
    for _ in range(_ITERATIONS):
        y = x @ (single @ v.astype(np.float32))
        v = np.linalg.qr(single.T @ (x.T @ y))[0].astype(np.float64)
    y = (x @ (single @ v.astype(np.float32))).astype(np.float64)
    _, rotation = np.linalg.eigh(y.T @ y)
    return v @ rotation[:, ::-1][:, :rank]


def joined(tables: LookupTables, factors: FloatFactors) -> tuple[LookupTables, Factors]:
    """Brings lookup tables and factors to one scale per output, by which one integer sum is multiplied.

    An entry of the tables is `2**shift` steps of that scale. The shift is the largest for which the weights of the
    factors fit 8 bits; where not even 0 does, tables are rounded to coarser steps.
    """
    step, values = np.asarray(tables.scale, np.float64), np.asarray(tables.values)
    finest = np.abs(factors.up).max(0) / int8.LIMIT
    shift = np.zeros(len(step), np.int64)
    if tables.num_codebooks:
        ratio = np.divide(step, finest, where=finest > 0, out=np.full(len(step), np.inf))
        shift = np.floor(np.log2(np.clip(ratio, 1.0, 2.0**MAX_SHIFT))).astype(np.int64)
        shift = np.minimum(shift, _most_bits(tables.num_codebooks, len(factors.steps)))
        coarse = np.minimum(ratio, 1.0)  # below 1 where the tables' own steps are too fine
        values = np.clip(np.rint(values * coarse[:, None, None]), 0, STEPS).astype(np.uint8)
        finest = np.maximum(np.ldexp(step, -shift), finest)
    up = np.rint(np.divide(factors.up, finest, where=finest > 0, out=np.zeros_like(factors.up)))
    scale, offset = validate.in_range(finest, np.asarray(tables.offset, np.float64))
    term = Factors(
        center=jax.device_put(factors.center),
        scale=jax.device_put(factors.scale),
        down=int8.grouped(factors.down),
        steps=jax.device_put(factors.steps),
        up=int8.grouped(up.astype(np.int8)),
        shift=jax.device_put(shift.astype(np.uint8)),
    )
    return LookupTables(jax.device_put(values), scale, offset), term


def _most_bits(codebooks: int, rank: int) -> int:
    """Returns the largest shift with which no sum exceeds 32 bits."""
    return int(np.floor(np.log2((2**31 - 1 - int8.LIMIT**2 * rank) / (STEPS * codebooks))))


def taken_apart(op: MaddnessOp) -> tuple[LookupTables, FloatFactors | None]:
    """Reverses `joined`: returns tables with a scale of their own, and the op's factors in units of the outputs."""
    tables, term = op.tables, op.term
    if not isinstance(term, Factors):
        return tables, None
    scale = np.asarray(tables.scale, np.float64)
    own = np.ldexp(scale, np.asarray(term.shift).astype(np.int64)).astype(np.float32)
    center, feature_scale, steps = map(np.asarray, (term.center, term.scale, term.steps))
    down, up = int8.ungrouped(np.asarray(term.down), term.row_features), int8.ungrouped(np.asarray(term.up), term.rank)
    constant = np.zeros(len(scale))  # it is in the offset
    factors = FloatFactors(center, feature_scale, down, steps, up * scale, constant)
    return LookupTables(tables.values, jax.device_put(own), tables.offset), factors
