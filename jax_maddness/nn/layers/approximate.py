"""x, op -> what a replaced layer returns. Pure JAX, no Flax: both kinds of layers call `approximate`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jax_maddness.core.amm import amm, amm_of_codes
from jax_maddness.core.encode import encode
from jax_maddness.core.greatest import greatest as greatest_sums
from jax_maddness.core.greatest import of_scores
from jax_maddness.core.look_up import look_up
from jax_maddness.core.types import TREE_KINDS, ExactTerm, LookupTables, MaddnessOp
from jax_maddness.core.validate import ROW_DTYPES
from jax_maddness.nn.layers.contraction import Contraction
from jax_maddness.nn.layers.convolution import Convolution
from jax_maddness.nn.layers.exact_kernel import ExactKernel, maximum, of_arrays, with_exact_rows
from jax_maddness.nn.layers.float_tables import amm_floating, is_floating
from jax_maddness.nn.layers.int8_low_rank import multiply

TREES = TREE_KINDS


@dataclasses.dataclass(frozen=True)
class Spec:
    """All that is static about a replaced layer.

    Attributes:
      form: how its input becomes rows.
      dtype: what the layer computes in, and returns; None: what its input and `param_dtype` promote to.
      param_dtype: of the kernel that was.
      owner: where the arrays of the op are: the layer's path, or one that layers with the same input share.
      trees: which kind; or "int8" or "low rank", where there are none.
      num_features: of a row, or of a position where codes are shared.
      shared: positions are encoded, and their codes shared among a convolution's taps.
      steps: over so many steps of a scan the arrays are stacked; 0: they are not.
      part: which of the op's outputs are this layer's, `[start, stop)`; None: all.
      exact_rows, num_candidates: as in `Rule`.
      pruned: it has fewer features, or fewer outputs, than the layer that it stands for (`prune_unused_outputs`).
    """

    form: Contraction | Convolution
    dtype: str | None
    param_dtype: str
    owner: str
    trees: str
    num_features: int | None
    shared: bool = False
    steps: int = 0
    part: tuple[int, int] | None = None
    exact_rows: float = 0.0
    num_candidates: int | None = None
    pruned: bool = False

    def promoted(self, x: Array) -> Array:
        """`x` as rows that `amm` takes, in the layer's dtype where it is one of those."""
        return promoted(x, self.dtype, self.param_dtype)


def promoted(x: Array, dtype: str | None, param_dtype: str) -> Array:
    """`x` in the dtype in which a layer computes, or in float32 where `amm` does not know that one."""
    wanted = jnp.dtype(dtype) if dtype else jnp.promote_types(x.dtype, jnp.dtype(param_dtype))
    return x.astype(wanted if wanted in ROW_DTYPES else jnp.float32)


def to_arrays(op: MaddnessOp) -> dict[str, Array]:
    """The arrays of `op` by name: what modules hold and files contain."""
    found = {f"trees_{name}": getattr(op.trees, name) for name in op.trees.array_names()}
    found |= {f"tables_{f.name}": getattr(op.tables, f.name) for f in dataclasses.fields(op.tables)}
    if op.exact is not None:
        found |= {f"exact_{f.name}": getattr(op.exact, f.name) for f in dataclasses.fields(op.exact)}
    found["weights"] = op.weights
    return {name: array for name, array in found.items() if array is not None}


def to_op(spec: Spec, arrays: Mapping[str, Any]) -> MaddnessOp:
    """The op that `to_arrays` took apart."""
    parts: dict[str, dict[str, Any]] = {"trees": {}, "tables": {}, "exact": {}}
    for name, array in arrays.items():
        if name != "weights":
            part, field = name.split("_", 1)
            parts[part][field] = array
    trees = TREE_KINDS[spec.trees].of_arrays(parts["trees"], spec.num_features)
    exact = ExactTerm(**parts["exact"]) if parts["exact"] else None
    return MaddnessOp(trees, LookupTables(**parts["tables"]), arrays.get("weights"), exact)


def apply(x: Array, spec: Spec, arrays: Mapping[str, Any]) -> Array:
    """`approximate` with what a module holds; or the layer's other product."""
    if spec.trees not in TREES:
        y = multiply(spec.promoted(x), spec.form, arrays)
        y = y if spec.part is None else y[..., spec.part[0] : spec.part[1]]
        return spec.form.output(y, x).astype(_result(x, spec))
    arrays, exact_kernel = of_arrays(arrays)
    return approximate(x, spec, to_op(spec, arrays), exact_kernel)


def approximate(x: Array, spec: Spec, op: MaddnessOp, exact_kernel: ExactKernel | None = None) -> Array:
    """What the layer returns for `x`, by look-ups.

    Ops of convolutions with several groups are stacked, an op for each. An op whose codes are shared among taps has
    trees for one position, and tables for the codes of all taps, tap by tap. Tables may be floats (`to_floats`).
    """
    form, rows, result = spec.form, spec.promoted(x), _result(x, spec)
    if isinstance(form, Convolution) and spec.num_candidates is not None:
        return _maximum(rows, x, spec, op, exact_kernel).astype(result)
    if isinstance(form, Contraction):
        rows = form.rows(rows)
        y = _product(rows, op)
    elif spec.shared:
        y = _by_position(rows, form, op)
    else:
        y = form.map_patches(functools.partial(_by_group, op=op), rows)
    if spec.exact_rows and exact_kernel is not None:
        padded = form.padded(rows) if isinstance(form, Convolution) else rows
        y = with_exact_rows(padded, y, form, exact_kernel, spec.exact_rows)
    if spec.part is not None:
        y = y[..., spec.part[0] : spec.part[1]]
    return form.output(y, x).astype(result)


def _result(x: Array, spec: Spec) -> jnp.dtype:
    """What the layer returns."""
    return jnp.dtype(spec.dtype) if spec.dtype else jnp.promote_types(x.dtype, jnp.dtype(spec.param_dtype))


def _product(x: Array, op: MaddnessOp) -> Array:
    return amm_floating(x, op) if is_floating(op.tables) else amm(x, op)


def _of_codes(codes: Array, tables: LookupTables, dtype: jnp.dtype) -> Array:
    if is_floating(tables):
        return (look_up(codes, tables.values) + tables.offset).astype(dtype)
    return amm_of_codes(codes, tables, dtype)


def _by_group(patches: Array, op: MaddnessOp) -> Array:
    """[..., groups, D] -> [..., M], an op per group if there are several."""
    if patches.shape[-2] == 1:
        return _product(patches[..., 0, :], op)
    y = jax.vmap(_product, (-2, 0), -2)(patches, op)
    return y.reshape(*y.shape[:-2], -1)


def _maximum(rows: Array, x: Array, spec: Spec, op: MaddnessOp, exact_kernel: ExactKernel | None) -> Array:
    """The greatest outputs over positions as a single position, in float32."""
    form = spec.form
    assert isinstance(form, Convolution)
    assert exact_kernel is not None
    assert spec.num_candidates is not None
    padded, out = form.padded(rows), form.out_positions(rows)

    def greatest(skipped: Array, k: int) -> tuple[Array, Array]:
        if spec.shared:
            codes = _codes_of_taps(rows, form, op).reshape(*skipped.shape, -1)
            if not is_floating(op.tables):
                return greatest_sums(codes, op.tables.values, skipped, k)
            scores = look_up(codes, op.tables.values)
        else:
            scores = form.map_patches(functools.partial(_by_group, op=op), rows)
        # Computed once: where two computations round differently, none of them has the maximum of the other.
        return of_scores(lax.optimization_barrier(scores).reshape(*skipped.shape, -1), skipped, k)

    def value(scores: Array) -> Array:
        scores = scores.astype(jnp.float32)
        return op.tables.scale * scores + op.tables.offset if spec.shared else scores

    y = maximum(padded, (len(padded), *out), greatest, value, form, exact_kernel, spec.exact_rows, spec.num_candidates)
    return form.output(y.reshape(len(y), *[1] * len(form.size), -1), x)


def _by_position(x: Array, form: Convolution, op: MaddnessOp) -> Array:
    """Encodes every position once; each output aggregates the codes that its taps see."""
    out, codes = form.out_positions(x), _codes_of_taps(x, form, op)
    if form.groups == 1:
        y = _of_codes(codes.reshape(*codes.shape[:-2], -1), op.tables, x.dtype)
    else:
        by_group = jnp.moveaxis(codes.reshape(*codes.shape[:-1], form.groups, -1), -2, -3)
        of_codes = functools.partial(_of_codes, dtype=x.dtype)
        y = jax.vmap(of_codes, (-2, 0), -2)(by_group.reshape(*by_group.shape[:-2], -1), op.tables)
    y = y.reshape(len(codes), *out, -1)
    return y if op.weights is None else y + _straight_through(form.padded(x), op.weights, form, out)


def _codes_of_taps(x: Array, form: Convolution, op: MaddnessOp) -> Array:
    """[batch, *out, taps, groups * codebooks].

    Codes are padded in place of `x`, which is larger: with those of zeros, where zeros are what is around `x`.
    """
    around = _encode_groups(jnp.zeros(x.shape[-1:], x.dtype), form.groups, op)
    padded = form.padded(_encode_groups(x, form.groups, op) ^ around) ^ around
    # Without the barrier XLA pads each tap anew, four times as slow.
    return form.gathered(lax.optimization_barrier(padded), form.out_positions(x))


def _encode_groups(x: Array, groups: int, op: MaddnessOp) -> Array:
    """[..., features] -> codes [..., groups * codebooks]."""
    if groups == 1:
        return encode(x, op.trees)
    codes = jax.vmap(encode, (-2, 0), -2)(x.reshape(*x.shape[:-1], groups, -1), op.trees)
    return codes.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _straight_through(padded: Array, weights: Array, form: Convolution, out: tuple[int, ...]) -> Array:
    """Zeros whose derivative is that of the exact convolution, as `amm` has it for the exact product."""
    outputs = weights.shape[-1] * form.groups
    return jnp.zeros((len(padded), *out, outputs), padded.dtype)


@_straight_through.defjvp
def _straight_through_jvp(form: Convolution, out: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple:
    (padded, weights), (d_padded, d_weights) = primals, tangents
    zeros = _straight_through(padded, weights, form, out)
    return zeros, form.product(d_padded, weights) + form.product(padded, d_weights)
