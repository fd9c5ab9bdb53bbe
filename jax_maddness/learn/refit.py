"""op, rows, targets -> op: the same trees, with tables that say what is wanted of these rows.

`fit` learns `x @ w + b` of the rows that it sees. Where rows are not what they were, because the layers before are
approximate as well, what is wanted is not their product but the exact model's value. The op's own answer misses it by
`r = targets - amm(x, op)`; ridge regression of `r` on the codes corrects the tables, and shrinks toward what they say:
with few rows, or nothing to gain, the op stays as it is.
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
from jax_maddness.learn.tables.ridge import Solution, ridge_regression
from jax_maddness.learn.tables.solve import RIDGES, to_lookup_tables

MOST_HELD_OUT = 4096
"""The most rows on which the penalty is chosen."""


def refit_tables(
    op: MaddnessOp, x: Float[ArrayLike, "... features"], targets: Float[ArrayLike, "... outputs"]
) -> MaddnessOp:
    """`op` with tables such that `amm(x, op)` approximates `targets`, and trees and weights as they are.

    Args:
      op: what `fit` learned, from rows like `x`.
      x: rows; leading dimensions are flattened.
      targets: what is wanted for each of them.

    Returns:
      The new op, or `op` itself where rows held out say that no correction helps.

    Raises:
      TypeError, ValueError: `op` is not a single op, or the arrays do not match it or each other.
    """
    validate_core.op(op)
    rows, wanted = validate.samples(x, "x"), validate.samples(targets, "targets")
    validate_core.rows(jnp.asarray(rows[:1]), op.trees)
    if wanted.shape != (len(rows), op.num_outputs):
        raise ValueError(
            f"`targets` has {wanted.shape[0]} rows of {wanted.shape[1]} outputs; expected {len(rows)} of "
            f"{op.num_outputs}, one row for each of `x`."
        )
    with modes():
        return _refitted(op, rows, wanted)


def _refitted(op: MaddnessOp, x: np.ndarray, targets: np.ndarray) -> MaddnessOp:
    missing = targets - np.asarray(jax.jit(amm)(x, op))
    codes = np.asarray(jax.jit(encode)(x, op.trees))
    held_out, train = split(len(x), HELD_OUT_SHARE, MOST_HELD_OUT)
    best, least = None, float((missing[held_out].astype(np.float64) ** 2).sum())
    trial = _Residual.of(codes[train], missing[train])
    for ridge in RIDGES:
        tables, intercept = trial.solved(ridge)
        predicted = tables[np.arange(codes.shape[1]), codes[held_out]].sum(1) + intercept
        error = float(((predicted - missing[held_out]) ** 2).sum())
        if error < least:
            best, least = ridge, error
    if best is None:
        return op
    whole = _Residual.of(codes, missing)
    corrections, intercept = whole.solved(best)
    old = np.asarray(op.tables.values, np.float64).transpose(1, 2, 0) * np.asarray(op.tables.scale, np.float64)
    weights = jnp.asarray((old + corrections).reshape(-1, op.num_outputs), jnp.float32)
    solution = Solution(weights, *np.zeros((2, 1), np.float32))
    constant = np.asarray(op.tables.offset, np.float64) + intercept
    used = np.asarray(whole.statistics.counts)[: len(weights)] > 0
    quantized = to_lookup_tables(solution, used, constant, 0, np.zeros(op.num_outputs), op.num_codebooks)
    return dataclasses.replace(op, tables=quantized)


class _Residual(NamedTuple):
    """What regression needs to know of the residual: see `Statistics`."""

    statistics: Statistics
    codebooks: int
    rows: int
    mean: Float[np.ndarray, " outputs"]
    power: int

    @classmethod
    def of(cls, codes: np.ndarray, residual: np.ndarray) -> _Residual:
        mean, power = residual.mean(0, dtype=np.float64), exponent(float(np.abs(residual).max()))
        blocks = in_blocks([residual], len(residual), residual.shape[1])
        numbers = itertools.count()

        def next_codes(block: np.ndarray) -> np.ndarray:
            start = next(numbers) * len(block)
            return shapes.pad(codes[start : start + len(block)], len(block), codes.shape[1])

        statistics = gather(blocks, next_codes, mean, power_of_two(-power))
        return cls(statistics, codes.shape[1], len(residual), mean, power)

    def solved(self, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Corrections [codebooks, 16, outputs], and one for every row."""
        found = _solve(self.statistics.gram, self.statistics.sums, self.rows, ridge)
        weights = np.ldexp(np.asarray(found.weights, np.float64), self.power)[:, : len(self.mean)]
        intercept = np.ldexp(np.asarray(found.intercept, np.float64), self.power)[: len(self.mean)] + self.mean
        return weights.reshape(-1, LEAVES, len(self.mean))[: self.codebooks], intercept


_solve = jax.jit(ridge_regression)
