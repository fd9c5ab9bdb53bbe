"""The scan of lists: for each query, the vectors with the greatest sums among the lists that it probes.

Codes and tables are those of `scan.py`. A list is a range of blocks of the codes, and the lists that a query probes are
known only when it comes. Every list adds a number of its own to the sums of its vectors, such that the sums of
different lists can be compared: the tables of a query are the same for all lists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Int32, UInt8

from jax_maddness.core import ffi
from jax_maddness.core.stack import on_platform
from jax_maddness.retrieval import scan

MAX_ADDED = 2**23 - 1
"""Greatest number that is added to the sums of a list: that of a list of level 0. Sums of entries are below `2**15`, so
that float32 holds all of them."""


class ListsOfCodes(NamedTuple):
    """Lists of codes, and how many of them a query scans.

    Attributes:
      codes: codes of the vectors, as `scan.pack` returns them.
      ranges: the first block of each list, and the number of its vectors.
      probe: number of lists that each query scans.
      longest: number of blocks of the longest list; what a list has beyond is not scanned.
    """

    codes: UInt8[Array, "blocks pairs 64"]
    ranges: Int32[Array, "lists 2"]
    probe: int
    longest: int


def definition(
    lists: ListsOfCodes, tables: UInt8[Array, "queries codebooks 16"], levels: Int32[Array, "queries lists"], k: int
) -> tuple[Int32[Array, "queries k"], Int32[Array, "queries k"]]:
    """Finds, for each query, the `k` greatest sums among the vectors of the lists of greatest level.

    A query scans `probe` lists: that of the greatest level first, of equal levels the first list. The sum of a vector
    is `sum_c tables[c, code_c]`, to which the level of its list plus `MAX_ADDED` is added, clipped to [0, MAX_ADDED].

    The greatest sum comes first; of equal sums, that of the list that is scanned first, and of one list that of the
    first vector. If there are fewer than `k` vectors, the remaining sums and positions are -1. A list that is not
    within `codes` is clipped to what exists, and to `longest` blocks.
    """
    codes, ranges, probe, longest = lists
    queries, blocks, probe = tables.shape[0], codes.shape[0], min(probe, ranges.shape[0])
    # Inside of a shard_map, constants would vary over fewer axes than the sums, and a loop must not change that.
    varying = 0 * sum(a[:1].sum(dtype=jnp.int32) for a in (codes, tables, ranges, levels))
    missing = jnp.full((queries, k), -1, jnp.int32) + varying
    best = missing, missing
    if 0 in (blocks, probe, longest):
        return best
    first = jnp.clip(ranges[:, 0], 0, blocks)
    counts = jnp.clip(ranges[:, 1], 0, jnp.minimum(blocks - first, longest) * scan.BLOCK)
    within = jnp.arange(longest, dtype=jnp.int32)
    levels, chosen = lax.top_k(levels, probe)
    added = jnp.clip(levels, -MAX_ADDED, 0) + MAX_ADDED

    def step(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        of_list = codes[jnp.minimum(first[chosen[:, i]][:, None] + within[None, :], blocks - 1)]
        sums = _sums(of_list, tables, counts[chosen[:, i]]).astype(jnp.int32)
        sums = jnp.where(sums < 0, -1, sums + added[:, i, None])
        positions = first[chosen[:, i]][:, None] * scan.BLOCK + jnp.arange(sums.shape[1], dtype=jnp.int32)[None, :]
        return _greatest(jnp.concatenate([best[0], sums], 1), jnp.concatenate([best[1], positions], 1), k)

    return lax.fori_loop(0, probe, step, best)


def _sums(codes: Array, tables: Array, counts: Array) -> Array:
    """Returns the sums of the vectors of a list for each query, which has blocks of its own, `[queries, vectors]`."""

    def of_query(codes: Array, table: Array, count: Array) -> Array:
        return scan.sums_definition(codes, table[None], count).reshape(-1)

    return jax.vmap(of_query)(codes, tables, counts)


def _greatest(sums: Array, positions: Array, k: int) -> tuple[Array, Array]:
    sums, at = lax.top_k(sums, k)  # the first of equal sums
    return sums, jnp.where(sums < 0, -1, jnp.take_along_axis(positions, at, 1))


def scan_lists(
    lists: ListsOfCodes, tables: UInt8[Array, "queries codebooks 16"], levels: Int32[Array, "queries lists"], k: int
) -> tuple[Int32[Array, "queries k"], Int32[Array, "queries k"]]:
    """Computes `definition` by the kernels if they are available; sums and positions are the same, ties included.

    Args:
      lists: the lists.
      tables: entries for each query; only the low 7 bits of each count.
      levels: level of each list for each query, 0 for the best one and negative for the others.
      k: number of sums for each query.

    Returns:
      The sums, greatest first, and the positions of their vectors in the codes; -1 and -1 if there are fewer than `k`.

    Raises:
      ValueError: shapes do not match, there are no codebooks or more than `MAX_CODEBOOKS`, or a number is negative.

    Example:
      >>> codes = scan.pack(jnp.arange(16, dtype=jnp.uint8)[:, None])
      >>> tables = jnp.arange(16, dtype=jnp.uint8).reshape(1, 1, 16)
      >>> lists = ListsOfCodes(codes, jnp.array([[0, 5]]), probe=1, longest=1)
      >>> sums, positions = scan_lists(lists, tables, jnp.array([[0]]), k=2)
      >>> (sums - MAX_ADDED).tolist(), positions.tolist()
      ([[4, 3]], [[4, 3]])
    """
    codes, ranges, probe, longest = lists
    scan.validate(codes, tables)
    if min(k, probe, longest) < 0:
        raise ValueError(f"`k` is {k}, `probe` {probe} and `longest` {longest}; expected at least 0.")
    if ranges.ndim != 2 or ranges.shape[1] != 2 or levels.shape != (tables.shape[0], ranges.shape[0]):
        raise ValueError(
            f"`ranges` and `levels` have the shapes {ranges.shape} and {levels.shape}; expected [lists, 2] and "
            f"[queries, lists], with {tables.shape[0]} queries as in `tables`."
        )
    return _run(k, probe, longest, codes, tables, ranges.astype(jnp.int32), levels.astype(jnp.int32))


# Outside of any `jit`, a call is compiled as one function; inside of one, it becomes a part of the caller.
@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _run(k: int, probe: int, longest: int, *args: Array) -> tuple[Array, ...]:
    return _vmapped(k, probe, longest)(*args)


@functools.cache
def _vmapped(k: int, probe: int, longest: int) -> Callable[..., Any]:
    """Returns the scan for these numbers. A batch of queries is more queries, of codes several scans."""

    def defined(codes: Array, tables: Array, ranges: Array, levels: Array, *_: Array) -> tuple[Array, ...]:
        return definition(ListsOfCodes(codes, ranges, probe, longest), tables, levels, k)

    @custom_vmap
    def run(*args: Array) -> tuple[Array, ...]:
        args = *args, jnp.int32(probe), jnp.int32(longest)
        return on_platform(defined, "jax_maddness_scan_lists", *args) if ffi.enabled() else defined(*args)

    @run.def_vmap
    def batch(axis_size: int, in_batched: list[bool], *args: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        codes, tables, ranges, levels = (
            a if is_batched else jnp.broadcast_to(a, (axis_size, *a.shape))
            for a, is_batched in zip(args, in_batched, strict=True)
        )
        if in_batched[0] or in_batched[2]:
            return lax.map(lambda each: run(*each), (codes, tables, ranges, levels)), (True, True)
        folded = (a.reshape(-1, *a.shape[2:]) for a in (tables, levels))
        results = run(args[0], next(folded), args[2], next(folded))
        return tuple(r.reshape(axis_size, -1, k) for r in results), (True, True)

    return run
