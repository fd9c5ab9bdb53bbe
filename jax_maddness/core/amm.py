"""Approximate products: encode, aggregate, rescale, together with a term if there is one; and their derivatives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, UInt8

from jax_maddness.core import aggregate, arguments, encode, validate
from jax_maddness.core.epilogue import NONE, Epilogue
from jax_maddness.core.epilogue import validated as validate_epilogue
from jax_maddness.core.stack import Stacked, in_float32
from jax_maddness.core.types import KINDS, LookupTables, MaddnessOp, SplitTrees, Trees


class _Order(NamedTuple):
    """Whether rows lie in memory feature by feature, and whether the result is to lie so."""

    x_by_feature: bool
    y_by_feature: bool


def amm(
    x: Float[Array, "... features"],
    op: MaddnessOp,
    *,
    activation: str | None = None,
    residual: Float[Array, "... outputs"] | None = None,
    feature_major: bool = False,
    feature_major_result: bool = False,
) -> Float[Array, "... outputs"]:
    """Approximates `x @ w + b` by look-ups: `scale * aggregate(encode(x)) + offset`, together with a term if any.

    The method is that of Blalock & Guttag (2021), with exact sums in place of their averages. Codes and sums are the
    same on every backend and tier, and so are the int8 products of a term, which join the sums (`Factors`); the last
    step is computed in float32 and rounded to the dtype of `x`. The function composes with jit, vmap (over `x`, `op` or
    both), grad, scan, checkpoint, sharding and export.

    Derivatives: codes are piecewise constant in `x`, so the true derivative is zero. The derivative with respect to
    `x` and `op.weights` is that of the exact product `x @ op.weights` instead (straight-through), which needs
    `fit(..., keep_weights=True)`. The derivative with respect to `op.tables.scale`, `op.tables.offset` and the float
    matrices of an `ExactTerm` is the true one; with respect to the thresholds, and to what is rounded to int8, it is
    zero. Forward and reverse mode both work.

    Args:
      x: rows of float32, bfloat16 or float16, with any leading dimensions, including none and empty ones. NumPy's
        float64 is rounded to float32, with and without x64.
      op: the op that `fit` returned for `w` and `b`.
      activation: a function of `jax.nn` that follows, in the same call of the kernel, so that the outputs are not
        written and read once more: "relu", "relu6", "hard_swish", "gelu" (by tanh), "gelu_erf" (exact), "silu",
        "sigmoid" or "tanh". It is computed in float32, to within 4e-7 of the larger of 1 and what it is
        applied to; derivatives are those of the
        function in `jax.nn`. Static under `jax.jit`.
      residual: an array that is added to the outputs before the activation, in the same call; of their shape and
        dtype.
      feature_major: whether `x` lies in memory feature by feature, as `x_by_feature.T` does inside of `jax.jit`. It
        changes the time alone, not the result: of such rows only the features that trees compare are read, 4 of them
        for each codebook, and nothing is transposed. Static under `jax.jit`. It serves ops with `SplitTrees` and
        without a term, for more rows than `with_small_batch_tables` serves; others take the rows as ever. An activation
        or residual is then computed by XLA, after the outputs were rounded to the dtype of `x`.
      feature_major_result: with `feature_major`, whether the result is to lie so, too, so that `amm(...).T` inside of
        `jax.jit`, and the next layer with `feature_major`, transpose nothing. It changes the time alone.

    Returns:
      The approximate product, in the dtype of `x`, with the leading dimensions of `x`.

    Raises:
      TypeError: `x` is neither float32, bfloat16 nor float16, or `residual` has another dtype.
      ValueError: `x` does not have the features that `op` was learned from, there is no such activation, `residual`
        has another shape than the result, or the derivative is requested and `op` does not keep `w`.

    Example:
      >>> from jax_maddness import SplitTrees
      >>> trees = SplitTrees(jnp.zeros((1, 4), int), jnp.zeros((1, 15)), 1)
      >>> values = jnp.arange(16, dtype=jnp.uint8).reshape(1, 1, 16)
      >>> op = MaddnessOp(trees, LookupTables(values, scale=jnp.array([0.5]), offset=jnp.array([1.0])))
      >>> amm(jnp.array([[-1.0], [1.0]]), op).tolist()  # codes 0 and 15
      [[1.0], [8.5]]
      >>> amm(jnp.array([[-1.0], [1.0]]), op, activation="relu6").tolist()
      [[1.0], [6.0]]
    """
    validate.op(op)
    x = validate.rows(x, op.trees, op.term)
    flags = {"feature_major": feature_major, "feature_major_result": feature_major_result}
    order = _Order(*(arguments.flag(flag, name) for name, flag in flags.items()))
    if activation is None and residual is None:
        return _compiled(x, op, order)
    like = jax.ShapeDtypeStruct((*x.shape[:-1], op.num_outputs), x.dtype)
    epilogue = validate_epilogue(activation, residual, like)
    return _compiled_followed(x, op, epilogue.residual, order, epilogue.activation)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _amm(x: Float[Array, "... features"], op: MaddnessOp, order: _Order) -> Float[Array, "... outputs"]:
    return _product(x, op, order, NONE)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _amm_followed(
    x: Float[Array, "... features"], op: MaddnessOp, residual: Array | None, order: _Order, activation: str | None
) -> Float[Array, "... outputs"]:
    """Computes `_amm` and its epilogue."""
    return _product(x, op, order, Epilogue(activation, residual))


def _product(
    x: Float[Array, "... features"], op: MaddnessOp, order: _Order, epilogue: Epilogue
) -> Float[Array, "... outputs"]:
    if op.term is None:
        return _looked_up(x, op, order, epilogue)
    looked_up = functools.partial(_looked_up, x, op, order, NONE)
    return op.term.amm(x, op.trees, op.tables, looked_up, epilogue)


def _looked_up(
    x: Float[Array, "... features"], op: MaddnessOp, order: _Order, epilogue: Epilogue
) -> Float[Array, "... outputs"]:
    """Computes the outputs of the look-ups alone."""
    tables, by_code = op.tables, op.tables.by_code_for(x)
    stacked = _stacked[type(op.trees)]
    call, entries = (stacked.by_output, tables.values) if by_code is None else (stacked.by_code, by_code)
    scale, offset = (a.astype(jnp.float32) for a in (tables.scale, tables.offset))
    arrays = (*op.trees.arrays(), entries, scale, offset)
    if not (order.x_by_feature and by_code is None and isinstance(op.trees, SplitTrees)):
        return epilogue.after(call, x, *arrays)
    x = jnp.moveaxis(x, -1, 0)
    by_feature = _by_feature_and_output if order.y_by_feature else _by_feature
    y = by_feature(x, *arrays)
    y = jnp.moveaxis(y, 0, -1) if order.y_by_feature else y
    return epilogue.of(y) if epilogue else y


def amm_of_codes(
    codes: UInt8[Array, "... codebooks"], tables: LookupTables, dtype: jax.typing.DTypeLike = jnp.float32
) -> Float[Array, "... outputs"]:
    """Computes `scale * aggregate(codes) + offset`: the part of `amm` after encoding, without the sums in memory.

    The derivative with respect to `tables.scale` and `tables.offset` is the true one.

    Args:
      codes: uint8, one code per codebook, as `encode` returns them; any leading dimensions.
      tables: the lookup tables.
      dtype: dtype of the result: float32, bfloat16 or float16.

    Returns:
      The outputs, in `dtype`, with the leading dimensions of `codes`.

    Raises:
      TypeError: `codes` is not uint8.
      ValueError: `codes` and `tables` differ in the number of codebooks.
    """
    return _amm_of_codes(validate.codes(codes, tables), tables, jnp.dtype(dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _amm_of_codes(codes: Array, tables: LookupTables, dtype: jnp.dtype) -> Array:
    scale, offset = (a.astype(jnp.float32) for a in (tables.scale, tables.offset))
    return _of_codes[dtype](codes, tables.values, scale, offset)


@_amm_of_codes.defjvp
def _amm_of_codes_jvp(dtype: jnp.dtype, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (codes, tables), (_, dtables) = primals, tangents
    sums = aggregate.aggregate(codes, tables).astype(jnp.float32)
    y = _amm_of_codes(codes, tables, dtype)
    return y, (sums * _along_rows(dtables.scale, y) + _along_rows(dtables.offset, y)).astype(dtype)


def _jvp(order: _Order, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, op), (dx, dop) = primals, tangents
    y = _amm(x, op, order)
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
        dy += _sums(x, op) * _along_rows(dop.tables.scale, y)
    if not _is_zero(dop.tables.offset):
        dy += _along_rows(dop.tables.offset, y)
    if op.term is not None:
        dy += op.term.tangent(x, dop.term)
    return y, dy.astype(y.dtype)


_amm.defjvp(_jvp, symbolic_zeros=True)


def _followed_jvp(order: _Order, activation: str | None, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (*of_amm, residual), (*changes, change) = primals, tangents
    z, dz = _jvp(order, tuple(of_amm), tuple(changes))
    if residual is None:
        return jax.jvp(Epilogue(activation).of, (z,), (dz,))
    change = jnp.zeros_like(residual) if _is_zero(change) else change
    return jax.jvp(lambda z, residual: Epilogue(activation, residual).of(z), (z, residual), (dz, change))


_amm_followed.defjvp(_followed_jvp, symbolic_zeros=True)
# Outside of any `jit`, a call is compiled as one function; inside of one, it becomes a part of the caller.
_compiled_followed = jax.jit(lambda *args: _amm_followed(*args), static_argnums=(3, 4), inline=True)
_compiled = jax.jit(lambda *args: _amm(*args), static_argnums=2, inline=True)


def _sums(x: Array, op: MaddnessOp) -> Float[Array, "... outputs"]:
    """Returns the sums that `tables.scale` multiplies."""

    def looked_up() -> Array:
        return aggregate.aggregate(encode.encode(x, op.trees), op.tables)

    return looked_up().astype(jnp.float32) if op.term is None else op.term.sums(x, op.tables, looked_up)


def _is_zero(tangent: object) -> bool:
    return tangent is None or isinstance(tangent, SymbolicZero)


def _along_rows(per_output: Array, y: Array) -> Array:
    """Reshapes `[outputs]` to `[1, ..., outputs]`, in float32, to be combined with `y`."""
    return per_output.astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))


# ---- One `Stacked` call for each kind of trees ----

_Definition = Callable[..., Any]


def definition(kind: type[Trees]) -> _Definition:
    """Returns `amm` for a batch of ops, in pure JAX: the answer of every tier, up to the last float32 rounding.

    The arguments of the returned function are `x [ops, ..., features]`, the arrays of the trees of that kind, each for
    all ops, then those of the tables: `values [ops, outputs, codebooks, 16]`, `scale` and `offset` [ops, outputs].
    """

    def amm(x: Array, *arrays: Array) -> Float[Array, "ops ... outputs"]:
        *trees, values, scale, offset = arrays
        return definition_of_codes(x.dtype)(kind.definition(x, *trees), values, scale, offset)

    return amm


def definition_of_codes(dtype: jax.typing.DTypeLike) -> _Definition:
    """Returns `amm_of_codes` for a batch of ops: the answer of every tier, up to the last float32 rounding."""

    def amm_of_codes(codes: Array, values: Array, scale: Array, offset: Array) -> Float[Array, "ops ... outputs"]:
        return aggregate.rescaled(aggregate.definition(codes, values), scale, offset, dtype)

    return amm_of_codes


def definition_by_code(kind: type[Trees]) -> _Definition:
    """Returns `definition(kind)` for the second table layout, that of `with_small_batch_tables`.

    It takes `by_code [ops, codebooks, 16, outputs]` in place of `values`; the results are the same.
    """

    def amm_by_code(x: Array, *arrays: Array) -> Float[Array, "ops ... outputs"]:
        *trees, by_code, scale, offset = arrays
        return definition(kind)(x, *trees, jnp.moveaxis(by_code, -1, 1), scale, offset)

    return amm_by_code


def definition_by_feature(x: Array, *arrays: Array) -> Float[Array, "ops ... outputs"]:
    """Computes `definition(SplitTrees)` for rows that stand feature by feature, `x [ops, features, ...]`."""
    return definition(SplitTrees)(jnp.moveaxis(x, 1, -1), *arrays)


def definition_by_feature_and_output(x: Array, *arrays: Array) -> Float[Array, "ops outputs ..."]:
    """Computes the same output by output."""
    return jnp.moveaxis(definition_by_feature(x, *arrays), -1, 1)


class _Calls(NamedTuple):
    by_output: Stacked
    by_code: Stacked


def _calls(kind: type[Trees]) -> _Calls:
    name = f"jax_maddness_amm{kind.target_suffix}"
    rows_and_trees, rescale = f"b {{rows}} d, {kind.dimensions}", "b m, b m -> b {rows} m"
    by_output, by_code = definition(kind), definition_by_code(kind)
    return _Calls(
        Stacked(by_output, name, f"{rows_and_trees}, b m c k, {rescale}", before_rounding=in_float32(by_output)),
        Stacked(
            by_code, f"{name}_by_code", f"{rows_and_trees}, b c k m, {rescale}", before_rounding=in_float32(by_code)
        ),
    )


_stacked = {kind: _calls(kind) for kind in KINDS}
_by_feature = Stacked(
    definition_by_feature,
    "jax_maddness_amm_by_feature",
    f"b d {{rows}}, {SplitTrees.dimensions}, b m c k, b m, b m -> b {{rows}} m",
    row_axis=2,
)
_by_feature_and_output = Stacked(
    definition_by_feature_and_output,
    "jax_maddness_amm_by_feature_and_output",
    f"b d {{rows}}, {SplitTrees.dimensions}, b m c k, b m, b m -> b m {{rows}}",
    row_axis=2,
    result_row_axis=2,
)
_of_codes = {
    dtype: Stacked(
        definition_of_codes(dtype),
        "jax_maddness_amm_of_codes",
        "b {rows} c, b m c k, b m, b m -> b {rows} m",
        before_rounding=definition_of_codes(jnp.float32),
    )
    for dtype in validate.ROW_DTYPES
}
