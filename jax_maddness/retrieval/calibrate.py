"""Measures on held-out queries, when an index is built, the recall that each number of candidates reaches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32

from jax_maddness.learn.data import shapes
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.local import candidates_of, local, scaled_queries
from jax_maddness.retrieval.truth import true_neighbors

TOPS = (1, 10, 100)
"""Numbers of true neighbors whose recall is measured."""
CANDIDATE_COUNTS = tuple(n << s for s in range(10) for n in (8, 12))[1:]
"""Numbers of candidates at which recall is measured: 12, 16, 24, ... 6144."""
_QUERIES = 16  # queries whose exact products are in memory at once


def measure(
    index: VectorIndex,
    vectors: Float[np.ndarray, "vectors features"],
    queries: Float[np.ndarray, "queries features"],
    own: Int32[np.ndarray, " queries"] | None,
) -> tuple[tuple[float, ...], ...]:
    """Measures the recall that each of `CANDIDATE_COUNTS` reaches.

    A true neighbor, computed in float64, is found if it is among the candidates, and among the best of them after
    rescoring, in float32 and with the vectors that `index` keeps. The recall is the mean over the queries and one
    imaginary query that finds nothing, minus its standard error, so that later queries rarely fall short of it: where
    all of `n` queries find everything, it is `n / (n + 1)`, and fewer than `recall / (1 - recall)` queries cannot show
    a recall. Where all vectors are candidates, nothing is left to chance.

    Args:
      index: an index that keeps exact vectors.
      vectors: its vectors, as they were given.
      queries: held-out queries.
      own: the positions of the queries in the index, if they are vectors of it; each is then left out of its own
        neighbors. None: no query is a vector of the index.

    Returns:
      Rows of a number of candidates and, for each of `TOPS`, the recall that is likely reached with it.
    """
    left_out = 0 if own is None else 1
    others = index.count - left_out
    if not len(queries) or others < 1:
        return ()
    counts = [c for c in CANDIDATE_COUNTS if c < others]
    most, top = max([1, *counts]), min(TOPS[-1], others)
    bias = None if index.bias is None else np.asarray(index.bias)
    truth = without(true_neighbors(queries, vectors, bias, index.metric, top + left_out), own, top)
    candidates, best, best_of_all = found(index, queries, own, most, top, index.count <= CANDIDATE_COUNTS[-1])
    tops = [min(top, k) for k in TOPS]
    ranks = np.stack([_ranks(true, proposed, most) for true, proposed in zip(truth, candidates, strict=True)])
    kept = [is_in(truth[:, :k], best[:, :k]) for k in tops]
    rows = [(c, *(likely((ranks[:, :k] < c) & is_kept) for k, is_kept in zip(tops, kept, strict=True))) for c in counts]
    if best_of_all is not None:
        rows.append((index.count, *(likely(is_in(truth[:, :k], best_of_all[:, :k]), 0) for k in tops)))
    return tuple(rows)


def likely(found: Bool[np.ndarray, "queries k"], imaginary: int = 1) -> float:
    """Returns the mean share that is found, minus its standard error; `imaginary` queries more find nothing."""
    shares = found.mean(1)
    mean = shares.sum() / (len(shares) + imaginary)
    return round(max(float(mean - shares.std() / np.sqrt(len(shares))), 0.0), 5)


def found(
    index: VectorIndex, queries: np.ndarray, own: np.ndarray | None, most: int, top: int, all_too: bool
) -> tuple[
    Int32[np.ndarray, "queries most"], Int32[np.ndarray, "queries top"], Int32[np.ndarray, "queries top"] | None
]:
    """Returns the positions of candidates, of the best of them, and of the best of all vectors, without the queries."""
    left_out = 0 if own is None else 1
    index = dataclasses.replace(index, ids=jnp.arange(index.count, dtype=jnp.int32))
    padded = shapes.pad(queries, -(-len(queries) // _QUERIES) * _QUERIES, queries.shape[1])
    batches = [
        _neighbors(padded[at : at + _QUERIES], index, top + left_out, most + left_out, all_too)
        for at in range(0, len(queries), _QUERIES)
    ]
    arrays = [np.concatenate([np.asarray(a) for a in part])[: len(queries)] for part in zip(*batches, strict=True)]
    candidates, best, *rest = arrays
    return without(candidates, own, most), without(best, own, top), without(rest[0], own, top) if rest else None


@jax.jit(static_argnames=("top", "most", "all_too"))
def _neighbors(queries: jax.Array, index: VectorIndex, top: int, most: int, all_too: bool) -> tuple[jax.Array, ...]:
    """Returns positions, best first: `most` candidates, the `top` best of them, and the `top` best of all vectors."""
    scaled = scaled_queries(queries, index)
    results = candidates_of(scaled, index, most), local(scaled, index, top, max(most, top))[1]
    return (*results, local(scaled, index, top, index.count)[1]) if all_too else results


def without(positions: np.ndarray, own: np.ndarray | None, k: int) -> Int32[np.ndarray, "queries k"]:
    """Returns the first `k` positions of each query, without its own."""
    if own is None:
        return positions[:, :k]
    order = np.argsort(positions == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(positions, order, 1)[:, :k]


def _ranks(
    true: Int32[np.ndarray, " top"], proposed: Int32[np.ndarray, " most"], most: int
) -> Int32[np.ndarray, " top"]:
    """Returns the rank of each true neighbor among the candidates of a query; `most` if it is not among them."""
    ranks = np.full(len(true), most, np.int32)
    neighbor, rank = np.nonzero(true[:, None] == proposed)
    ranks[neighbor] = rank
    return ranks


def is_in(true: Int32[np.ndarray, "queries k"], found: Int32[np.ndarray, "queries k"]) -> Bool[np.ndarray, "queries k"]:
    """Returns, for each true neighbor of a query, whether it was found."""
    return (true[:, :, None] == found[:, None, :]).any(-1)


def grown(index: VectorIndex) -> tuple[tuple[float, ...], ...]:
    """Returns the rows of `index.recall` with more candidates, in proportion, if the index has more positions by now.

    Among twice as many vectors, twice as many have codes that look as good as those of a true neighbor. Fewer vectors
    are left with as many candidates.
    """
    if index.capacity <= (index.measured or index.capacity):
        return index.recall
    return tuple((-(-int(c) * index.capacity // index.measured), *shares) for c, *shares in index.recall)


def candidates(measured: tuple[tuple[float, ...], ...], recall: float, k: int, count: int | None = None) -> int:
    """Returns the least number of candidates with which `recall` of the `k` best vectors was reached: that of `row`.

    Example:
      >>> candidates(((16, 0.9, 0.8, 0.7), (64, 1.0, 0.99, 0.9)), 0.95, 10)
      64
    """
    return int(row(measured, recall, k, count)[0])


def row(measured: tuple[tuple[float, ...], ...], recall: float, k: int, count: int | None = None) -> tuple[float, ...]:
    """Returns the first row that reached `recall` of the `k` best vectors with at least `k` candidates.

    Args:
      measured: the result of `measure`, or that of `calibrate_lists.measure`.
      recall: the share of the true `k` best vectors that must be found, greater than 0, at most 1.
      k: number of vectors that are searched for, at most 100.
      count: number of vectors of the index; as many candidates are enough where there are not more than `k`.

    Raises:
      ValueError: `recall` or `k` is out of range, or no measured number of candidates reached `recall`.

    Example:
      >>> row(((16, 0.9, 0.8, 0.7), (64, 1.0, 0.99, 0.9)), 0.95, 10)
      (64, 1.0, 0.99, 0.9)
    """
    if not measured:
        raise ValueError("`index` has no measured recall. Build it with more vectors, or pass `num_candidates`.")
    if not 0 < recall <= 1 or not 1 <= k <= TOPS[-1]:
        raise ValueError(
            f"`recall` is {recall} for `k` = {k}; it is measured for 0 < recall <= 1 and 1 <= k <= {TOPS[-1]}."
        )
    column = 1 + next(i for i, top in enumerate(TOPS) if k <= top)
    reached = [row for row in measured if row[column] >= recall]
    enough = next((row for row in reached if row[0] >= k), None)
    if enough is not None:
        return enough
    if reached and count is not None and k >= count:
        return k, *reached[-1][1:]
    if reached:
        raise ValueError(
            f"`k` is {k}, but recall was measured with at most {int(measured[-1][0])} candidates. Pass "
            "`num_candidates`, at least `k`."
        )
    most = max(row[column] for row in measured)
    raise ValueError(
        f"`recall` is {recall}, but the most that was measured for {TOPS[column - 1]} neighbors is {most} with "
        f"{int(measured[-1][0])} candidates. Ask for less, pass a larger `num_candidates`, or build the index "
        "with more codebooks, or with more `queries`: few of them cannot show a recall near 1."
    )
