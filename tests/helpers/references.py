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


def encode_oblique(x, features, projections, thresholds, center, scale):
    """codes[n, c] by projections of rounded features, which are exact in integers once they are rounded.

    x [N, D], features [C, W], projections [C, 4, W], thresholds [C, 15] in heap order, center [D], scale [D].
    """
    with np.errstate(invalid="ignore", over="ignore"):
        steps = (np.asarray(x).astype(np.float32) - center) * scale  # in float32
    q = np.where(np.isnan(steps), -127, np.clip(np.rint(steps), -127, 127)).astype(np.int64)
    codes = np.zeros((len(q), len(features)), np.uint8)
    for c in range(len(features)):
        projected = q[:, features[c]] @ projections[c].T.astype(np.int64)
        for n in range(len(q)):
            node = 0
            for level in range(4):
                node = 2 * node + 1 + (projected[n, level] > thresholds[c, node])
            codes[n, c] = node - 15
    return codes


def aggregate(codes, values):
    """sums[n, m] = sum over c of values[m, c, codes[n, c]]. codes [N, C], values [M, C, 16]."""
    sums = np.zeros((codes.shape[0], values.shape[0]), np.int32)
    for n, m in np.ndindex(*sums.shape):
        sums[n, m] = sum(int(values[m, c, codes[n, c]]) for c in range(codes.shape[1]))
    return sums


def squared_error(x, codes):
    """The squared error of the rows x [N, d] about the mean of the rows with the same code [N]."""
    return sum(((x[codes == k] - x[codes == k].mean(0)) ** 2).sum() for k in np.unique(codes))


def grow_tree(x, num_split_features):
    """Section 4.1, Algorithm 3, on the rows x [N, d] in float64: (features [4], codes [N]), trying every threshold."""
    x = np.asarray(x, np.float64)
    buckets, features = np.zeros(len(x), int), []
    for _ in range(4):
        errors = sum(
            ((x[buckets == b] - x[buckets == b].mean(0)) ** 2).sum(0) for b in np.unique(buckets)
        )  # per feature
        candidates = np.argsort(-errors, kind="stable")[:num_split_features]
        tried = [_split_buckets(x, buckets, feature) for feature in candidates]
        best = int(np.argmin([squared_error(x, split) for split in tried]))
        features.append(candidates[best])
        buckets = tried[best]
    return features, buckets


def _split_buckets(x, buckets, feature):
    """Each bucket's own best split by one feature: new buckets [N]."""
    split = 2 * buckets
    for b in np.unique(buckets):
        rows = np.flatnonzero(buckets == b)
        values = x[rows, feature]
        sides = [values > v for v in np.unique(values)[:-1]]
        if sides:
            best = int(np.argmin([squared_error(x[rows], side) for side in sides]))
            split[rows] += sides[best]
    return split


def prototypes(x, codes, own, ridge):
    """Section 4.2, equation 8, in float64: (prototypes [16 C, D], intercept [D]).

    Shrunk toward the means of the buckets in the features that each codebook owns [C, D].
    """
    x, count = np.asarray(x, np.float64), codes.shape[1]
    one_hot = (codes[:, :, None] == np.arange(16)).reshape(len(x), -1).astype(np.float64)
    center = x.mean(0)
    means = one_hot.T @ (x - center) / np.maximum(one_hot.sum(0), 1)[:, None] * np.repeat(own, 16, axis=0)
    design = np.hstack([one_hot, np.ones((len(x), 1))])
    penalty = ridge * np.diag([1.0] * (16 * count) + [0.0])
    solution = np.linalg.solve(design.T @ design + penalty, design.T @ (x - center - one_hot @ means))
    return means + solution[:-1], center + solution[-1]


def scan(codes, tables, count, k):
    """(sums, positions) [Q, k] of the greatest sums of 7-bit entries: codes [V, C], tables [Q, C, 16]; -1 for missing.

    Only the first `count` vectors take part; of equal sums the first vector's comes first.
    """
    sums, positions = np.full((2, len(tables), k), -1, np.int32)
    for q in range(len(tables)):
        totals = [
            sum(int(tables[q, c, row[c]]) & 127 for c in range(tables.shape[1])) for row in codes[: max(count, 0)]
        ]
        for i, v in enumerate(np.argsort(-np.array(totals, int), kind="stable")[:k]):
            sums[q, i], positions[q, i] = totals[v], v
    return sums, positions


def greatest(sums, skipped, k):
    """(sums, rows) [k, M] of the greatest sums [N, M] over rows not skipped; the lowest int32 and -1 for none."""
    best = np.full((k, sums.shape[1]), np.iinfo(np.int32).min, np.int32)
    rows = np.full((k, sums.shape[1]), -1, np.int32)
    taken_from = np.flatnonzero(~skipped)
    for m in range(sums.shape[1]):
        order = taken_from[np.argsort(-sums[taken_from, m].astype(np.int64), kind="stable")][:k]
        best[: len(order), m], rows[: len(order), m] = sums[order, m], order
    return best, rows


def look_up(codes, values):
    """y[n, m] = sum over c of values[m, c, codes[n, c]], in float64. codes [N, C], values [M, C, 16]."""
    y = np.zeros((len(codes), len(values)))
    for n, c in np.ndindex(*codes.shape):
        y[n] += values[:, c, codes[n, c]]
    return y


def look_up_gradient(codes, dy):
    """The gradient of `look_up` by its values [M, C, 16], in float64, for dy [N, M]."""
    gradient = np.zeros((dy.shape[1], codes.shape[1], 16))
    for n, c in np.ndindex(*codes.shape):
        gradient[:, c, codes[n, c]] += dy[n]
    return gradient


def rescore(queries, vectors, positions):
    """scores[q, i] = queries[q] . vectors[positions[q, i] ...], in float64; -inf where there is no such vector."""
    run = queries.shape[1] // vectors.shape[1]
    scores = np.full(positions.shape, -np.inf)
    for q, i in np.ndindex(*positions.shape):
        first = positions[q, i]
        if 0 <= first <= len(vectors) - run:
            scores[q, i] = queries[q].astype(np.float64) @ vectors[first : first + run].ravel().astype(np.float64)
    return scores
