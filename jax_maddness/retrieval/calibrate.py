"""Measures on held-out queries, when an index is built, the recall that each number of candidates reaches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from jax_maddness.learn.data import shapes
from jax_maddness.retrieval import scan
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.products import exact, tables_of

TOPS = (1, 10, 100)
"""Numbers of true neighbors whose recall is measured."""
CANDIDATE_COUNTS = tuple(n << s for s in range(10) for n in (8, 12))[1:]
"""Numbers of candidates at which recall is measured: 12, 16, 24, ... 6144."""
_QUERIES = 16  # queries whose exact products are in memory at once


def measure(
    index: VectorIndex,
    queries: Float[np.ndarray, "queries features"],
    own: Int32[np.ndarray, " queries"] | None,
) -> tuple[tuple[float, ...], ...]:
    """Measures the recall that each of `CANDIDATE_COUNTS` reaches.

    The recall is the mean over the queries minus its standard error, so that later queries rarely fall short of it.

    Args:
      index: an index that keeps exact vectors.
      queries: held-out queries; of length 1 for "cosine".
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
    batches = [
        _ranks(index, queries[at : at + _QUERIES], None if own is None else own[at : at + _QUERIES], most, top)
        for at in range(0, len(queries), _QUERIES)
    ]
    ranks = np.concatenate(batches)
    rows = []
    for count in counts:
        shares = [(ranks[:, : min(top, k)] < count).mean(1) for k in TOPS]
        error = [s.std() / np.sqrt(len(s)) for s in shares]
        rows.append((count, *(round(float(s.mean() - e), 5) for s, e in zip(shares, error, strict=True))))
    return (*rows, (index.count, *(1.0 for _ in TOPS))) if index.count <= CANDIDATE_COUNTS[-1] else tuple(rows)


def _ranks(
    index: VectorIndex, queries: np.ndarray, own: np.ndarray | None, most: int, top: int
) -> Int32[np.ndarray, "queries top"]:
    """Returns the rank of each true neighbor among the candidates; `most` if it is not among them."""
    spare = 0 if own is None else 1  # for the query itself, which is removed below
    padded = shapes.pad(queries, _QUERIES, queries.shape[1])
    truth, candidates = (np.asarray(a)[: len(queries)] for a in _neighbors(padded, index, top + spare, most + spare))
    ranks = np.full((len(queries), top), most, np.int32)
    for i, (true, proposed) in enumerate(zip(truth, candidates, strict=True)):
        if own is not None:
            true, proposed = true[true != own[i]], proposed[proposed != own[i]]
        neighbor, rank = np.nonzero(true[:top, None] == proposed[:most])
        ranks[i, neighbor] = rank
    return ranks


@jax.jit(static_argnames=("top", "most"))
def _neighbors(queries: jax.Array, index: VectorIndex, top: int, most: int) -> tuple[jax.Array, jax.Array]:
    """Returns the positions of the `top` true neighbors and of the `most` candidates of each query, best first."""
    truth = exact(queries, index, index.count, top)[1]
    return truth, scan.scan(index.codes, tables_of(queries, index).entries, jnp.int32(index.count), most)[1]


def candidates(measured: tuple[tuple[float, ...], ...], recall: float, k: int) -> int:
    """Returns the least number of candidates with which `recall` of the `k` best vectors was reached.

    Args:
      measured: the result of `measure`.
      recall: the share of the true `k` best vectors that must be among the candidates, greater than 0, at most 1.
      k: number of vectors that are searched for, at most 100.

    Raises:
      ValueError: `recall` or `k` is out of range, or no measured number of candidates reached `recall`.

    Example:
      >>> candidates(((16, 0.9, 0.8, 0.7), (64, 1.0, 0.99, 0.9)), 0.95, 10)
      64
    """
    if not measured:
        raise ValueError("`index` has no measured recall. Build it with more vectors, or pass `num_candidates`.")
    if not 0 < recall <= 1 or k > TOPS[-1]:
        raise ValueError(f"`recall` is {recall} for `k` = {k}; it is measured for 0 < recall <= 1 and k <= {TOPS[-1]}.")
    column = 1 + next(i for i, top in enumerate(TOPS) if k <= top)
    enough = [int(row[0]) for row in measured if row[column] >= recall and row[0] >= k]
    if not enough:
        raise ValueError(
            f"`recall` is {recall}, but the most that was measured for {TOPS[column - 1]} neighbors is "
            f"{measured[-1][column]} with {int(measured[-1][0])} candidates. Ask for less, pass a larger "
            "`num_candidates`, or build the index with more codebooks."
        )
    return min(enough)
