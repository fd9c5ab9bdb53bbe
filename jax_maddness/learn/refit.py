"""`refit_tables`, which corrects an op's tables so that it approximates given targets.

`fit` learns `x @ w + b` for its training rows. In a model whose earlier layers are approximate as well, rows differ
from those of the exact model, and the output that is wanted is not their product but the exact model's value. The op
misses it by `r = targets - amm(x, op)`. Ridge regression of `r` on the codes corrects the tables, and its penalty
shrinks toward the present tables: with few rows, or nothing to gain, the op stays unchanged.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_maddness.core import validate as validate_core
from jax_maddness.core.amm import amm
from jax_maddness.core.encode import encode
from jax_maddness.core.types import LEAVES, MaddnessOp
from jax_maddness.learn import validate
from jax_maddness.learn.config import HELD_OUT_SHARE
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.held_out import split
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.data.rows import exponent, in_blocks, power_of_two
from jax_maddness.learn.data.statistics import Statistics, gather
from jax_maddness.learn.tables import factors
from jax_maddness.learn.tables.ridge import Solution, ridge_regression
from jax_maddness.learn.tables.solve import RIDGES, to_lookup_tables

MOST_HELD_OUT = 4096
"""Largest number of held-out rows on which the penalty is chosen."""


def refit_tables(
    op: MaddnessOp, x: Float[ArrayLike, "... features"], targets: Float[ArrayLike, "... outputs"]
) -> MaddnessOp:
    """Corrects the tables of `op` so that `amm(x, op)` approximates `targets`; trees and weights stay unchanged.

    The corrections are found by ridge regression on the codes, as prototypes are in the paper (Blalock & Guttag 2021,
    section 4.2). The weight of the penalty is chosen on held-out rows.

    Args:
      op: op that `fit` learned from rows like `x`.
      x: rows `[..., D]` of a real dtype; leading dimensions are flattened to rows.
      targets: outputs `[..., M]` that the op should have for these rows, of a real dtype, in the units of its outputs.

    Returns:
      An op with corrected tables, or `op` itself if no correction reduces the squared error on held-out rows.

    Raises:
      TypeError: `op` is not an op, or an array is not real or is traced.
      ValueError: `op` is not a single op, the arrays do not match it or each other, or values are not finite.

    Example:
      >>> from jax_maddness import FitConfig, amm, fit
      >>> x = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
      >>> op = fit(x, np.ones((8, 3)), num_codebooks=2, config=FitConfig("paper"))
      >>> targets = x @ np.ones((8, 3)) + 5  # the outputs should be larger by 5
      >>> float(jnp.abs(amm(x, refit_tables(op, x, targets)) - amm(x, op) - 5).mean()) < 0.5
      True
    """
    validate_core.op(op)
    rows, wanted = validate.samples(x, "x"), validate.samples(targets, "targets")
    validate_core.rows(jnp.asarray(rows[:1]), op.trees, op.term)
    if wanted.shape != (len(rows), op.num_outputs):
        raise ValueError(
            f"`targets` has {wanted.shape[0]} rows of {wanted.shape[1]} outputs; expected {len(rows)} of "
            f"{op.num_outputs}, one row for each of `x`."
        )
    with modes():
        return _refitted(op, rows, wanted)


def _refitted(op: MaddnessOp, x: np.ndarray, targets: np.ndarray) -> MaddnessOp:
    """Corrects the tables of `op`, given validated arrays, as `refit_tables` does."""
    residual = targets - np.asarray(jax.jit(amm)(x, op))
    if not op.num_codebooks:
        return _shifted(op, residual)
    codes = np.asarray(jax.jit(encode)(x, op.trees))
    held_out, train = split(len(x), HELD_OUT_SHARE, MOST_HELD_OUT)
    # No correction at all is the first candidate: a penalty is taken only if it does better on held-out rows.
    best_ridge, least_error = None, float((residual[held_out].astype(np.float64) ** 2).sum())
    train_sums = _Residual.of(codes[train], residual[train])
    for ridge in RIDGES:
        tables, intercept = train_sums.solved(ridge)
        predicted = tables[np.arange(codes.shape[1]), codes[held_out]].sum(1) + intercept
        error = float(((predicted - residual[held_out]) ** 2).sum())
        if error < least_error:
            best_ridge, least_error = ridge, error
    if best_ridge is None:
        return op
    all_sums = _Residual.of(codes, residual)
    corrections, intercept = all_sums.solved(best_ridge)
    # The minima of the old tables are part of their offset, so `values * scale` can be corrected and rounded anew.
    old, low_rank = factors.taken_apart(op)
    old_tables = np.asarray(old.values, np.float64).transpose(1, 2, 0) * np.asarray(old.scale, np.float64)
    weights = jnp.asarray((old_tables + corrections).reshape(-1, op.num_outputs), jnp.float32)
    solution = Solution(weights, *np.zeros((2, 1), np.float32))
    offset = np.asarray(op.tables.offset, np.float64) + intercept
    shares = np.asarray(all_sums.statistics.counts)[: len(weights)] / len(x)
    quantized = to_lookup_tables(solution, shares, offset, 0, np.zeros(op.num_outputs), op.num_codebooks)
    if low_rank is None:
        return dataclasses.replace(op, tables=quantized)
    joined, term = factors.joined(quantized, low_rank)
    return dataclasses.replace(op, tables=joined, term=term)


def _shifted(op: MaddnessOp, residual: Float[np.ndarray, "rows outputs"]) -> MaddnessOp:
    """Corrects the offset alone, as for ops without codebooks, if that reduces the error on held-out rows."""
    held_out, train = split(len(residual), HELD_OUT_SHARE, MOST_HELD_OUT)
    unit = np.abs(residual).max() or 1.0  # squares stay within float64
    error, mean = residual[held_out] / unit, residual[train].mean(0, dtype=np.float64) / unit
    if not np.square(error - mean).sum() < np.square(error).sum():
        return op
    offset = np.asarray(op.tables.offset, np.float64) + residual.mean(0, dtype=np.float64)
    _, offset = validate.in_range(np.zeros_like(offset), offset)
    return dataclasses.replace(op, tables=dataclasses.replace(op.tables, offset=offset))


class _Residual(NamedTuple):
    """Sums over rows from which the corrections of the residual `r` are solved.

    Attributes:
      statistics: sums over codes and scaled residuals; codebooks and outputs are padded.
      codebooks: number of codebooks that are not padding.
      rows: number of rows.
      mean: mean of the residual, float64.
      log2_scale: exponent of the power of two by which the residual is divided, so that float32 holds its sums.
    """

    statistics: Statistics
    codebooks: int
    rows: int
    mean: Float[np.ndarray, " outputs"]
    log2_scale: int

    @classmethod
    def of(cls, codes: np.ndarray, residual: np.ndarray) -> _Residual:
        """Sums the `residual` of rows with these `codes`, block by block."""
        mean, log2_scale = residual.mean(0, dtype=np.float64), exponent(float(np.abs(residual).max()))
        blocks = in_blocks([residual], len(residual), residual.shape[1])
        numbers = itertools.count()

        # `gather` encodes each block by a function of it. Here codes are known: they follow the blocks' order.
        def next_codes(block: np.ndarray) -> np.ndarray:
            start = next(numbers) * len(block)
            return shapes.pad(codes[start : start + len(block)], len(block), codes.shape[1])

        statistics = gather(blocks, next_codes, mean, power_of_two(-log2_scale))
        return cls(statistics, codes.shape[1], len(residual), mean, log2_scale)

    def solved(self, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns corrections of the tables, `[codebooks, 16, outputs]`, and one of all rows, `[outputs]`; float64."""
        solution = _solve(self.statistics.gram, self.statistics.sums, self.rows, ridge)
        weights = np.ldexp(np.asarray(solution.weights, np.float64), self.log2_scale)[:, : len(self.mean)]
        intercept = np.ldexp(np.asarray(solution.intercept, np.float64), self.log2_scale)[: len(self.mean)] + self.mean
        return weights.reshape(-1, LEAVES, len(self.mean))[: self.codebooks], intercept


_solve = jax.jit(ridge_regression)
