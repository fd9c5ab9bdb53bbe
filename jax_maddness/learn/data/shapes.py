"""Array sizes rounded up to a few values, so that the layers of a model share their compiled functions."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from jax_maddness.core.types import Trees

T = TypeVar("T", bound=Trees)
ROWS, CODEBOOKS, FEATURES, OUTPUTS, WIDTH = 64, 4, 16, 16, 4
"""Smallest padded sizes of each kind of axis."""


def rounded(size: int, least: int) -> int:
    """Returns the smallest padded size that is not below `size`: `least`, or 4, 5, 6 or 7 times a power of two.

    Above `least`, the padding adds at most a quarter.

    Example:
      >>> [rounded(n, 8) for n in (1, 9, 16, 17, 1152, 5000)]
      [8, 10, 16, 20, 1280, 5120]
    """
    if size <= least:
        return least
    unit = 2 ** max((size - 1).bit_length() - 3, 0)
    return -(-size // unit) * unit


def pad(a: np.ndarray, *sizes: int) -> np.ndarray:
    """Pads `a` with zeros at the end of its axes, up to the given sizes, one for each axis."""
    return np.pad(a, [(0, size - n) for size, n in zip(sizes, a.shape, strict=True)])


def padded_trees(trees: T) -> T:
    """Pads `trees` to sizes that many trees share; codebooks that are padding always have code 0."""
    features = rounded(trees.row_features or 1, FEATURES)
    return trees.padded(rounded(trees.num_codebooks, CODEBOOKS), features, rounded(trees.width, WIDTH))
