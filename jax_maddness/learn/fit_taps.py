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

from jax_maddness.core.terms.factors import Factors
from jax_maddness.core.types import LookupTables, MaddnessOp, Trees
from jax_maddness.learn.config import FitConfig
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.data.rows import Rows, exponent, power_of_two
from jax_maddness.learn.methods.auto import METHODS
from jax_maddness.learn.methods.learned import Learned
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.steps import tables_for, without_codebooks
from jax_maddness.learn.tables import factors
from jax_maddness.learn.tables.factors import FloatFactors


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
      config: options of learning, without a loss. A patch sees as many directions as `rank` says, or a few more.
      bar: shows progress.

    Returns:
      An op for patches, whose tables have a codebook for each tap and tree.

    Raises:
      ValueError: `config` has a loss, or the method is "int8", which projects no positions.
    """
    if config.loss is not None or config.method == "int8":
        wanted = "a `loss`" if config.loss is not None else 'method "int8"'
        raise ValueError(
            f"Codes that a convolution's taps share do not go with {wanted}. Leave it out, or encode patches: "
            'Rule(..., conv="patches").'
        )
    features = patches.shape[1] // taps
    positions, rows = Rows.of(patches.reshape(-1, features)), Rows.of(patches)
    # Trees and factors of one position are learned for the outputs of all taps side by side: [features, taps * M].
    by_position = w.reshape(taps, features, -1).transpose(1, 0, 2).reshape(features, -1)
    with modes():
        rank = min(-(-config.rank // taps), *by_position.shape)
        low_rank, by_position = factors.split(positions, by_position, dataclasses.replace(config, rank=rank))
        if low_rank is not None:
            w = by_position.reshape(features, taps, -1).transpose(1, 0, 2).reshape(w.shape)
            bias = bias + low_rank.constant.reshape(taps, -1).sum(0)
        if num_codebooks:
            trees, tables = _look_ups(positions, rows, by_position, w, bias, taps, num_codebooks, config, bar)
        else:
            trees, tables = without_codebooks(rows, w, bias)
        if low_rank is None:
            return MaddnessOp(trees, tables)
        return MaddnessOp(trees, *_joined(tables, low_rank, taps))


def _look_ups(
    positions: Rows,
    rows: Rows,
    by_position: Float[np.ndarray, "features tap_outputs"],
    w: Float[np.ndarray, "patch outputs"],
    bias: Float[np.ndarray, " outputs"],
    taps: int,
    num_codebooks: int,
    config: FitConfig,
    bar: Progress,
) -> tuple[Trees, LookupTables]:
    """Learns trees on positions, repeats them for every tap, and solves the tables of all taps from patches."""
    w_exponent = exponent(float(np.abs(w).max()))
    w, by_position = (a * power_of_two(-w_exponent) for a in (w, by_position))
    bar.expect(rows.num_steps + 1)
    learned = METHODS[config.method](positions, by_position, num_codebooks, config, bar)
    trees = learned.trees.repeated(taps)
    own = None if learned.own is None else np.kron(np.eye(taps, dtype=bool), learned.own)
    tables, _ = tables_for(rows, Learned(trees, own, learned.ridge), w, w_exponent, bias, bar, config.seed)
    return trees, tables


def _joined(tables: LookupTables, low_rank: FloatFactors, taps: int) -> tuple[LookupTables, None, Factors]:
    """Joins the tables of a patch with the factors of one position, which every tap multiplies by its own weights."""
    rank = len(low_rank.steps)
    by_tap = low_rank.up.reshape(rank, taps, -1).transpose(1, 0, 2).reshape(taps * rank, -1)
    tables, of_position = factors.joined(tables, low_rank._replace(up=by_tap))
    return tables, None, of_position.repeated(taps, of_position.up)


def first_tap(op: MaddnessOp, taps: int) -> MaddnessOp:
    """Returns the op of `fit_taps` with the trees of one position only, to encode every position once.

    The tables still have the codebooks of all taps, so `amm` does not accept the result.
    """
    assert op.trees.row_features is not None
    features = op.trees.row_features // taps
    arrays = jax.tree.map(lambda a: a[: len(a) // taps], op.trees)
    term = op.term.first_position(taps) if isinstance(op.term, Factors) else None
    return dataclasses.replace(op, trees=dataclasses.replace(arrays, num_features=features), term=term)
