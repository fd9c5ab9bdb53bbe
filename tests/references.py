"""The definitions once more, as plain NumPy loops straight from the paper. Imports nothing from the package."""

import numpy as np


def encode(x, indices, thresholds):
    """codes[n, c]: Blalock & Guttag 2021, Algorithm 1. x [N, D], indices [C, 4], thresholds [C, 15] in heap order."""
    x = np.asarray(x).astype(np.float32)
    codes = np.zeros((x.shape[0], indices.shape[0]), np.uint8)
    for n, c in np.ndindex(*codes.shape):
        node = 0
        for level in range(4):
            right = bool(x[n, indices[c, level]] > thresholds[c, node])
            node = 2 * node + 1 + right
        codes[n, c] = node - 15
    return codes


def aggregate(codes, values):
    """sums[n, m] = sum over c of values[m, c, codes[n, c]]. codes [N, C], values [M, C, 16]."""
    sums = np.zeros((codes.shape[0], values.shape[0]), np.int32)
    for n, m in np.ndindex(*sums.shape):
        sums[n, m] = sum(int(values[m, c, codes[n, c]]) for c in range(codes.shape[1]))
    return sums
