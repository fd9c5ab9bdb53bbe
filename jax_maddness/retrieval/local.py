"""The search of one device: scaled queries, their candidates, and the exact scores that decide.

    queries --scaled_queries--> Scaled --local--> scores of the scaled queries, ids --unscaled--> scores

Every query is divided by a power of two before it is multiplied, so that no product leaves the range of float32.
Distances are sums of squared differences, as `|q|^2 - 2 q.v + |v|^2` cancels where lengths exceed distances. For
queries that are far from all vectors, these sums would round the vectors away; there it is the other way round, and
`|q - o|^2 + (v - o).(v + o - 2 q)` with the origin `o` of the index has all digits. Both are
`sum(a * (a - shift)) + constant` with `a = v - base`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from jax_maddness.retrieval import scan
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.log_sum import Terms, exact_terms, terms_of
from jax_maddness.retrieval.powers import exponents, times_power, two_powers
from jax_maddness.retrieval.probe import all_by_lists, best_of_lists
from jax_maddness.retrieval.products import best, exact_products, tables_of
from jax_maddness.retrieval.rescore import rescore
from jax_maddness.retrieval.restrict import Restrictions, candidates, joined

_FAR = (8, 44)
"""Exponents of the distances of far queries, in units of the frame. Beyond, float64 could not tell distances apart."""
_SPARE = 32
"""Candidates that a dense product proposes besides `k`: it may round equal vectors differently, `rescore` does not."""


class Scaled(NamedTuple):
    """Queries divided by powers of two.

    Attributes:
      rows: the queries for exact scores, divided by `2**exponents`; of length 1 for "cosine".
      exponents: those of `rows`.
      in_frame: the queries for tables: in the frame of the index, and divided by `2**frame_exponents`.
      frame_exponents: those of `in_frame`.
      base, shift, constant: the terms of distances, for "l2"; divided by `2**exponents`, and `constant` by its square.
    """

    rows: Float[Array, "queries features"]
    exponents: Int32[Array, " queries"]
    in_frame: Float[Array, "queries features"]
    frame_exponents: Int32[Array, " queries"]
    base: Float[Array, "queries features"] | None = None
    shift: Float[Array, "queries features"] | None = None
    constant: Float[Array, "queries 1"] | None = None


def scaled_queries(queries: Float[Array, "queries features"], index: VectorIndex, has_bias: bool = False) -> Scaled:
    """Scales queries, float32 and finite, for the products that `index` needs; `has_bias`: one of the search itself."""
    own = exponents(queries)
    zeros = jnp.zeros_like(own)
    if index.metric == "l2":
        return _scaled_for_distances(queries, own, index)
    if index.metric == "cosine":
        rows = times_power(queries, -own)  # the largest entry is now at least 1, or all are 0
        squares = (rows * rows).sum(-1, keepdims=True)
        rows = rows / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
        return Scaled(rows, zeros, rows, zeros)
    if index.bias is not None or has_bias:
        own = jnp.maximum(own, 0)  # the biases are divided too, and must not overflow
    rows = times_power(queries, -own)
    return Scaled(rows, own, rows, own)


def _scaled_for_distances(
    queries: Float[Array, "queries features"], own: Int32[Array, " queries"], index: VectorIndex
) -> Scaled:
    if not index.sums_squares:
        return Scaled(queries, jnp.zeros_like(own), queries, jnp.zeros_like(own))
    assert index.origin is not None
    origin = jnp.broadcast_to(index.origin[None, :], queries.shape)
    largest = jnp.maximum(jnp.maximum(own, exponents(origin)), index.exponent) + 1
    rows, origin = times_power(queries, -largest), times_power(origin, -largest)
    shifted = rows - origin
    # In the frame the query is `shifted * 2**(largest - index.exponent)`; a far one is divided until it is near 1.
    beyond = jnp.maximum(exponents(shifted) + largest - index.exponent, 0)
    in_frame = times_power(shifted, largest - index.exponent - beyond)
    is_far = ((beyond > _FAR[0]) & (beyond <= _FAR[1]))[:, None]
    base, shift = jnp.where(is_far, origin, rows), jnp.where(is_far, 2 * shifted, 0.0)
    constant = jnp.where(is_far, (shifted * shifted).sum(-1, keepdims=True), 0.0)
    return Scaled(rows, largest, in_frame, beyond, base, shift, constant)


class Found(NamedTuple):
    """The result of a search on one device.

    Attributes:
      scores: scores of the scaled queries, best first.
      ids: the vectors that have them.
      terms: terms of the sum of the exponentials of all scores, if asked for.
    """

    scores: Float[Array, "queries k"]
    ids: Int32[Array, "queries k"]
    terms: Terms | None = None


def local(
    scaled: Scaled,
    index: VectorIndex,
    k: int,
    num_candidates: int,
    count: int | Array | None = None,
    given: Restrictions | None = None,
    log_sum: bool = False,
) -> Found:
    """Searches the vectors of one device.

    Args:
      scaled: the queries.
      index: an index, or one shard of it.
      k: number of vectors for each query.
      num_candidates: number of candidates that are rescored, or 0.
      count: number of positions that take part; None: all that are in use.
      given: restrictions of the queries, with ids.
      log_sum: whether to return terms of the sum of exponentials; needs candidates.
    """
    rows = len(index.ids)
    if not rows:
        none = jnp.zeros((scaled.rows.shape[0], 0), jnp.float32)
        return Found(*best(none, none.astype(jnp.int32), k), exact_terms(none) if log_sum else None)
    in_use = index.in_use if count is None else count
    given = None if given is None else given.positions(index.ids, in_use)
    if index.room is not None:
        given = (given or Restrictions()).without(index.room.removed, scaled.rows.shape[0])
    count = jnp.asarray(in_use, jnp.int32)
    terms = None
    if not num_candidates:
        scores, positions = _proposed(scaled, index, k, count, given)
    elif num_candidates >= rows:
        dense = all_exact(scaled, index, count, given)
        positions = jnp.sort(_best_positions(lax.stop_gradient(dense), k + _SPARE), -1)
        scores = exact_scores(scaled, index, positions, given)
        terms = exact_terms(unscaled(dense, scaled, index, True)) if log_sum else None
    else:
        positions = candidates_of(scaled, index, num_candidates, count, given)
        positions = positions if given is None else joined(positions, given)
        positions = jnp.sort(positions, -1)  # the first of equal scores is best; memory is read in order
        scores = exact_scores(scaled, index, positions, given)
        if log_sum:
            approximate = unscaled(approximate_scores(scaled, index, count, given), scaled, index, False)
            terms = terms_of(
                approximate,
                positions,
                unscaled(scores, scaled, index, True),
                lambda drawn: unscaled(exact_scores(scaled, index, drawn, given), scaled, index, True),
            )
    scores, positions = best(scores, positions, k)
    return Found(scores, jnp.where(positions < 0, -1, index.ids[jnp.maximum(positions, 0)]), terms)


def _proposed(
    scaled: Scaled, index: VectorIndex, number: int, count: Array, given: Restrictions | None
) -> tuple[Float[Array, "queries number"], Int32[Array, "queries number"]]:
    """Returns the approximate scores and the positions of the best vectors; -inf and -1 where there are fewer."""

    def all_of_them() -> tuple[Array, Array]:
        scores = approximate_scores(scaled, index, count, given)
        return best(scores, _positions(scores), number)

    if given is not None and given.score_bias is not None:
        return all_of_them()
    tables = tables_of(scaled.in_frame, index, scaled.frame_exponents)

    def scores_of(number: int) -> tuple[Array, Array]:
        if index.lists is not None:
            return best_of_lists(scaled.in_frame, index, tables, scaled.frame_exponents, number)
        sums, positions = scan.scan(index.codes, tables.entries, count, number)
        scores = tables.scale[:, None] * sums.astype(jnp.float32) + tables.offset[:, None]
        return jnp.where(sums < 0, -jnp.inf, scores), positions

    if given is None:
        return scores_of(number)
    vectors, room, exclude = len(index.ids), index.room, given.exclude

    def filtered() -> tuple[Array, Array]:
        return candidates(scores_of, all_of_them, given, number, vectors)

    if room is None or given.mask is not None or exclude is None or exclude.shape[1] != len(room.removed):
        return filtered()
    # Only removed vectors are excluded, and mostly there are none.
    return lax.cond((room.removed >= 0).any(), filtered, lambda: scores_of(min(number, vectors)))


def approximate_scores(
    scaled: Scaled, index: VectorIndex, count: Array, given: Restrictions | None
) -> Float[Array, "queries vectors"]:
    """Returns the approximate scores of all vectors, in the frame of the index; -inf for those that are excluded."""
    tables = tables_of(scaled.in_frame, index, scaled.frame_exponents)
    if index.lists is not None:
        scores = all_by_lists(scaled.in_frame, index, tables, scaled.frame_exponents)
    else:
        sums = scan.scan_sums(index.codes, tables.entries, count)[:, : len(index.ids)]
        scores = tables.scale[:, None] * sums.astype(jnp.float32) + tables.offset[:, None]
        scores = jnp.where(sums < 0, -jnp.inf, scores)
    if given is not None:
        if given.score_bias is not None:
            scores = scores + _scaled_bias(given.score_bias, scaled.exponents + index.exponent)
        scores = jnp.where(given.dense(*scores.shape), -jnp.inf, scores)
    return scores


def _positions(scores: Float[Array, "queries vectors"]) -> Int32[Array, "queries vectors"]:
    return jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32)[None, :], scores.shape)


def _best_positions(scores: Float[Array, "queries vectors"], k: int) -> Int32[Array, "queries k"]:
    return best(scores, _positions(scores), k)[1]


def _scaled_bias(bias: Float[Array, "rows vectors"], exponents: Int32[Array, " queries"]) -> Array:
    """Divides a bias, that of each query or the same for all, by `2**exponents` of each query."""
    return times_power(jnp.broadcast_to(bias, (exponents.shape[0], bias.shape[1])), -exponents)


def candidates_of(
    scaled: Scaled,
    index: VectorIndex,
    num_candidates: int,
    count: Array | None = None,
    given: Restrictions | None = None,
) -> Int32[Array, "queries candidates"]:
    """Returns the positions of the vectors that look-ups propose, best first; -1 where there are fewer."""
    count = jnp.asarray(index.in_use if count is None else count, jnp.int32)
    return _proposed(scaled, index, num_candidates, count, given)[1]


def exact_scores(
    scaled: Scaled, index: VectorIndex, positions: Int32[Array, "queries candidates"], given: Restrictions | None
) -> Float[Array, "queries candidates"]:
    """Returns the exact scores of candidates; -inf at position -1."""
    assert index.vectors is not None
    known = jnp.maximum(positions, 0)
    if index.sums_squares:
        one, other = (power[:, None, None] for power in two_powers(-scaled.exponents))
        assert scaled.base is not None
        assert scaled.shift is not None
        difference = index.vectors[known].astype(jnp.float32) * one * other - scaled.base[:, None, :]
        return jnp.where(positions < 0, -jnp.inf, -(difference * (difference - scaled.shift[:, None, :])).sum(-1))
    scores = rescore(scaled.rows, index.vectors, positions)
    for bias in (None if index.bias is None else index.bias[known], given and given.bias_at(positions)):
        scores = scores if bias is None else scores + times_power(bias, -scaled.exponents)
    return scores


def all_exact(
    scaled: Scaled, index: VectorIndex, count: Array, given: Restrictions | None
) -> Float[Array, "queries vectors"]:
    """Returns the scores of all vectors by dense products; -inf for those that are excluded."""
    assert index.vectors is not None
    if index.sums_squares:
        # Summed over the first dimension, so that neighboring vectors are summed side by side.
        one, other = (power[None, :, None] for power in two_powers(-scaled.exponents))
        assert scaled.base is not None
        assert scaled.shift is not None
        vectors = index.vectors.astype(jnp.float32).T[:, None, :] * one * other
        difference = vectors - scaled.base.T[:, :, None]
        scores = -(difference * (difference - scaled.shift.T[:, :, None])).sum(0)
    else:
        scores = exact_products(scaled.rows, index.vectors)
        for bias in (None if index.bias is None else index.bias[None, :], given and given.score_bias):
            scores = scores if bias is None else scores + _scaled_bias(bias, scaled.exponents)
    scores = jnp.where(_positions(scores) < count, scores, -jnp.inf)
    return scores if given is None else jnp.where(given.dense(*scores.shape), -jnp.inf, scores)


def unscaled(
    scores: Float[Array, "queries k"], scaled: Scaled, index: VectorIndex, exact: bool
) -> Float[Array, "queries k"]:
    """Returns the scores of queries, given those of the scaled queries.

    Args:
      scores: the result of `local`.
      scaled: its queries.
      index: its index.
      exact: whether candidates were rescored.
    """
    if index.metric == "cosine":
        return jnp.where(scores == -jnp.inf, scores, jnp.clip(scores, -1.0, 1.0))
    if index.metric == "ip":
        return times_power(scores, scaled.exponents if exact else scaled.exponents + index.exponent)
    if not index.sums_squares:
        return jnp.minimum(2 * scores - (scaled.rows * scaled.rows).sum(-1, keepdims=True), 0.0)
    if exact:
        assert scaled.constant is not None
        return times_power(scores - scaled.constant, 2 * scaled.exponents)
    # Both terms are divided by `4**frame_exponents`, as neither may overflow before they are subtracted.
    squares = (scaled.in_frame * scaled.in_frame).sum(-1, keepdims=True)
    distances = squares - times_power(2 * scores, -scaled.frame_exponents)
    return times_power(-jnp.maximum(distances, 0.0), 2 * (scaled.frame_exponents + index.exponent))
