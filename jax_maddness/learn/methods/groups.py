"""Groups of features, one for each codebook's tree: contiguous features, or similar ones."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int32

_ROUNDS = 4  # largest number of rounds of `exchanged`; two or three mostly suffice


def contiguous(num_features: int, num_codebooks: int) -> Int32[np.ndarray, "codebooks width"]:
    """Divides the features into contiguous groups of near-equal size, one per codebook, the larger groups first.

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
    """Returns a mask of the features that each codebook has; -1 in `features` stands for none."""
    own = np.zeros((len(features), num_features + 1), bool)  # the last column takes the places of -1
    own[np.arange(len(features))[:, None], features] = True
    return own[:, :-1]


def contributions(
    covariance: Float[np.ndarray, "features features"], products: Float[np.ndarray, "features features"]
) -> Float[np.ndarray, "features features"]:
    """Returns the similarity of features in their outputs: `|E[x_i x_j] w_i . w_j|`, scaled to a diagonal of 1.

    It is the inner product of the contributions of two features to `x @ w`, so correlated features that contribute to
    different outputs are not similar. Entries are in [0, 1].

    Args:
      covariance: covariance of the rows.
      products: `w @ w.T`.
    """
    inner = np.abs(covariance * products)
    size = np.sqrt(np.diag(inner))
    size = np.where(size > 0, size, np.inf)
    return inner / size[:, None] / size


def similar(
    similarity: Float[np.ndarray, "features features"],
    importance: Float[np.ndarray, " features"],
    num_codebooks: int,
) -> Int32[np.ndarray, "codebooks width"]:
    """Divides the features into groups of similar ones, of near-equal size, the larger groups first.

    The first members are important features that are unlike each other. Then the groups take turns, each taking the
    feature most similar to its members. If each group took all of its features at once, the last groups would consist
    of leftovers that are similar to nothing (at 16 codebooks that costs up to 15 % of NMSE).

    Args:
      similarity: similarity of features, in [0, 1].
      importance: variance of the outputs of each feature alone.
      num_codebooks: number of groups, at most that of features.

    Returns:
      The features of each codebook, padded at the end with -1.

    Example:
      >>> similar(np.eye(4) + np.eye(4)[::-1], np.array([1.0, 2.0, 0.5, 0.0]), 2).tolist()
      [[1, 2], [0, 3]]
    """
    available = np.ones(len(similarity), bool)
    dissimilarity = np.ones(len(similarity))
    members: list[list[int]] = []
    for _ in range(num_codebooks):
        members.append([_take(available, importance * dissimilarity)])
        dissimilarity = np.minimum(dissimilarity, 1 - similarity[members[-1][0]])
    total = similarity[[group[0] for group in members]]
    for turn in range(len(similarity) - num_codebooks):
        c = turn % num_codebooks
        members[c].append(_take(available, total[c]))
        total[c] += similarity[members[c][-1]]
    width = len(members[0])
    return np.array([sorted(group) + [-1] * (width - len(group)) for group in members], np.int32)


def _take(available: np.ndarray, wanted: np.ndarray) -> int:
    """Returns the most wanted feature of those that are `available`, and marks it as no longer available."""
    taken = int(np.where(available, wanted, -np.inf).argmax())
    available[taken] = False
    return taken


def exchanged(
    feature_groups: Int32[np.ndarray, "codebooks width"], similarity: Float[np.ndarray, "features features"]
) -> Int32[np.ndarray, "codebooks width"]:
    """Exchanges features between groups to increase the similarity inside of them; the sizes stay unchanged.

    As in k-means, every round assigns all features anew, by an optimal assignment (`O(features^3)`) that gives each of
    them a place in the group whose members it resembles most on average. The rounds end when the similarity no longer
    increases.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # takes longer than jax itself

    sizes = (feature_groups >= 0).sum(1)
    places = np.repeat(np.arange(len(feature_groups)), sizes)
    others = similarity * (1 - np.eye(len(similarity)))
    best_groups, members = feature_groups, _members(feature_groups, len(similarity))
    for _ in range(_ROUNDS):
        within = members @ others
        counts = np.maximum(sizes[:, None] - members, 1)
        rows, columns = linear_sum_assignment(-(within / counts)[places])
        reassigned = np.full_like(feature_groups, -1)
        for c in range(len(feature_groups)):
            reassigned[c, : sizes[c]] = np.sort(columns[places[rows] == c])
        new_members = _members(reassigned, len(similarity))
        if ((new_members @ others) * new_members).sum() <= (within * members).sum():
            break
        best_groups, members = reassigned, new_members
    return best_groups


def _members(
    feature_groups: Int32[np.ndarray, "codebooks width"], num_features: int
) -> Float[np.ndarray, "codebooks features"]:
    """Returns 1 for the features of each group, 0 for others; -1 in `feature_groups` stands for none."""
    members = np.zeros((len(feature_groups), num_features + 1))
    members[np.arange(len(feature_groups))[:, None], feature_groups] = 1
    return members[:, :-1]


def widened(
    feature_groups: Int32[np.ndarray, "codebooks width"], similarity: Float[np.ndarray, "features features"], width: int
) -> Int32[np.ndarray, "codebooks wider"]:
    """Widens each group to `width` features: behind its own, those most similar to them, which others may have too."""
    wider = []
    for group in feature_groups:
        own = group[group >= 0]
        total = similarity[own].sum(0)
        total[own] = -np.inf
        wider.append(np.concatenate([own, np.argsort(-total, kind="stable")[: width - len(own)]]))
    return np.array(wider, np.int32)
