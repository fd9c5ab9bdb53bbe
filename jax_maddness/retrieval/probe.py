"""Probing: which lists a query scans, and the best vectors of these lists by their codes."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jax_maddness.retrieval import scan
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.lists import Lists
from jax_maddness.retrieval.powers import times_power
from jax_maddness.retrieval.products import Tables
from jax_maddness.retrieval.scan_lists import MAX_ADDED, ListsOfCodes, scan_lists

_LOWEST = 2.0**30
"""The greatest difference of levels: far beyond those of lists that are scanned, and far from what int32 holds."""


def products_of_centers(
    queries: Float[Array, "queries features"], lists: Lists, exponents: Int32[Array, " queries"] | None
) -> Float[Array, "queries lists"]:
    """Returns what a list adds to the products of its vectors: the product of its center, and the center's number.

    Args:
      queries: queries in the frame of the index, divided by `2**exponents`.
      lists: the lists.
      exponents: by which the numbers of centers are divided too; None: zeros.
    """
    numbers = jnp.broadcast_to(lists.centers[None, :, -1], (queries.shape[0], lists.num_lists))
    numbers = numbers if exponents is None else times_power(numbers, -exponents)
    return queries @ lists.centers[:, :-1].T + numbers


class Levels(NamedTuple):
    """Products of queries with centers as integers: a score is about `scale * (level + sum of entries) + offset`.

    Attributes:
      levels: differences from the greatest product in units of `scale`, rounded, 0 or less.
      scale: that of the tables.
      offset: that of the tables plus the greatest product.
    """

    levels: Int32[Array, "queries lists"]
    scale: Float[Array, " queries"]
    offset: Float[Array, " queries"]


def levels_of(
    queries: Float[Array, "queries features"],
    lists: Lists,
    tables: Tables,
    exponents: Int32[Array, " queries"] | None = None,
) -> Levels:
    """Returns the levels of all lists for each query; the arguments are those of `tables_of`."""
    products = products_of_centers(queries, lists, exponents)
    greatest = products.max(-1)
    below = greatest[:, None] - products
    # Where all entries of the tables are zero, the lists alone decide.
    tiny = jnp.finfo(jnp.float32).tiny
    scale = jnp.where(tables.scale > tiny, tables.scale, jnp.maximum(below.max(-1) / MAX_ADDED, tiny))
    levels = -jnp.round(jnp.minimum(below / scale[:, None], _LOWEST)).astype(jnp.int32)
    return Levels(levels, scale, tables.offset + greatest)


def best_of_lists(
    queries: Float[Array, "queries features"],
    index: VectorIndex,
    tables: Tables,
    exponents: Int32[Array, " queries"],
    number: int,
) -> tuple[Float[Array, "queries number"], Int32[Array, "queries number"]]:
    """Returns the approximate scores and the positions of the best vectors of the probed lists; -inf and -1 if fewer.

    The other arguments are those of `tables_of`.
    """
    lists = index.lists
    assert lists is not None
    levels, scale, offset = levels_of(queries, lists, tables, exponents)
    ranges = ListsOfCodes(index.codes, lists.ranges, lists.probe, lists.longest)
    sums, places = scan_lists(ranges, tables.entries, levels, number)
    if not len(lists.positions):
        return jnp.full(sums.shape, -jnp.inf), places
    scores = scale[:, None] * (sums - MAX_ADDED).astype(jnp.float32) + offset[:, None]
    missing = places < 0
    positions = lists.positions[jnp.maximum(places, 0)]
    return jnp.where(missing, -jnp.inf, scores), jnp.where(missing, -1, positions)


def all_by_lists(
    queries: Float[Array, "queries features"], index: VectorIndex, tables: Tables, exponents: Int32[Array, " queries"]
) -> Float[Array, "queries vectors"]:
    """Returns the approximate scores of the vectors of all lists, in the order of positions."""
    lists = index.lists
    assert lists is not None
    blocks = index.codes.shape[0]
    of_blocks = jnp.searchsorted(lists.ranges[:, 0], jnp.arange(blocks, dtype=jnp.int32), side="right") - 1
    added = products_of_centers(queries, lists, exponents)[:, jnp.repeat(of_blocks, scan.BLOCK)]
    sums = scan.scan_sums(index.codes, tables.entries, jnp.int32(blocks * scan.BLOCK))
    scores = tables.scale[:, None] * sums.astype(jnp.float32) + tables.offset[:, None] + added
    at = jnp.where(lists.positions < 0, len(index.ids), lists.positions)
    return jnp.full((queries.shape[0], len(index.ids)), -jnp.inf).at[:, at].set(scores, mode="drop")
