"""Sizes rounded up to a few, so that the layers of a model share their compilations."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jax_maddness.core.types import LEVELS, NODES, ObliqueTrees, SplitTrees

ROWS, CODEBOOKS, FEATURES, OUTPUTS, WIDTH = 64, 4, 16, 16, 4
"""The least padded sizes."""


def rounded(size: int, least: int) -> int:
    """The smallest of `least` and 4, 5, 6, 7 times the powers of two that is not below `size`: at most a quarter more.

    Example:
      >>> [rounded(n, 8) for n in (1, 9, 16, 17, 1152, 5000)]
      [8, 10, 16, 20, 1280, 5120]
    """
    if size <= least:
        return least
    unit = 2 ** max((size - 1).bit_length() - 3, 0)
    return -(-size // unit) * unit


def pad(a: np.ndarray, *sizes: int) -> np.ndarray:
    """`a` with zeros at the end of its axes, up to these sizes."""
    return np.pad(a, [(0, size - n) for size, n in zip(sizes, a.shape, strict=True)])


def pad_trees(trees: SplitTrees, codebooks: int) -> SplitTrees:
    """`trees` with more codebooks, all of whose rows get code 0; for rows of any number of features."""
    indices = pad(np.asarray(trees.indices), codebooks, trees.indices.shape[1])
    more = codebooks - trees.num_codebooks
    never = np.finfo(np.float32).max
    thresholds = np.pad(np.asarray(trees.thresholds), ((0, more), (0, 0)), constant_values=never)
    return SplitTrees(jnp.asarray(indices), jnp.asarray(thresholds))


def pad_oblique_trees(trees: ObliqueTrees, codebooks: int, features: int) -> ObliqueTrees:
    """`trees` with more codebooks, all of whose rows get code 0, and a larger width; for rows of `features`."""
    width = rounded(trees.features.shape[1], WIDTH)
    return ObliqueTrees(
        jnp.asarray(pad(np.asarray(trees.features), codebooks, width)),
        jnp.asarray(pad(np.asarray(trees.projections), codebooks, LEVELS, width)),
        jnp.asarray(pad(np.asarray(trees.thresholds), codebooks, NODES)),
        jnp.asarray(pad(np.asarray(trees.center), features)),
        jnp.asarray(pad(np.asarray(trees.scale), features)),
    )
