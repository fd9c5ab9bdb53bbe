"""Moves the order in which an op reads features into the layer before it, and drops the features that it skips."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int32

from jax_maddness.core import arguments
from jax_maddness.core.types import MaddnessOp


def fold_feature_order(
    op: MaddnessOp, w_before: Float[ArrayLike, "inputs features"], b_before: Float[ArrayLike, " features"]
) -> tuple[MaddnessOp, Array, Array]:
    """Moves the order in which `op` reads features into the layer before it, where order costs nothing.

    The results `op2, w2, b2` are such that `amm(act(h @ w2 + b2), op2)` equals `amm(act(h @ w_before + b_before), op)`
    for every elementwise activation `act`, or none. The columns of `w2` are in the order in which the trees read them:
    a column that several codebooks read is repeated, and one that no codebook reads is dropped and is no longer
    computed (`SplitTrees` read at most 4 features per codebook). Codes are the same as long as both products round
    alike.

    Normalization between the two layers (softmax, LayerNorm) is not elementwise: it would see repeated and missing
    features. If its last step is a gain and an offset, pass the gain as `w_before` with one row and the offset as
    `b_before`.

    Args:
      op: a single op, not a stack of ops, whose inputs are the outputs of the layer before it.
      w_before: weights of the layer before `op`, of any floating dtype.
      b_before: bias of that layer.

    Returns:
      `(op2, w2, b2)`: the op that reads its features in order; `w_before` with the columns that it reads, in that
      order, `[inputs, features read]`; and `b_before` likewise, `[features read]`.

    Raises:
      TypeError: `op` is not a `MaddnessOp`, or `w_before` or `b_before` is no array of real numbers.
      ValueError: `op` holds a stack of ops or has a term, or the shapes of `w_before` and `b_before` do not match it.

    Example:
      >>> from jax_maddness import LookupTables, SplitTrees
      >>> trees = SplitTrees(jnp.array([[5, 2, 5, 2]]), jnp.zeros((1, 15)), 6)
      >>> op = MaddnessOp(trees, LookupTables(jnp.zeros((3, 1, 16), jnp.uint8), jnp.ones(3), jnp.zeros(3)))
      >>> folded, w, b = fold_feature_order(op, jnp.ones((7, 6)), jnp.arange(6.0))
      >>> folded.trees.indices.tolist(), w.shape, b.tolist()
      ([[0, 1, 0, 1]], (7, 2), [5.0, 2.0])
    """
    if not isinstance(op, MaddnessOp):
        raise TypeError(f"`op` is {type(op).__name__}; expected a MaddnessOp.")
    if op.term is not None:
        raise ValueError(
            f"`op` has {type(op.term).__name__} beside its look-ups, which reads all features in their order. Learn an "
            "op without `rank` and `outliers`."
        )
    w, b = (jnp.asarray(arguments.real_array(a, n)) for a, n in ((w_before, "w_before"), (b_before, "b_before")))
    features = op.num_features or b.shape[-1]
    if op.tables.values.ndim != 3:
        raise ValueError("`op` holds a stack of ops. Fold them one by one: each reads features of its own.")
    if w.ndim != 2 or b.shape != w.shape[1:] or len(b) != features:
        raise ValueError(
            f"`w_before` has shape {w.shape}, `b_before` {b.shape}; expected [inputs, {features}] and ({features},). "
            "Pass those of the layer whose outputs `op` reads."
        )
    trees, read = op.trees.in_reading_order()
    weights = None if op.weights is None else _kept(op.weights, read)
    return dataclasses.replace(op, trees=trees, weights=weights), w[:, read], b[read]


def _kept(weights: Float[Array, "features outputs"], read: Int32[np.ndarray, " read"]) -> Float[Array, "read outputs"]:
    """Takes the weights of the features that are read, for gradients: those of a repeated feature are divided."""
    times = np.bincount(read, minlength=len(weights))[read]
    return weights[read] / jnp.asarray(times, weights.dtype)[:, None]
