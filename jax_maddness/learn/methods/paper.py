"""Method "paper": trees on contiguous groups of features (Blalock & Guttag 2021, sections 4.1 and 4.2)."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jaxtyping import Float, Int32

from jax_maddness.core.types import SplitTrees
from jax_maddness.learn.config import FitConfig
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.methods import groups
from jax_maddness.learn.methods.learned import Learned
from jax_maddness.learn.methods.objective import Objective
from jax_maddness.learn.methods.splits import grow_trees
from jax_maddness.learn.progress import Progress

CHUNK = 2**25
"""Largest number of elements in memory while the trees of one chunk of codebooks grow: 128 MB of float32."""


def learn(
    rows: Rows,
    w: Float[np.ndarray, "features outputs"],
    num_codebooks: int,
    config: FitConfig,
    bar: Progress,
    objective: Objective | None = None,
) -> Learned:
    """Grows trees on contiguous groups of features, each to explain its own; tables shrink toward its bucket means."""
    del w, objective  # the trees explain the rows, whatever they are multiplied with
    feature_groups = groups.contiguous(rows.num_features, num_codebooks)
    trees = grow_on_groups(rows.sample, feature_groups, rows.factor, config.num_split_features, bar)
    return Learned(trees, groups.owned(feature_groups, rows.num_features), config.ridge)


def grow_on_groups(
    x: Float[np.ndarray, "rows features"],
    feature_groups: Int32[np.ndarray, "codebooks width"],
    factor: np.float32,
    num_split_features: int,
    bar: Progress,
) -> SplitTrees:
    """Grows one tree per group of features, in chunks of codebooks that fit into memory together.

    Args:
      x: training rows, finite.
      feature_groups: features of each codebook, padded with -1.
      factor: power of two that scales the largest magnitude to about 1.
      num_split_features: number of features whose thresholds are searched per level.
      bar: shows progress.
    """
    # All codebooks of a chunk grow at once in arrays of one shape; equal chunks share one compiled function.
    rows, width = shapes.rounded(len(x), shapes.ROWS), shapes.rounded(feature_groups.shape[1], 4)
    max_codebooks = max(1, CHUNK // (rows * (2 * width + 32)))
    chunks = -(-len(feature_groups) // max_codebooks)
    size = shapes.rounded(-(-len(feature_groups) // chunks), 1)
    counted = np.arange(rows) < len(x)
    grow = functools.partial(grow_trees, counted=counted, factor=factor, num_split_features=num_split_features)
    bar.expect(-(-len(feature_groups) // size))
    positions, thresholds = [], []
    for start in range(0, len(feature_groups), size):
        chunk = feature_groups[start : start + size]
        columns = np.zeros((size, rows, width), np.float32)
        for c, group in enumerate(chunk):
            columns[c, : len(x), : (group >= 0).sum()] = x[:, group[group >= 0]]
        position, threshold = jax.block_until_ready(grow(columns, shapes.pad(chunk >= 0, size, width)))
        positions.append(np.asarray(position)[: len(chunk)])
        thresholds.append(np.asarray(threshold)[: len(chunk)])
        bar.step()
    indices = np.take_along_axis(feature_groups, np.concatenate(positions), axis=1)
    return SplitTrees(jax.numpy.asarray(indices), jax.numpy.asarray(np.concatenate(thresholds)), x.shape[1])
