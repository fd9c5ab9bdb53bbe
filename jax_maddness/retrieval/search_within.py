"""Range search: all vectors whose scores reach a threshold, by searches for more and more of the best vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int32, Int64, Integer

from jax_maddness.core import arguments
from jax_maddness.retrieval import validate
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.index import validated as validated_index
from jax_maddness.retrieval.restrict import Restrictions, validated
from jax_maddness.retrieval.search import search

_APPROXIMATE = 64
"""Number of vectors of the first search if none are rescored."""
_ELEMENTS = 2**25
"""Greatest number of elements of the candidates that are rescored at once, if they are more than those of one query."""


def search_within(
    queries: Float[Array, "queries features"],
    index: VectorIndex,
    *,
    min_score: Float[ArrayLike, "*queries"] | float | None = None,
    max_distance: Float[ArrayLike, "*queries"] | float | None = None,
    num_candidates: int = 64,
    probe: int | None = None,
    exclude: Integer[Array, "... excluded"] | Bool[Array, "... vectors"] | None = None,
    always: Integer[Array, "... always"] | None = None,
) -> tuple[Int64[np.ndarray, " queries+1"], Float[np.ndarray, " found"], Int32[np.ndarray, " found"]]:
    """Finds all vectors whose scores are at least `min_score`, or whose distances are at most `max_distance`.

    Scores are those of `search`: the inner product for "ip", the cosine for "cosine", and minus the squared distance
    for "l2", so that `max_distance=r`, which is not squared, is the same as `min_score=-r**2`. Scores are computed and
    compared in float32; one that equals the threshold is enough.

    Which vectors are found is approximate, their scores are not: look-ups propose `num_candidates` vectors for each
    query, and exact products decide. Where at least a half of the candidates pass, the query is searched again with
    twice as many, up to all vectors, with which its result is exact. A vector is missed if its code is so far off that
    it is not among the candidates, of which there are more than twice as many as vectors that are found. With
    `num_candidates` of at least `index.count`, everything is exact.

    The number of vectors that are found differs between queries, so that the function runs outside of `jax.jit`, and
    its results are in one array, query by query, as faiss has them.

    Args:
      queries: float32, bfloat16 or float16.
      index: an index that `build_index` made; it may be sharded.
      min_score: a number, or one for each query. Give either this or `max_distance`.
      max_distance: a number >= 0, or one for each query, for an index for "l2".
      num_candidates: number of candidates of the first search, from 1. 0: no vector is rescored, and all vectors whose
        approximate scores reach the threshold are found.
      probe: number of lists that are scanned for each query, if `index` has lists, as in `search`. Vectors of other
        lists are found only where all vectors are candidates.
      exclude: ids of vectors that are not returned, or a mask, as in `search`.
      always: ids of vectors that are rescored whatever their codes say, as in `search`.

    Returns:
      `limits`, `scores` and `ids`: those of query `i` are `scores[limits[i] : limits[i + 1]]` and the same part of
      `ids`, best first, and of equal scores the lower id first. A query with NaN or an infinity finds nothing.

    Raises:
      TypeError: `queries` has another dtype or is traced, `index` is not an index, or a threshold is no real number.
      ValueError: there is no threshold, or two; one is NaN, or has another shape, or does not go with the metric; and
        the errors of `search`.

    Example:
      >>> from jax_maddness import build_index
      >>> vectors = np.float32(np.random.default_rng(0).standard_normal((1000, 8)))
      >>> index = build_index(vectors, 4, metric="l2")
      >>> limits, scores, ids = search_within(vectors[:3], index, max_distance=1.0)
      >>> [part[0].item() for part in np.split(ids, limits[1:-1])]  # the nearest to each is itself
      [0, 1, 2]
    """
    validated_index(index)
    for name, value in {"min_score": min_score, "max_distance": max_distance}.items():
        _refuse_traced(value, name)
    rows = _rows(queries, index)
    least = _least(min_score, max_distance, index.metric, len(rows))
    num_candidates = arguments.integer(num_candidates, "num_candidates", 0)
    given = validated(rows.shape[:1], index.capacity, exclude, always, None) or Restrictions()
    found: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int32))]
    width = min(num_candidates or _APPROXIMATE, index.capacity)
    unfinished = np.arange(len(rows) if index.capacity else 0)
    while len(unfinished):
        again = []
        for block in _blocks(unfinished, width * index.num_features):
            scores, ids = _searched(rows, index, block, width, width if num_candidates else 0, probe, given)
            passes = (ids >= 0) & (scores >= least[block, None])
            # Approximate scores are in order. Candidates are not: there, as many must fail as pass.
            share = 2 if num_candidates else 1
            done = (share * passes.sum(1) < width) | (width == index.capacity)
            query, column = np.nonzero(passes & done[:, None])
            found.append((block[query], scores[query, column], ids[query, column]))
            again.append(block[~done])
        unfinished, width = np.concatenate(again), min(2 * width, index.capacity)
    owners, scores, ids = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(owners, kind="stable")
    limits = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(rows)))]).astype(np.int64)
    return limits, scores[order], ids[order]


def _rows(queries: Any, index: VectorIndex) -> np.ndarray:
    """Returns the queries as an array of NumPy."""
    rows = validate.row_array(queries, "queries")
    _refuse_traced(rows, "queries")
    if rows.ndim != 2 or rows.shape[1] != index.num_features:
        raise ValueError(
            f"`queries` have shape {rows.shape}; expected [queries, {index.num_features}], as the vectors of the "
            "index. Pass a single one as `queries[None]`."
        )
    return np.asarray(rows)


def _refuse_traced(value: Any, name: str) -> None:
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"`{name}` is traced, but how many vectors are found depends on its values. Call `search_within` outside "
            "of jax.jit and jax.vmap, or use `search`."
        )


def _least(min_score: Any, max_distance: Any, metric: str, queries: int) -> Float[np.ndarray, " queries"]:
    """Returns the least score that passes, for each query."""
    if (min_score is None) == (max_distance is None):
        both = "neither is given" if min_score is None else "both are given"
        raise ValueError(f"Pass `min_score` or `max_distance`: {both}.")
    if max_distance is not None and metric != "l2":
        raise ValueError(f"`max_distance` is for distances, but `index` is for {metric!r}. Pass `min_score`.")
    name, value = ("min_score", min_score) if max_distance is None else ("max_distance", max_distance)
    threshold = np.asarray(arguments.real_array(value, name), np.float64)
    if threshold.shape not in ((), (queries,)):
        raise ValueError(
            f"`{name}` has shape {threshold.shape}; expected a number, or ({queries},), one for each query."
        )
    if np.isnan(threshold).any() or (max_distance is not None and (threshold < 0).any()):
        expected = "numbers" if max_distance is None else "numbers >= 0"
        raise ValueError(f"`{name}` is {value!r:.100}; expected {expected}.")
    with np.errstate(over="ignore"):
        scores = np.float32(threshold if max_distance is None else -(threshold**2))
    return np.broadcast_to(scores, (queries,))


def _blocks(queries: np.ndarray, elements: int) -> Iterator[np.ndarray]:
    """Yields parts of the queries; each of them has candidates of so many elements."""
    size = max(1, _ELEMENTS // max(elements, 1))
    for at in range(0, len(queries), size):
        yield queries[at : at + size]


def _searched(
    rows: np.ndarray,
    index: VectorIndex,
    block: np.ndarray,
    width: int,
    num_candidates: int,
    probe: int | None,
    given: Restrictions,
) -> tuple[Float[np.ndarray, "block width"], Int32[np.ndarray, "block width"]]:
    """Returns scores and ids of the best vectors for some of the queries."""
    # Few different numbers of rows, so that few programs are compiled.
    padded = np.concatenate([block, np.full((1 << (len(block) - 1).bit_length()) - len(block), block[0])])

    def of_block(a: Any) -> Any:
        return a if a is None or a.ndim == 1 else a[padded]

    exclude = given.exclude if given.mask is None else given.mask
    scores, ids = search(
        rows[padded],
        index,
        width,
        num_candidates=num_candidates,
        probe=probe,
        exclude=of_block(exclude),
        always=of_block(given.always),
    )
    return np.asarray(scores)[: len(block)], np.asarray(ids)[: len(block)]
