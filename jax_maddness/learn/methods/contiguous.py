"""features -> groups: which features each codebook's tree is grown on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Int32


def contiguous(num_features: int, num_codebooks: int) -> Int32[np.ndarray, "codebooks width"]:
    """Deals the features out to codebooks in contiguous groups of near-equal size, the larger groups first.

    Returns:
      The features of each codebook, padded at the end with -1.

    Example:
      >>> contiguous(5, 2).tolist()
      [[0, 1, 2], [3, 4, -1]]
    """
    groups = np.array_split(np.arange(num_features), num_codebooks)
    width = len(groups[0])
    return np.stack([np.pad(g, (0, width - len(g)), constant_values=-1) for g in groups]).astype(np.int32)


def owned(features: Int32[np.ndarray, "codebooks width"], num_features: int) -> Bool[np.ndarray, "codebooks features"]:
    """Which features each codebook has; -1 stands for none."""
    own = np.zeros((len(features), num_features + 1), bool)
    own[np.arange(len(features))[:, None], features] = True
    return own[:, :-1]
