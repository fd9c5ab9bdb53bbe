"""op, the layer before -> an op that reads contiguous features, and that layer with what it reads, and no more."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int32

from jax_maddness.core.types import MaddnessOp


def fold_feature_order(
    op: MaddnessOp, w_before: Float[ArrayLike, "inputs features"], b_before: Float[ArrayLike, " features"]
) -> tuple[MaddnessOp, Array, Array]:
    """Moves the order in which `op` reads features into the layer before it, where order is free.

    Returns `op2, w2, b2` such that `amm(act(h @ w2 + b2), op2)` is `amm(act(h @ w_before + b_before), op)` for every
    elementwise activation `act`, or none: columns that trees read are put in the order in which they read them. Those
    that several codebooks read are repeated; those that none reads are dropped, and need not be computed at all:
    `SplitTrees` read at most 4 features per codebook. Codes are the same as long as the two products round alike.

    Normalisation between the two (softmax, LayerNorm) is not elementwise: it sees repeated and missing features. Where
    its gain and offset are the last step, fold into those instead: they are a `b_before`, with `w_before` of one row.

    Raises:
      TypeError: `op` is not a `MaddnessOp`.
      ValueError: `op` holds a stack of ops, or the shapes of `w_before` and `b_before` do not match it.

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
    w, b = jnp.asarray(w_before), jnp.asarray(b_before)
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
    """Weights of the features that are left, for gradients: a repeated feature's are shared out."""
    times = np.bincount(read, minlength=len(weights))[read]
    return weights[read] / jnp.asarray(times, weights.dtype)[:, None]
