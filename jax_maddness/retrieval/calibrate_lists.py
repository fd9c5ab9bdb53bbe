"""Measures on held-out queries the recall that each number of lists and of candidates reaches together.

All lists are scanned once. A true neighbor's rank among the candidates of fewer lists follows from the ranks of lists:
it is the number of candidates that come before it and whose lists are scanned.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array, Float, Int32

from jax_maddness.learn.data import shapes
from jax_maddness.retrieval import calibrate
from jax_maddness.retrieval.calibrate import TOPS
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.lists import bases_of
from jax_maddness.retrieval.local import scaled_queries
from jax_maddness.retrieval.probe import products_of_centers
from jax_maddness.retrieval.truth import true_neighbors

ENOUGH = 0.99
"""The share of the 10 nearest vectors that is to be in the lists that a search scans by default."""
_LOOK_UPS_PER_CYCLE, _BYTES_PER_CYCLE, _CYCLES_PER_CANDIDATE = 32, 6, 60


def measure(
    index: VectorIndex,
    vectors: Float[np.ndarray, "vectors features"],
    queries: Float[np.ndarray, "queries features"],
    own: Int32[np.ndarray, " queries"] | None,
) -> tuple[tuple[tuple[float, ...], ...], int]:
    """Measures recall as `calibrate.measure` does, whose arguments these are, by numbers of lists and of candidates.

    Returns:
      Rows of a number of candidates, the recall for each of `TOPS` and a number of lists, in the order of the time that
      they take, without those that take longer than another and reach no more. Then the least number of lists that
      holds `ENOUGH`.
    """
    assert index.lists is not None
    num_lists, left_out = index.lists.num_lists, 0 if own is None else 1
    others = index.count - left_out
    if not len(queries) or others < 1:
        return (), num_lists
    counts = [c for c in calibrate.CANDIDATE_COUNTS if c < others]
    most, top = max([1, *counts]), min(TOPS[-1], others)
    bias = None if index.bias is None else np.asarray(index.bias)
    truth = calibrate.without(true_neighbors(queries, vectors, bias, index.metric, top + left_out), own, top)
    all_too = index.count <= calibrate.CANDIDATE_COUNTS[-1]
    candidates, best, best_of_all = calibrate.found(index, queries, own, most, top, all_too)
    tops = [min(top, k) for k in TOPS]
    kept = [calibrate.is_in(truth[:, :k], best[:, :k]) for k in tops]
    of_vectors = bases_of(index.lists, index.count).of_vectors
    ranks_of_lists = _ranks_of_lists(index, queries)
    places = _places(truth, candidates)
    rows = []
    for probe in _probes(num_lists):
        ranks = _ranks(places, candidates, of_vectors, ranks_of_lists, probe, most)
        rows += [
            (c, *(calibrate.likely((ranks[:, :k] < c) & is_kept) for k, is_kept in zip(tops, kept, strict=True)), probe)
            for c in counts
        ]
    if best_of_all is not None:
        shares = (calibrate.likely(calibrate.is_in(truth[:, :k], best_of_all[:, :k]), 0) for k in tops)
        rows.append((index.count, *shares, num_lists))
    return _fastest(rows, index), _enough(rows)


def _probes(num_lists: int) -> list[int]:
    """Returns the numbers of lists at which recall is measured: 1, 2, 3, 4, 6, 8, 12, ... and all."""
    numbers = sorted({n << s for s in range(num_lists.bit_length()) for n in (2, 3)} | {1})
    return [n for n in numbers if n < num_lists] + [num_lists]


def _ranks_of_lists(index: VectorIndex, queries: np.ndarray) -> Int32[np.ndarray, "queries lists"]:
    """Returns the rank of each list in the order in which a query scans them."""
    padded = shapes.pad(queries, shapes.rounded(len(queries), shapes.ROWS), queries.shape[1])
    order = np.asarray(_order_of_lists(padded, index))[: len(queries)]
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1], dtype=order.dtype)[None, :], 1)
    return ranks


@jax.jit
def _order_of_lists(queries: Array, index: VectorIndex) -> Int32[Array, "queries lists"]:
    scaled = scaled_queries(queries, index)
    assert index.lists is not None
    products = products_of_centers(scaled.in_frame, index.lists, scaled.frame_exponents)
    return jax.lax.top_k(products, index.lists.num_lists)[1]


def _places(truth: np.ndarray, candidates: np.ndarray) -> Int32[np.ndarray, "queries top"]:
    """Returns the place of each true neighbor among the candidates of all lists; -1 if it is none of them."""
    places = np.full(truth.shape, -1, np.int32)
    for own, true, proposed in zip(places, truth, candidates, strict=True):
        neighbor, place = np.nonzero(true[:, None] == proposed)
        own[neighbor] = place
    return places


def _ranks(
    places: np.ndarray,
    candidates: np.ndarray,
    of_vectors: np.ndarray,
    ranks_of_lists: np.ndarray,
    probe: int,
    most: int,
) -> Int32[np.ndarray, "queries top"]:
    """Returns the rank of each true neighbor among the candidates of `probe` lists; `most` if it is none of them."""
    lists = of_vectors[np.maximum(candidates, 0)]
    scanned = (candidates >= 0) & (np.take_along_axis(ranks_of_lists, lists, 1) < probe)
    before: np.ndarray = np.cumsum(scanned, 1) - scanned
    known = np.maximum(places, 0)
    is_found = (places >= 0) & np.take_along_axis(scanned, known, 1)
    return np.where(is_found, np.take_along_axis(before, known, 1), most)


def _cost(row: tuple[float, ...], index: VectorIndex) -> float:
    """Estimates the cycles of a search with the candidates and the lists of a row."""
    assert index.lists is not None
    assert index.vectors is not None
    scanned = index.count / index.lists.num_lists * row[-1] * index.num_codebooks / _LOOK_UPS_PER_CYCLE
    bytes_of_vector = index.num_features * index.vectors.dtype.itemsize
    return scanned + row[0] * (bytes_of_vector / _BYTES_PER_CYCLE + _CYCLES_PER_CANDIDATE)


def _fastest(rows: list[tuple[float, ...]], index: VectorIndex) -> tuple[tuple[float, ...], ...]:
    """Returns the rows that reach more than all that take less time, for one of `TOPS`, in the order of time."""
    reached, kept = [-1.0] * len(TOPS), []
    for row in sorted(rows, key=lambda row: (_cost(row, index), row)):
        shares = row[1:-1]
        if any(share > most for share, most in zip(shares, reached, strict=True)):
            kept.append(row)
            reached = [max(pair) for pair in zip(shares, reached, strict=True)]
    return tuple(kept)


def _enough(rows: list[tuple[float, ...]]) -> int:
    """Returns the least number of lists that holds `ENOUGH` of 10 neighbors, or as many as all lists."""
    held: dict[int, float] = {}
    for row in rows:
        held[int(row[-1])] = max(held.get(int(row[-1]), 0.0), row[2])
    return min((p for p, share in held.items() if share >= min(ENOUGH, held[max(held)])), default=1)
