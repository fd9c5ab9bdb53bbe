"""How many candidates must be rescored for which recall: measured when an index is built, on queries held out."""

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
"""Numbers of true neighbours whose recall is measured."""
CANDIDATE_COUNTS = tuple(n << s for s in range(10) for n in (8, 12))[1:]
"""Numbers of candidates at which it is measured: 12, 16, 24, ... 6144."""
_QUERIES = 16  # whose exact products are in memory at once


def measure(
    index: VectorIndex,
    queries: Float[np.ndarray, "queries features"],
    own: Int32[np.ndarray, " queries"] | None,
) -> tuple[tuple[float, ...], ...]:
    """Rows of a number of candidates and, for each of `TOPS`, a recall that is likely reached with them.

    It is the mean over the queries less its standard error, so that fresh queries seldom fall short.

    Args:
      index: with exact vectors.
      queries: in the index's metric, of length 1 for "cosine".
      own: the positions of vectors that are queries, each of which is left out of its own neighbours; None: no query
        is a vector of the index.
    """
    left_out = 0 if own is None else 1
    there = index.count - left_out
    if not len(queries) or there < 1:
        return ()
    counts = [c for c in CANDIDATE_COUNTS if c < there]
    most, top = max([1, *counts]), min(TOPS[-1], there)
    found = [
        _ranks(index, queries[at : at + _QUERIES], None if own is None else own[at : at + _QUERIES], most, top)
        for at in range(0, len(queries), _QUERIES)
    ]
    ranks = np.concatenate(found)
    rows = []
    for count in counts:
        shares = [(ranks[:, : min(top, k)] < count).mean(1) for k in TOPS]
        error = [s.std() / np.sqrt(len(s)) for s in shares]
        rows.append((count, *(round(float(s.mean() - e), 5) for s, e in zip(shares, error, strict=True))))
    return (*rows, (index.count, *(1.0 for _ in TOPS))) if index.count <= CANDIDATE_COUNTS[-1] else tuple(rows)


def _ranks(
    index: VectorIndex, queries: np.ndarray, own: np.ndarray | None, most: int, top: int
) -> Int32[np.ndarray, "queries top"]:
    """The place among the candidates of each true neighbour; `most` and more where it is not among them."""
    more = 0 if own is None else 1
    padded = shapes.pad(queries, _QUERIES, queries.shape[1])
    truth, candidates = (np.asarray(a)[: len(queries)] for a in _neighbours(padded, index, top + more, most + more))
    ranks = np.full((len(queries), top), most, np.int32)
    for i, (true, proposed) in enumerate(zip(truth, candidates, strict=True)):
        if own is not None:
            true, proposed = true[true != own[i]], proposed[proposed != own[i]]
        at, where = np.nonzero(true[:top, None] == proposed[:most])
        ranks[i, at] = where
    return ranks


@jax.jit(static_argnames=("top", "most"))
def _neighbours(queries: jax.Array, index: VectorIndex, top: int, most: int) -> tuple[jax.Array, jax.Array]:
    truth = exact(queries, index, index.count, top)[1]
    return truth, scan.scan(index.codes, tables_of(queries, index).entries, jnp.int32(index.count), most)[1]


def candidates(measured: tuple[tuple[float, ...], ...], recall: float, k: int) -> int:
    """The fewest candidates with which `recall` of the `k` best was reached.

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
            f"`recall` is {recall}, but the most that was measured for {TOPS[column - 1]} neighbours is "
            f"{measured[-1][column]} with {int(measured[-1][0])} candidates. Ask for less, pass a larger "
            f"`num_candidates`, or "
            "build the index with more codebooks."
        )
    return min(enough)
