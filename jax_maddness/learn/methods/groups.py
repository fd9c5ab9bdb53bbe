"""features -> groups: the features that each codebook's tree is grown on, contiguous or similar ones."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int32

_ROUNDS = 4  # of `exchanged`; two or three mostly do


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


def contributions(
    covariance: Float[np.ndarray, "features features"], products: Float[np.ndarray, "features features"]
) -> Float[np.ndarray, "features features"]:
    """Similarity of features as the outputs see them, in [0, 1]: `|E[x_i x_j] w_i . w_j|`, scaled to a diagonal of 1.

    It is the inner product of what two features add to `x @ w`: correlated features that go to different outputs are
    not similar.

    Args:
      covariance: of the rows.
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
    """Deals all features out to groups of similar ones, of near-equal size, the larger groups first.

    The first members are important features that are unlike each other. Then the groups take turns, each taking the
    feature most similar to its members: a group that took all it wants at once would leave the last ones with what
    nobody wanted (at 16 codebooks that costs up to 15 % of NMSE).

    Args:
      similarity: in [0, 1].
      importance: what a feature alone adds to the outputs' variance.
      num_codebooks: at most as many as features.

    Returns:
      The features of each codebook, padded at the end with -1.

    Example:
      >>> similar(np.eye(4) + np.eye(4)[::-1], np.array([1.0, 2.0, 0.5, 0.0]), 2).tolist()
      [[1, 2], [0, 3]]
    """
    left = np.ones(len(similarity), bool)
    unlike = np.ones(len(similarity))
    dealt: list[list[int]] = []
    for _ in range(num_codebooks):
        dealt.append([_take(left, importance * unlike)])
        unlike = np.minimum(unlike, 1 - similarity[dealt[-1][0]])
    total = similarity[[group[0] for group in dealt]]
    for turn in range(len(similarity) - num_codebooks):
        c = turn % num_codebooks
        dealt[c].append(_take(left, total[c]))
        total[c] += similarity[dealt[c][-1]]
    width = len(dealt[0])
    return np.array([sorted(group) + [-1] * (width - len(group)) for group in dealt], np.int32)


def _take(left: np.ndarray, wanted: np.ndarray) -> int:
    """The most wanted feature that is `left`, which then it is no longer."""
    taken = int(np.where(left, wanted, -np.inf).argmax())
    left[taken] = False
    return taken


def exchanged(
    dealt: Int32[np.ndarray, "codebooks width"], similarity: Float[np.ndarray, "features features"]
) -> Int32[np.ndarray, "codebooks width"]:
    """Groups of the same sizes with more similarity inside, as k-means would have it.

    Every round assigns all features anew, each to a place in the group whose members it resembles most on average, by
    an optimal assignment (`O(features^3)`); it ends where that gains nothing.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # takes longer than jax itself

    sizes = (dealt >= 0).sum(1)
    places = np.repeat(np.arange(len(dealt)), sizes)
    others = similarity * (1 - np.eye(len(similarity)))
    best, members = dealt, _members(dealt, len(similarity))
    for _ in range(_ROUNDS):
        within = members @ others
        counts = np.maximum(sizes[:, None] - members, 1)
        rows, columns = linear_sum_assignment(-(within / counts)[places])
        found = np.full_like(dealt, -1)
        for c in range(len(dealt)):
            found[c, : sizes[c]] = np.sort(columns[places[rows] == c])
        now = _members(found, len(similarity))
        if ((now @ others) * now).sum() <= (within * members).sum():
            break
        best, members = found, now
    return best


def _members(dealt: Int32[np.ndarray, "codebooks width"], num_features: int) -> Float[np.ndarray, "codebooks features"]:
    """1 for the features of each group; -1 stands for none."""
    members = np.zeros((len(dealt), num_features + 1))
    members[np.arange(len(dealt))[:, None], dealt] = 1
    return members[:, :-1]


def widened(
    dealt: Int32[np.ndarray, "codebooks width"], similarity: Float[np.ndarray, "features features"], width: int
) -> Int32[np.ndarray, "codebooks wider"]:
    """Each group with the features most similar to its members behind them, `width` features in all."""
    wider = []
    for group in dealt:
        own = group[group >= 0]
        total = similarity[own].sum(0)
        total[own] = -np.inf
        wider.append(np.concatenate([own, np.argsort(-total, kind="stable")[: width - len(own)]]))
    return np.array(wider, np.int32)
