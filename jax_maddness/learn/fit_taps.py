"""`fit_taps`, which learns trees for single positions of a convolution, and tables for all positions of a patch.

A convolution's patch is several positions, and each position is in several patches: it is encoded once, and its codes
serve all of these patches. The trees are learned on positions, to leave the least error in the products with the
kernels of all taps at once. The tables of all taps are then solved together, from patches, because neighboring
positions are correlated: codes of one tap can correct the error that those of another leave.
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
    """Learns an op for patches with `taps * num_codebooks` codebooks: `num_codebooks` trees, repeated for every tap.

    Args:
      patches: training patches, float32 `[rows, taps * features]`, position by position.
      w: kernel as a matrix, float32 `[taps * features, M]`, in the same order of features.
      bias: vector `[M]` that is added to every row of the product.
      taps: number of positions in a patch.
      num_codebooks: number of codebooks for one position.
      config: options of learning; without an exact term and without a loss.
      bar: shows progress.

    Returns:
      An op for patches, whose tables have a codebook for each tap and tree.

    Raises:
      ValueError: `config` asks for an exact term or has a loss.
    """
    if config.rank or config.outliers or config.loss is not None:
        raise ValueError(
            "Codes that a convolution's taps share know no exact term and no `loss`. Set neither, or encode patches: "
            'Rule(..., conv="patches").'
        )
    features = patches.shape[1] // taps
    w_exponent = exponent(float(np.abs(w).max()))
    w = w * power_of_two(-w_exponent)
    # The trees of one position are learned for the outputs of all taps side by side: [features, taps * M].
    by_position = w.reshape(taps, features, -1).transpose(1, 0, 2).reshape(features, -1)
    positions, rows = Rows.of(patches.reshape(-1, features)), Rows.of(patches)
    with modes():
        bar.expect(rows.num_steps + 1)
        learned = METHODS[config.method](positions, by_position, num_codebooks, config, bar)
        trees = learned.trees.repeated(taps)
        own = None if learned.own is None else np.kron(np.eye(taps, dtype=bool), learned.own)
        learned = Learned(trees, own, learned.ridge)
        tables, _ = tables_for(rows, learned, w, w_exponent, bias, bar, config.seed)
    return MaddnessOp(trees, tables)


def first_tap(op: MaddnessOp, taps: int) -> MaddnessOp:
    """Returns the op of `fit_taps` with the trees of one position only, to encode every position once.

    The tables still have the codebooks of all taps, so `amm` does not accept the result.
    """
    assert op.trees.row_features is not None
    features = op.trees.row_features // taps
    arrays = jax.tree.map(lambda a: a[: len(a) // taps], op.trees)
    return dataclasses.replace(op, trees=dataclasses.replace(arrays, num_features=features))
