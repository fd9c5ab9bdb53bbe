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
"""Elements that the trees of one chunk of codebooks may keep at once: 128 MB."""


def learn(
    rows: Rows,
    w: Float[np.ndarray, "features outputs"],
    num_codebooks: int,
    config: FitConfig,
    bar: Progress,
    objective: Objective | None = None,
) -> Learned:
    """Trees on contiguous groups, each grown to explain its own features; the tables shrink toward their means."""
    del w, objective  # the trees explain the rows, whatever they are multiplied with
    dealt = groups.contiguous(rows.num_features, num_codebooks)
    trees = grow_on_groups(rows.sample, dealt, rows.factor, config.num_split_features, bar)
    return Learned(trees, groups.owned(dealt, rows.num_features), config.ridge)


def grow_on_groups(
    x: Float[np.ndarray, "rows features"],
    dealt: Int32[np.ndarray, "codebooks width"],
    factor: np.float32,
    num_split_features: int,
    bar: Progress,
) -> SplitTrees:
    """One tree per group, grown chunk by chunk so that they fit into memory together."""
    rows, width = shapes.rounded(len(x), shapes.ROWS), shapes.rounded(dealt.shape[1], 4)
    most = max(1, CHUNK // (rows * (2 * width + 32)))
    chunks = -(-len(dealt) // most)
    size = shapes.rounded(-(-len(dealt) // chunks), 1)
    counted = np.arange(rows) < len(x)
    grow = functools.partial(grow_trees, counted=counted, factor=factor, num_split_features=num_split_features)
    bar.expect(-(-len(dealt) // size))
    positions, thresholds = [], []
    for start in range(0, len(dealt), size):
        chunk = dealt[start : start + size]
        columns = np.zeros((size, rows, width), np.float32)
        for c, group in enumerate(chunk):
            columns[c, : len(x), : (group >= 0).sum()] = x[:, group[group >= 0]]
        position, threshold = jax.block_until_ready(grow(columns, shapes.pad(chunk >= 0, size, width)))
        positions.append(np.asarray(position)[: len(chunk)])
        thresholds.append(np.asarray(threshold)[: len(chunk)])
        bar.step()
    indices = np.take_along_axis(dealt, np.concatenate(positions), axis=1)
    return SplitTrees(jax.numpy.asarray(indices), jax.numpy.asarray(np.concatenate(thresholds)), x.shape[1])
