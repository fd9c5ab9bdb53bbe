"""What `encode`, `aggregate` and `amm` accept, and what they say about the rest, while tracing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jax_maddness.core.types import (
    LEAVES,
    LEVELS,
    MAX_WIDTH,
    NODES,
    ExactTerm,
    LookupTables,
    MaddnessOp,
    ObliqueTrees,
    SplitTrees,
)

if TYPE_CHECKING:
    from jaxtyping import Array

ROW_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))


def rows(x: Array, split_trees: SplitTrees | ObliqueTrees) -> Array:
    """`x` as an array whose last dimension is the features of `split_trees`."""
    x = _as_array(x, "x")
    if x.dtype not in ROW_DTYPES:
        raise TypeError(f"`x` is {x.dtype}; expected float32, bfloat16 or float16. Cast it: `x.astype(jnp.float32)`.")
    trees(split_trees)
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"`x` has shape {x.shape}; expected [..., features] with at least one feature.")
    features = split_trees.num_features
    if isinstance(split_trees, ObliqueTrees):
        features = split_trees.center.shape[0]
    if features is not None and x.shape[-1] != features:
        raise ValueError(
            f"`x` has {x.shape[-1]} features, but `op` was learned from data with {features}. "
            "Pass the same features in the same order, or call `fit` again."
        )
    return x


def codes(array: Array, tables: LookupTables) -> Array:
    """`array` as codes for `tables`."""
    array = _as_array(array, "codes")
    if array.dtype != jnp.uint8:
        raise TypeError(f"`codes` is {array.dtype}; expected uint8, as `encode` returns them.")
    _tables(tables)
    if array.ndim < 1 or array.shape[-1] != tables.num_codebooks:
        raise ValueError(
            f"`codes` has shape {array.shape}; expected [..., {tables.num_codebooks}], one code for each of the "
            "codebooks of `tables`. Encode with the trees that were learned together with these tables."
        )
    return array


def trees(split_trees: SplitTrees | ObliqueTrees) -> None:
    """Raises unless the arrays of `split_trees` agree with each other."""
    codebooks = _oblique_trees(split_trees) if isinstance(split_trees, ObliqueTrees) else _split_trees(split_trees)
    if codebooks < 1:
        raise ValueError("`trees` has no codebook; expected at least one.")


def _split_trees(split_trees: SplitTrees) -> int:
    _kind(split_trees, SplitTrees, "trees")
    codebooks = split_trees.indices.shape[0] if getattr(split_trees.indices, "ndim", 0) else 0
    _shape("trees.indices", split_trees.indices, (codebooks, LEVELS), jnp.integer)
    _shape("trees.thresholds", split_trees.thresholds, (codebooks, NODES), jnp.floating)
    return codebooks


def _oblique_trees(oblique: ObliqueTrees) -> int:
    codebooks, width = oblique.features.shape if getattr(oblique.features, "ndim", 0) == 2 else (0, 0)
    _shape("trees.features", oblique.features, (codebooks, width), jnp.integer)
    _shape("trees.projections", oblique.projections, (codebooks, LEVELS, width), jnp.int8)
    _shape("trees.thresholds", oblique.thresholds, (codebooks, NODES), jnp.int32)
    features = oblique.num_features
    if features is None:
        features = oblique.center.shape[0] if getattr(oblique.center, "ndim", 0) else 0
    _shape("trees.center", oblique.center, (features,), jnp.floating)
    _shape("trees.scale", oblique.scale, (features,), jnp.floating)
    if codebooks and not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"`trees` projects {width} features per codebook; expected 1 to {MAX_WIDTH}. Use fewer.")
    return codebooks


def op(maddness_op: MaddnessOp) -> None:
    """Raises unless the arrays of `maddness_op` agree with each other."""
    _kind(maddness_op, MaddnessOp, "op")
    trees(maddness_op.trees)
    _tables(maddness_op.tables)
    if maddness_op.trees.num_codebooks != maddness_op.tables.num_codebooks:
        raise ValueError(
            f"`op.trees` has {maddness_op.trees.num_codebooks} codebooks, `op.tables` has "
            f"{maddness_op.tables.num_codebooks}. Build an op from trees and tables that were learned together. "
            "For an op whose arrays are stacked, use `jax.vmap` over it."
        )
    weights = maddness_op.weights
    if weights is not None:
        features = maddness_op.num_features or weights.shape[-2]
        _shape("op.weights", weights, (features, maddness_op.num_outputs), jnp.floating)
    if maddness_op.exact is not None:
        _exact(maddness_op.exact, maddness_op.num_features, maddness_op.num_outputs)


def _exact(term: ExactTerm, num_features: int | None, outputs: int) -> None:
    if not isinstance(term, ExactTerm):
        raise TypeError(f"`op.exact` is {type(term).__name__}; expected an ExactTerm, or None.")
    if term.indices is None and term.down is None:
        raise ValueError("`op.exact` has neither `indices` nor `down`. Pass one of them, or None for no exact term.")
    rank = 0
    if term.indices is not None:
        rank += term.indices.shape[0] if getattr(term.indices, "ndim", 0) else 0
        _shape("op.exact.indices", term.indices, (rank,), jnp.integer)
    if term.down is not None:
        features, directions = term.down.shape if getattr(term.down, "ndim", 0) == 2 else (0, 0)
        _shape("op.exact.down", term.down, (num_features or features, directions), jnp.floating)
        rank += directions
    _shape("op.exact.up", term.up, (rank, outputs), jnp.floating)
    if rank < 1:
        raise ValueError("`op.exact` has rank 0; expected at least 1. Pass None for no exact term.")


def _tables(tables: LookupTables) -> None:
    _kind(tables, LookupTables, "tables")
    outputs, codebooks = tables.values.shape[-3:-1] if getattr(tables.values, "ndim", 0) >= 3 else (0, 0)
    _shape("tables.values", tables.values, (outputs, codebooks, LEAVES), jnp.uint8)
    _shape("tables.scale", tables.scale, (outputs,), jnp.floating)
    _shape("tables.offset", tables.offset, (outputs,), jnp.floating)
    if tables.by_code is not None:
        _shape("tables.by_code", tables.by_code, (codebooks, LEAVES, outputs), jnp.uint8)


def _as_array(x: Array, name: str) -> Array:
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise TypeError(f"`{name}` is {type(x).__name__}; expected an array. Use `jnp.asarray({name})`.")
    return jnp.asarray(x)


def _kind(value: object, expected: type, name: str) -> None:
    if not isinstance(value, expected):
        if isinstance(value, MaddnessOp):
            hint = f"Pass `op.{name}`."
        elif hasattr(value, "dtype"):
            hint = f"The array comes first, then the {expected.__name__}."
        else:
            hint = "It is what `fit` returns, or a part of it."
        raise TypeError(f"`{name}` is {type(value).__name__}; expected {expected.__name__}. {hint}")


def _shape(name: str, array: Array, shape: tuple[int, ...], kind: type) -> None:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise TypeError(f"`{name}` is {type(array).__name__}; expected an array.")
    if array.shape != shape or not jnp.issubdtype(array.dtype, kind):
        raise ValueError(
            f"`{name}` is {array.dtype}{list(array.shape)}; expected {kind.__name__}{list(shape)}. "
            "If the op is stacked, use `jax.vmap` over it."
        )
