"""patches -> an op whose trees encode single positions, and whose tables sum the codes of all of a patch's positions.

A convolution's patch is several positions, and each position is in several patches: encoded once, its codes serve all
of them. The trees are learned on positions, to leave the least error in the products with the kernels of all taps at
once. The tables of all taps' codes are then solved together, from patches: what one tap's codes miss, another's may
tell.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Float

from jax_maddness.core.types import MaddnessOp
from jax_maddness.learn.config import FitConfig
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.data.rows import Rows, exponent, power_of_two
from jax_maddness.learn.fit import tables_for
from jax_maddness.learn.methods.auto import METHODS
from jax_maddness.learn.methods.learned import Learned
from jax_maddness.learn.progress import Progress


def fit_taps(
    patches: Float[np.ndarray, "rows patch"],
    w: Float[np.ndarray, "patch outputs"],
    bias: Float[np.ndarray, " outputs"],
    taps: int,
    num_codebooks: int,
    config: FitConfig,
    bar: Progress,
) -> MaddnessOp:
    """An op for patches, of `taps * num_codebooks` codebooks: `num_codebooks` trees, repeated for every tap.

    Args:
      patches: position by position, `[rows, taps * features]`.
      w: the same order of features.
      bias: what to add to every row of the product.
      taps: positions in a patch.
      num_codebooks: of one position.
      config: how trees are learned.
      bar: shows progress.
    """
    if config.rank or config.outliers or config.loss is not None:
        raise ValueError(
            "Codes that a convolution's taps share know no exact term and no `loss`. Set neither, or encode patches: "
            'Rule(..., conv="patches").'
        )
    features = patches.shape[1] // taps
    w_exponent = exponent(float(np.abs(w).max()))
    w = w * power_of_two(-w_exponent)
    by_position = w.reshape(taps, features, -1).transpose(1, 0, 2).reshape(features, -1)
    positions, rows = Rows.of(patches.reshape(-1, features)), Rows.of(patches)
    with modes():
        bar.expect(rows.num_steps + 1)
        learned = METHODS[config.method](positions, by_position, num_codebooks, config, bar)
        trees = learned.trees.repeated(taps)
        own = None if learned.own is None else np.kron(np.eye(taps, dtype=bool), learned.own)
        learned = Learned(trees, own, learned.ridge)
        tables = tables_for(rows, learned, w, w_exponent, bias, bar)
    return MaddnessOp(trees, tables)


def first_tap(op: MaddnessOp, taps: int) -> MaddnessOp:
    """The op of `fit_taps` with the trees for one position: what encodes positions once. `amm` does not take it."""
    assert op.trees.row_features is not None
    features = op.trees.row_features // taps
    arrays = jax.tree.map(lambda a: a[: len(a) // taps], op.trees)
    return dataclasses.replace(op, trees=dataclasses.replace(arrays, num_features=features))
