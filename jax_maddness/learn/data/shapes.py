"""Sizes rounded up to a few, so that the layers of a model share their compilations."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from jax_maddness.core.types import Trees

T = TypeVar("T", bound=Trees)
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


def padded_trees(trees: T) -> T:
    """`trees` in sizes that many share; `encode` gives the codes of codebooks that were added as 0."""
    features = rounded(trees.row_features or 1, FEATURES)
    return trees.padded(rounded(trees.num_codebooks, CODEBOOKS), features, rounded(trees.width, WIDTH))
