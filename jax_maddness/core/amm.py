"""amm(x, op): encode, aggregate, rescale; and what is differentiated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jax_maddness.core import aggregate, checks, encode
from jax_maddness.core.stack import Stacked
from jax_maddness.core.types import FEW_ROWS, MaddnessOp, ObliqueTrees

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32, UInt8


def amm(x: Float[Array, "... features"], op: MaddnessOp) -> Float[Array, "... outputs"]:
    """Approximates `x @ w + b` by look-ups: `scale * aggregate(encode(x)) + offset`.

    Codes and sums are the same on every backend and tier; the last step is computed in float32 and rounded to the
    dtype of `x`. Composes with jit, vmap (over `x`, `op` or both), grad, scan, checkpoint, sharding and export.

    What is differentiated: codes are piecewise constant in `x`, so the true derivative is zero. The derivative with
    respect to `x` and `op.weights` is that of the exact product `x @ op.weights` instead (straight-through), which
    needs `fit(..., keep_weights=True)`. With respect to `op.tables.scale` and `op.tables.offset` it is the true one;
    with respect to the thresholds it is zero. Forward and reverse mode both work.

    Args:
      x: rows of float32, bfloat16 or float16; any leading dimensions, also none, also empty ones.
      op: what `fit` learned.

    Returns:
      An array of the same dtype as `x`.

    Raises:
      TypeError: `x` is of another dtype.
      ValueError: `x` does not have the features that `op` was learned from, or its derivative is asked for and
        `op` does not keep `w`.
    """
    checks.op(op)
    x = checks.rows(x, op.trees)
    return _amm(x, op)


@jax.custom_jvp
def _amm(x: Float[Array, "... features"], op: MaddnessOp) -> Float[Array, "... outputs"]:
    trees, tables = op.trees, op.tables
    if isinstance(trees, ObliqueTrees):  # no kernel yet
        sums = aggregate.aggregate(encode.encode(x, trees), tables)
        return _rescale(sums[None], tables.scale[None], tables.offset[None])[0].astype(x.dtype)
    by_code = tables.by_code if _has_few_rows(x) else None
    call, entries = (_stacked, tables.values) if by_code is None else (_stacked_by_code, by_code)
    return call(
        x,
        *encode.arrays(trees),
        entries,
        tables.scale.astype(jnp.float32),
        tables.offset.astype(jnp.float32),
    )


def _has_few_rows(x: Array) -> bool:
    lead = x.shape[:-1]  # symbolic in an export for any number of rows
    return all(isinstance(n, int) for n in lead) and math.prod(lead) <= FEW_ROWS


def _jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, op), (dx, dop) = primals, tangents
    y = _amm(x, op)
    if op.weights is None and not _is_zero(dx):
        raise ValueError(
            "The derivative of `amm` with respect to `x` is that of the exact product, and `op` does not keep `w`. "
            "Call `fit(..., keep_weights=True)`, or `jax.lax.stop_gradient(x)` if it is not wanted."
        )
    dy = jnp.zeros(y.shape, jnp.float32)
    if not _is_zero(dx):
        dy += jnp.matmul(dx, op.weights, preferred_element_type=jnp.float32)
    if not _is_zero(dop.weights):
        dy += jnp.matmul(x, dop.weights, preferred_element_type=jnp.float32)
    if not _is_zero(dop.tables.scale):
        sums = aggregate.aggregate(encode.encode(x, op.trees), op.tables)
        dy += sums.astype(jnp.float32) * _along_rows(dop.tables.scale, y)
    if not _is_zero(dop.tables.offset):
        dy += _along_rows(dop.tables.offset, y)
    return y, dy.astype(y.dtype)


_amm.defjvp(_jvp, symbolic_zeros=True)


def _is_zero(tangent: object) -> bool:
    return tangent is None or isinstance(tangent, SymbolicZero)


def _along_rows(per_output: Array, y: Array) -> Array:
    """[outputs] as float32 [1, ..., outputs]."""
    return per_output.astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))


def definition(
    x: Float[Array, "ops ... features"],
    indices: Int32[Array, "ops codebooks 4"],
    thresholds: Float[Array, "ops codebooks 15"],
    values: UInt8[Array, "ops outputs codebooks 16"],
    scale: Float[Array, "ops outputs"],
    offset: Float[Array, "ops outputs"],
) -> Float[Array, "ops ... outputs"]:
    """`amm` for a batch of ops, in pure JAX: the answer that every tier must give, up to the last f32 rounding."""
    sums = aggregate.definition(encode.definition(x, indices, thresholds), values)
    return _rescale(sums, scale, offset).astype(x.dtype)


def _rescale(
    sums: Int32[Array, "ops ... outputs"], scale: Float[Array, "ops outputs"], offset: Float[Array, "ops outputs"]
) -> Float[Array, "ops ... outputs"]:
    lead = (slice(None), *[None] * (sums.ndim - 2))
    return scale.astype(jnp.float32)[lead] * sums.astype(jnp.float32) + offset.astype(jnp.float32)[lead]


_stacked = Stacked(definition, "jax_maddness_amm", "b {rows} d, b c l, b c t, b m c k, b m, b m -> b {rows} m")


def definition_by_code(
    x: Float[Array, "ops ... features"],
    indices: Int32[Array, "ops codebooks 4"],
    thresholds: Float[Array, "ops codebooks 15"],
    by_code: UInt8[Array, "ops codebooks 16 outputs"],
    scale: Float[Array, "ops outputs"],
    offset: Float[Array, "ops outputs"],
) -> Float[Array, "ops ... outputs"]:
    """The same answer from the tables in their other order (`with_few_rows_layout`)."""
    return definition(x, indices, thresholds, jnp.moveaxis(by_code, -1, 1), scale, offset)


_stacked_by_code = Stacked(
    definition_by_code, "jax_maddness_amm_by_code", "b {rows} d, b c l, b c t, b c k m, b m, b m -> b {rows} m"
)
