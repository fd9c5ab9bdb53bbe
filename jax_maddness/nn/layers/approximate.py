"""Computes what a replaced layer returns for `x`, from its spec and the arrays of its op. Pure JAX, no Flax.

The modules that stand in for layers, in nnx and in linen, call `apply`.
"""

from __future__ import annotations

import collections
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
from jax_maddness.core.terms.factors import Factors, expand, product_of
from jax_maddness.core.terms.kinds import TERM_KINDS
from jax_maddness.core.types import TREE_KINDS, LookupTables, MaddnessOp, Term
from jax_maddness.core.validate import ROW_DTYPES
from jax_maddness.nn.layers.exact_kernel import ExactKernel, maximum, of_arrays, with_exact_rows
from jax_maddness.nn.layers.float_tables import amm_floating, is_floating
from jax_maddness.nn.layers.form import Form
from jax_maddness.nn.layers.int8_low_rank import multiply
from jax_maddness.nn.layers.promotion import with_standard_promotion


@dataclasses.dataclass(frozen=True)
class Spec:
    """All static facts about a replaced layer.

    Attributes:
      form: how the layer's input becomes rows.
      dtype: the dtype in which the layer computes and returns; None: the promotion of its input and `param_dtype`.
      param_dtype: the dtype of the layer's kernel.
      owner: place of the op's arrays: the layer's path, or a path that layers with the same input share.
      trees: the kind of trees; or "int8", "low rank", "rewritten" or "top outputs" for a product without trees.
      num_features: features of a row, or of a position where codes are shared among taps.
      shared: each position is encoded once, and its codes are shared among the taps of a convolution.
      steps: number of steps of a scan, or members of a vmap, over which the arrays are stacked; 0: they are not.
      part: the op's outputs that are this layer's, `[start, stop)`; None: all.
      exact_rows, num_candidates, top: as in `Rule`.
      keeps_kernel: the model keeps the layer's kernel, which others read, as a `WeightNorm` around the layer does.
      pruned: it has fewer features or fewer outputs than the layer that it replaces (`prune_unused_outputs`).
    """

    form: Form
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
    keeps_kernel: bool = False
    pruned: bool = False
    top: int | None = None

    @property
    def has_tables(self) -> bool:
        """Whether the layer is replaced by look-ups, not by another product."""
        return self.trees in TREE_KINDS

    def promoted(self, x: Array) -> Array:
        """Converts `x` to the dtype in which the layer computes; see `promoted`."""
        return promoted(x, self.dtype, self.param_dtype)


def promoted(x: Array, dtype: str | None, param_dtype: str) -> Array:
    """Converts `x` to the dtype in which a layer computes, or to float32 where `amm` does not take that dtype."""
    wanted = jnp.dtype(dtype) if dtype else jnp.promote_types(x.dtype, jnp.dtype(param_dtype))
    return x.astype(wanted if wanted in ROW_DTYPES else jnp.float32)


def to_arrays(op: MaddnessOp) -> dict[str, Array]:
    """Returns the arrays of `op` by name, as modules hold them and files contain them."""
    arrays = {f"trees_{name}": getattr(op.trees, name) for name in op.trees.array_names()}
    arrays |= {f"tables_{f.name}": getattr(op.tables, f.name) for f in dataclasses.fields(op.tables)}
    if op.term is not None:
        arrays |= {f"{op.term.name}_{name}": array for name, array in op.term.arrays().items()}
    arrays["weights"] = op.weights
    return {name: array for name, array in arrays.items() if array is not None}


def to_op(spec: Spec, arrays: Mapping[str, Any]) -> MaddnessOp:
    """Builds the op that `to_arrays` took apart."""
    parts: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for name, array in arrays.items():
        if name != "weights":
            part, field = name.split("_", 1)
            parts[part][field] = array
    trees = TREE_KINDS[spec.trees].of_arrays(parts.pop("trees"), spec.num_features)
    tables = LookupTables(**parts.pop("tables"))
    terms = [TERM_KINDS[part](**fields) for part, fields in parts.items()]
    return MaddnessOp(trees, tables, arrays.get("weights"), *terms)


@with_standard_promotion
def apply(x: Array, spec: Spec, arrays: Mapping[str, Any]) -> Array:
    """Computes the output of a replaced layer, by look-ups or by the other product that replaces it.

    Args:
      x: the layer's input.
      spec: the static facts.
      arrays: the arrays that the layer's module holds, by name; of one step, if the layer is in a scan.

    Returns:
      The output, with the shape and dtype of the layer's own; with `spec.num_candidates`, its maximum over positions
      as a single position.
    """
    if not spec.has_tables:
        y = multiply(spec.promoted(x), spec.form, arrays, spec.top or 1, spec.num_candidates or 1)
        y = y if spec.part is None else y[..., spec.part[0] : spec.part[1]]
        return spec.form.output(y, x).astype(_result_dtype(x, spec))
    arrays, exact_kernel = of_arrays(arrays)
    return approximate(x, spec, to_op(spec, arrays), exact_kernel)


@with_standard_promotion
def approximate(x: Array, spec: Spec, op: MaddnessOp, exact_kernel: ExactKernel | None = None) -> Array:
    """Computes the output of a replaced layer by look-ups.

    Ops of convolutions with several groups are stacked, an op for each. An op whose codes are shared among taps has
    trees for one position, and tables for the codes of all taps, tap by tap. Tables may be floats (`to_floats`).

    Args:
      x: the layer's input.
      spec: the static facts.
      op: the layer's op.
      exact_kernel: for `exact_rows` and `num_candidates`.

    Returns:
      The output, as `apply` returns it.
    """
    form, rows, result = spec.form, spec.promoted(x), _result_dtype(x, spec)
    if spec.num_candidates is not None:
        return _maximum(rows, x, spec, op, exact_kernel).astype(result)
    y = _by_position(rows, form, op) if spec.shared else form.map_rows(functools.partial(_by_group, op=op), rows)
    if spec.exact_rows and exact_kernel is not None:
        y = with_exact_rows(form.prepared(rows), y, form, exact_kernel, spec.exact_rows)
    if spec.part is not None:
        y = y[..., spec.part[0] : spec.part[1]]
    return form.output(y, x).astype(result)


def _result_dtype(x: Array, spec: Spec) -> jnp.dtype:
    """Returns the dtype of the layer's output."""
    return jnp.dtype(spec.dtype) if spec.dtype else jnp.promote_types(x.dtype, jnp.dtype(spec.param_dtype))


def _product(x: Array, op: MaddnessOp) -> Array:
    return amm_floating(x, op) if is_floating(op.tables) else amm(x, op)


def _of_codes(codes: Array, op: MaddnessOp, dtype: jnp.dtype) -> Array:
    """Computes outputs from what `_encoded` returns for the positions that each row sees, [..., taps, bytes]."""
    tables, term, lead = op.tables, op.term, codes.shape[:-2]
    codes, u = codes[..., : op.trees.num_codebooks], codes[..., op.trees.num_codebooks :]
    codes, u = codes.reshape(*lead, -1), lax.bitcast_convert_type(u, jnp.int8).reshape(*lead, -1)
    if not is_floating(tables):
        if term is None:
            return amm_of_codes(codes, tables, dtype)
        return expand(codes if tables.num_codebooks else None, u, tables, _factors(term), dtype)
    y = tables.offset
    if tables.num_codebooks:
        y = look_up(codes, tables.values) + y
    if term is not None:
        y = product_of(u, tables, _factors(term)) + y
    return y.astype(dtype)


def _factors(term: Term | None) -> Factors:
    assert isinstance(term, Factors)  # nothing else projects single positions
    return term


def _by_group(rows: Array, op: MaddnessOp) -> Array:
    """Multiplies rows [..., groups, D] by an op per group: [..., outputs]; a single op is not stacked."""
    if rows.shape[-2] == 1:
        return _product(jnp.squeeze(rows, -2), op)
    y = jax.vmap(_product, (-2, 0), -2)(rows, op)
    return y.reshape(*y.shape[:-2], -1)


def _maximum(rows: Array, x: Array, spec: Spec, op: MaddnessOp, exact_kernel: ExactKernel | None) -> Array:
    """Computes the maximum of each output over the positions, as a single position, in float32."""
    form = spec.form
    assert exact_kernel is not None
    assert spec.num_candidates is not None
    padded, row_shape = form.prepared(rows), form.row_shape(rows)

    sums_decide = spec.shared and op.term is None and not is_floating(op.tables)

    def greatest(skipped: Array, k: int) -> tuple[Array, Array]:
        if spec.shared:
            codes = _codes_of_taps(rows, form, op).reshape(*skipped.shape, form.taps, -1)
            if sums_decide:
                return greatest_sums(codes.reshape(*skipped.shape, -1), op.tables.values, skipped, k)
            scores = _of_codes(codes, op, jnp.dtype(jnp.float32))
        else:
            scores = form.map_rows(functools.partial(_by_group, op=op), rows)
        # Computed once: where two computations round differently, none of them has the maximum of the other.
        return of_scores(lax.optimization_barrier(scores).reshape(*skipped.shape, -1), skipped, k)

    def value(scores: Array) -> Array:
        scores = scores.astype(jnp.float32)
        return op.tables.scale * scores + op.tables.offset if sums_decide else scores

    y = maximum(padded, row_shape, greatest, value, form, exact_kernel, spec.exact_rows, spec.num_candidates)
    return form.output(y.reshape(y.shape[0], *[1] * len(form.position_axes), -1), x)


def _by_position(x: Array, form: Form, op: MaddnessOp) -> Array:
    """Encodes every position once; each output aggregates the codes that its taps see."""
    codes = _codes_of_taps(x, form, op)
    row_shape, of_codes = codes.shape[:-2], functools.partial(_of_codes, dtype=x.dtype)
    if form.groups == 1:
        y = of_codes(codes, op)
    else:
        y = jax.vmap(of_codes, (-2, 0), -2)(codes.reshape(*codes.shape[:-1], form.groups, -1), op)
    y = y.reshape(*row_shape, -1)
    return y if op.weights is None else y + _straight_through(form.prepared(x), op.weights, form, row_shape)


def _codes_of_taps(x: Array, form: Form, op: MaddnessOp) -> Array:
    """Returns the codes that each row sees, [*row_shape, taps, groups * bytes]."""
    return form.map_positions(functools.partial(_encode_groups, groups=form.groups, op=op), x)


def _encode_groups(x: Array, groups: int, op: MaddnessOp) -> Array:
    """Encodes features [..., features] as codes [..., groups * bytes]."""
    if groups == 1:
        return _encoded(x, op)
    codes = jax.vmap(_encoded, (-2, 0), -2)(x.reshape(*x.shape[:-1], groups, -1), op)
    return codes.reshape(*x.shape[:-1], -1)


def _encoded(x: Array, op: MaddnessOp) -> Array:
    """Returns the codes of a position, uint8, followed by its projections on the directions of factors, if any."""
    if op.term is None:
        return encode(x, op.trees)
    u = lax.bitcast_convert_type(_factors(op.term).project(x), jnp.uint8)
    return jnp.concatenate([encode(x, op.trees), u], -1) if op.trees.num_codebooks else u


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _straight_through(prepared: Array, weights: Array, form: Form, row_shape: tuple[int, ...]) -> Array:
    """Returns zeros whose derivative is that of the layer's exact product, as `amm` has it for its own product."""
    return jnp.zeros((*row_shape, weights.shape[-1] * form.groups), prepared.dtype)


@_straight_through.defjvp
@with_standard_promotion
def _straight_through_jvp(form: Form, row_shape: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple:
    (prepared, weights), (d_prepared, d_weights) = primals, tangents
    zeros = _straight_through(prepared, weights, form, row_shape)
    return zeros, form.product(d_prepared, weights) + form.product(prepared, d_weights)
