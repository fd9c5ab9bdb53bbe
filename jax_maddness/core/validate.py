"""Validates the arguments of `encode`, `aggregate` and `amm` while they are traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_maddness.core.trees.base import LEAVES, Trees, validate_array
from jax_maddness.core.types import LookupTables, MaddnessOp, Term

ROW_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
"""The dtypes that rows may have."""
_VALID = "_is_valid"


def rows(x: Array, split_trees: Trees, term: Term | None = None) -> Array:
    """Returns `x` as an array, if its last dimension has the features that trees and term need; raises otherwise."""
    x = _as_array(x, "x")
    _kind(split_trees, Trees, "trees")
    if x.dtype not in ROW_DTYPES:
        raise TypeError(f"`x` is {x.dtype}; expected float32, bfloat16 or float16. Cast it: `x.astype(jnp.float32)`.")
    _once(split_trees, split_trees.validate)
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"`x` has shape {x.shape}; expected [..., features] with at least one feature.")
    features = split_trees.row_features
    if features is None and term is not None:
        features = term.row_features
    if features is not None and x.shape[-1] != features:
        raise ValueError(
            f"`x` has {x.shape[-1]} features, but `op` was learned from data with {features}. "
            "Pass the same features in the same order, or call `fit` again."
        )
    return x


def codes(array: Array, tables: LookupTables) -> Array:
    """Returns `array` as an array, if it holds codes for `tables`; raises otherwise."""
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


def trees(split_trees: Trees) -> None:
    """Raises unless the arrays of `split_trees` agree with each other."""
    _kind(split_trees, Trees, "trees")
    _once(split_trees, split_trees.validate)
    if split_trees.num_codebooks < 1:
        raise ValueError("`trees` has no codebook; expected at least one.")


def op(maddness_op: MaddnessOp) -> None:
    """Raises unless the arrays of `maddness_op` agree with each other."""
    _kind(maddness_op, MaddnessOp, "op")
    _once(maddness_op, lambda: _op(maddness_op))


def _once(value: Any, validate: Callable[[], None]) -> None:
    """Calls `validate` unless this very object was valid before: its arrays are never exchanged.

    Otherwise every call outside of `jax.jit` would take as long to validate as to compute a few rows.
    """
    if not getattr(value, _VALID, False):
        validate()
        object.__setattr__(value, _VALID, True)  # the dataclasses are frozen


def _op(maddness_op: MaddnessOp) -> None:
    _kind(maddness_op.trees, Trees, "trees")
    term, codebooks = maddness_op.term, maddness_op.trees.num_codebooks
    if term is not None and not isinstance(term, Term):
        raise TypeError(f"`op.term` is {type(term).__name__}; expected a term such as Factors, or None.")
    if codebooks or term is None or not term.stands_alone:
        trees(maddness_op.trees)
    _tables(maddness_op.tables)
    if codebooks != maddness_op.tables.num_codebooks:
        raise ValueError(
            f"`op.trees` has {codebooks} codebooks, `op.tables` has "
            f"{maddness_op.tables.num_codebooks}. Build an op from trees and tables that were learned together. "
            "For an op whose arrays are stacked, use `jax.vmap` over it."
        )
    weights = maddness_op.weights
    if weights is not None:
        features = maddness_op.num_features or weights.shape[-2]
        validate_array("op.weights", weights, (features, maddness_op.num_outputs), jnp.floating)
    if term is not None:
        term.validate(maddness_op.num_features, codebooks, maddness_op.num_outputs)


def _tables(tables: LookupTables) -> None:
    _kind(tables, LookupTables, "tables")
    outputs, codebooks = tables.values.shape[-3:-1] if getattr(tables.values, "ndim", 0) >= 3 else (0, 0)
    validate_array("tables.values", tables.values, (outputs, codebooks, LEAVES), jnp.uint8)
    validate_array("tables.scale", tables.scale, (outputs,), jnp.floating)
    validate_array("tables.offset", tables.offset, (outputs,), jnp.floating)
    if tables.by_code is not None:
        validate_array("tables.by_code", tables.by_code, (codebooks, LEAVES, outputs), jnp.uint8)


def _as_array(x: Array, name: str) -> Array:
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise TypeError(f"`{name}` is {type(x).__name__}; expected an array. Use `jnp.asarray({name})`.")
    if isinstance(x, np.ndarray) and x.dtype.kind in "USOMm":  # no numbers: JAX would blame a function of its own
        raise TypeError(f"`{name}` is an array of {x.dtype}; expected one of numbers.")
    if isinstance(x, np.ndarray) and x.dtype == np.float64:
        # NumPy's default dtype is no choice of the user's. JAX itself rounds it to float32 unless x64 is enabled.
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def _kind(value: object, expected: type, name: str) -> None:
    if not isinstance(value, expected):
        if isinstance(value, MaddnessOp):
            hint = f"Pass `op.{name}`."
        elif hasattr(value, "dtype"):
            hint = f"The array comes first, then the {expected.__name__}."
        else:
            hint = "It is what `fit` returns, or a part of it."
        raise TypeError(f"`{name}` is {type(value).__name__}; expected {expected.__name__}. {hint}")
