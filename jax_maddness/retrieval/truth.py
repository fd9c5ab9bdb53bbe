"""True neighbors, computed in float64 on the host: what recall is measured against."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from jax_maddness.retrieval.frame import BLOCK, unit

_SPARE = 32
"""Neighbors that are found besides those that are asked for, to be sorted by their distances term by term."""


def true_neighbors(
    queries: Float[np.ndarray, "queries features"],
    vectors: Float[np.ndarray, "vectors features"],
    bias: Float[np.ndarray, " vectors"] | None,
    metric: str,
    k: int,
) -> Int[np.ndarray, "queries k"]:
    """Returns the positions of the `k` best vectors of each query, best first; of equal ones the first.

    Args:
      queries, vectors: of any scale; `vectors` has at least `k`.
      bias: number that is added to the products of each vector, or None.
      metric: "ip", "l2" or "cosine".
      k: number of neighbors.
    """
    queries = queries.astype(np.float64)
    asked, origin = queries, np.zeros(vectors.shape[1])
    if metric == "cosine":
        asked = unit(queries)
    if metric == "l2":
        origin = vectors.mean(0, dtype=np.float64)
        asked = asked - origin
    most = min(k + _SPARE, len(vectors))
    best = np.full((len(queries), most), -np.inf)
    positions = np.zeros((len(queries), most), np.int64)
    for at in range(0, len(vectors), BLOCK):
        block = _prepared(vectors[at : at + BLOCK], origin, metric)
        scores = asked @ block.T
        if metric == "l2":
            scores -= np.einsum("vd,vd->v", block, block) / 2
        if bias is not None:
            scores += bias[at : at + BLOCK].astype(np.float64)
        _merge(best, positions, scores, at)
    if metric == "l2":
        for i, query in enumerate(queries):
            positions[i] = np.sort(positions[i])
            differences = query - vectors[positions[i]].astype(np.float64)
            order = np.argsort(np.einsum("kd,kd->k", differences, differences), kind="stable")
            positions[i] = positions[i, order]
    return positions[:, :k]


def _prepared(vectors: np.ndarray, origin: np.ndarray, metric: str) -> Float[np.ndarray, "vectors features"]:
    return unit(vectors) if metric == "cosine" else vectors.astype(np.float64) - origin


def _merge(best: np.ndarray, positions: np.ndarray, scores: np.ndarray, start: int) -> None:
    """Merges the scores of a block, whose first vector is at `start`, into the best ones so far, in place."""
    most = best.shape[1]
    for i, row in enumerate(scores):
        better = np.flatnonzero(row > best[i, -1])
        values = np.concatenate([best[i], row[better]])
        order = np.argsort(-values, kind="stable")[:most]
        best[i], positions[i] = values[order], np.concatenate([positions[i], start + better])[order]
