"""Scanning lists of codes: every tier against loops; transformations; what the handler checks itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import needs_kernels
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_maddness import testing
from jax_maddness.core import ffi
from jax_maddness.retrieval import scan
from jax_maddness.retrieval.scan_lists import MAX_ADDED, ListsOfCodes, scan_lists


def by_hand(lists, tables, levels, k):
    """Sums and positions, as loops say, over whatever the ranges are."""
    codes, ranges, probe, longest = (np.asarray(a) for a in lists)
    blocks, results = len(codes), []
    for table, own in zip(np.asarray(tables) & 127, np.asarray(levels), strict=True):
        found = []
        for place, chosen in enumerate(sorted(range(len(own)), key=lambda i: (-int(own[i]), i))[: int(probe)]):
            first = min(max(int(ranges[chosen, 0]), 0), blocks)
            count = min(max(int(ranges[chosen, 1]), 0), min(blocks - first, int(longest)) * 64)
            added = min(max(int(own[chosen]) + MAX_ADDED, 0), MAX_ADDED)
            for position in range(64 * first, 64 * first + count):
                both = codes[position // 64, :, position % 64]
                total = sum(int(row[both[c // 2] >> c % 2 * 4 & 15]) for c, row in enumerate(table))
                found.append((-(total + added), place, position))
        best = sorted(found)[:k]
        results.append([[-s for s, _, _ in best], [p for _, _, p in best]])
    padded = np.full((2, len(results), k), -1)
    for i, rows in enumerate(results):
        for kind, row in enumerate(rows):
            padded[kind, i, : len(row)] = row
    return padded


def problem(rng, blocks=6, codebooks=5, queries=3, num_lists=4, most=6, spread=40):
    """Lists that follow each other, as those of an index; few different entries and levels make many ties."""
    codes = rng.integers(0, 256, (blocks, -(-codebooks // 2), 64), np.uint8)
    edges = np.sort(rng.integers(0, blocks + 1, num_lists - 1)) if num_lists else np.zeros(0, int)
    first = np.concatenate([[0], edges])[:num_lists]
    room = np.diff(np.append(first, blocks)) * 64
    counts = room - (room > 0) * rng.integers(0, 64, num_lists)
    tables = rng.integers(0, most, (queries, codebooks, 16), np.uint8) + 128 * rng.integers(0, 2, (1, 1, 16), np.uint8)
    levels = -rng.integers(0, spread, (queries, num_lists)).astype(np.int32)
    return codes, np.stack([first, counts], 1).astype(np.int32), tables, levels


def assert_same(actual, desired):
    for a, d in zip(actual, desired, strict=True):
        assert a.dtype == jnp.int32
        np.testing.assert_array_equal(a, d)


@settings(deadline=None, max_examples=25)
@given(
    blocks=st.integers(0, 7),
    codebooks=st.sampled_from([1, 2, 5, 31]),
    num_lists=st.sampled_from([0, 1, 2, 5, 9]),
    probe=st.integers(0, 10),
    longest=st.sampled_from([0, 1, 3, 7]),
    k=st.sampled_from([0, 1, 7, 64, 500]),
    spread=st.sampled_from([1, 40, 100_000]),
    seed=st.integers(0, 2**31),
)
def test_scan_is_what_loops_say(blocks, codebooks, num_lists, probe, longest, k, spread, seed):
    codes, ranges, tables, levels = problem(
        np.random.default_rng(seed), blocks, codebooks, 2, num_lists, most=30, spread=spread
    )
    lists = ListsOfCodes(jnp.asarray(codes), jnp.asarray(ranges), probe, longest)
    want = by_hand(lists, tables, levels, k)
    for tier in ffi.supported_tiers():
        with testing.force_tier(tier):
            assert_same(scan_lists(lists, tables, levels, k), want)
    with testing.force_backend("jax"):
        assert_same(scan_lists(lists, tables, levels, k), want)


def test_anything_as_ranges_and_levels(tier, rng):
    """Numbers that no index has: the kernels clip them as the definition does, and read nothing beyond."""
    codes, _, tables, _ = problem(rng, num_lists=8)
    extremes = np.array([-(2**31), -1, 0, 1, 5, 6, 7, 64, 100, 2**31 - 1], np.int32)
    for _ in range(5):
        ranges, levels = rng.choice(extremes, (8, 2)), rng.choice(extremes, (3, 8))
        lists = ListsOfCodes(jnp.asarray(codes), jnp.asarray(ranges), 6, 4)
        assert_same(scan_lists(lists, tables, levels, 50), by_hand(lists, tables, levels, 50))


def test_thresholds_are_carried_over_many_lists(tier):
    """Buffers fill, and the best vectors are in any list."""
    rng = np.random.default_rng(0)
    codes, ranges, tables, levels = problem(rng, 60, 6, 2, 30, most=128, spread=300)
    levels[:, 0] = 0
    levels[0] = np.sort(levels[0])  # the best list comes last
    lists = ListsOfCodes(jnp.asarray(codes), jnp.asarray(ranges), 25, 60)
    for k in (1, 100, 1000):
        assert_same(scan_lists(lists, tables, levels, k), by_hand(lists, tables, levels, k))


@needs_kernels
@pytest.mark.parametrize(("blocks", "codebooks", "queries"), [(2200, 64, 1), (500, 8, 40)])
def test_the_same_from_any_number_of_threads(blocks, codebooks, queries):
    """Large enough for several threads; from the sums of all vectors, as loops would take long."""
    codes, ranges, tables, levels = problem(np.random.default_rng(0), blocks, codebooks, queries, 50, most=3)
    lists = ListsOfCodes(jnp.asarray(codes), jnp.asarray(ranges), 45, blocks)
    sums = np.asarray(scan.scan_sums(lists.codes, tables, blocks * 64)).astype(np.int64)
    want = np.zeros((2, queries, 100), int)
    for q, own in enumerate(levels):
        chosen = np.argsort(-own, kind="stable")[:45]
        positions = np.concatenate([64 * f + np.arange(n) for f, n in ranges[chosen]])  # in the order of the scan
        totals = sums[q, positions] + np.repeat(own[chosen] + MAX_ADDED, ranges[chosen, 1])
        best = np.argsort(-totals, kind="stable")[:100]
        want[:, q] = totals[best], positions[best]
    assert_same(scan_lists(lists, tables, levels, 100), want)


def test_vmap(backend, rng):
    codes, ranges, tables, levels = problem(rng, queries=4)
    lists = ListsOfCodes(jnp.asarray(codes), jnp.asarray(ranges), 3, 6)
    want = by_hand(lists, tables, levels, 9)

    def best(tables, levels):
        return scan_lists(lists, tables, levels, 9)

    folded = jax.jit(jax.vmap(best))(tables.reshape(2, 2, 5, 16), levels.reshape(2, 2, 4))
    assert_same([a.reshape(4, 9) for a in folded], want)
    same_levels = jax.vmap(best, (0, None))(tables[:, None], levels[:1])
    assert_same([a[:, 0] for a in same_levels], by_hand(lists, tables, np.repeat(levels[:1], 4, 0), 9))
    shards = jnp.asarray(codes).reshape(2, 3, 3, 64)
    each = jax.vmap(lambda c: scan_lists(ListsOfCodes(c, lists.ranges, 3, 6), tables, levels, 9))(shards)
    wanted = [by_hand(ListsOfCodes(shard, lists.ranges, 3, 6), tables, levels, 9) for shard in shards]
    assert_same(each, np.stack(wanted, 1))


@needs_kernels
def test_portable(rng):
    codes, ranges, tables, levels = problem(rng)

    def best(codes, ranges, tables, levels):
        return scan_lists(ListsOfCodes(codes, ranges, 3, 6), tables, levels, 9)

    testing.assert_portable(best, *map(jnp.asarray, (codes, ranges, tables, levels)), platforms=("tpu", "cuda"))


def test_wrong_arguments(rng):
    codes, ranges, tables, levels = map(jnp.asarray, problem(rng))
    good = ListsOfCodes(codes, ranges, 3, 6)
    for lists, of_queries, k, match in (
        (good._replace(probe=-1), (tables, levels), 3, "`probe` -1"),
        (good._replace(longest=-1), (tables, levels), 3, "`longest` -1"),
        (good, (tables, levels), -3, "`k` is -3"),
        (good._replace(ranges=ranges[:, :1]), (tables, levels), 3, "`ranges`"),
        (good, (tables, levels[:, 1:]), 3, "`levels`"),
        (good, (tables[1:], levels), 3, "2 queries"),
        (good, (tables[:, :2], levels), 3, "pack"),
    ):
        with pytest.raises(ValueError, match=match):
            scan_lists(lists, *of_queries, k)


SHAPES = {
    "codes": ((2, 3, 64), jnp.uint8),
    "tables": ((4, 5, 16), jnp.uint8),
    "ranges": ((6, 2), jnp.int32),
    "levels": ((4, 6), jnp.int32),
    "probe": ((), jnp.int32),
    "longest": ((), jnp.int32),
    "sums": ((4, 7), jnp.int32),
    "positions": ((4, 7), jnp.int32),
}


def call(**changes):
    *args, sums, positions = (SHAPES | changes).values()
    results = tuple(jax.ShapeDtypeStruct(*r) for r in (sums, positions))
    return ffi.call("jax_maddness_scan_lists", results, *(jnp.zeros(*a) for a in args))


@needs_kernels
@pytest.mark.parametrize(
    "changes",
    [
        {"codes": ((2, 2, 64), jnp.uint8)},
        {"tables": ((4, 4, 16), jnp.uint8)},
        {"ranges": ((6, 3), jnp.int32)},
        {"ranges": ((6,), jnp.int32)},
        {"ranges": ((5, 2), jnp.int32)},
        {"ranges": ((6, 2), jnp.uint32)},
        {"levels": ((3, 6), jnp.int32)},
        {"levels": ((4, 6), jnp.float32)},
        {"probe": ((1,), jnp.int32)},
        {"longest": ((), jnp.float32)},
        {"sums": ((3, 7), jnp.int32)},
        {"positions": ((4, 8), jnp.int32)},
    ],
)
def test_the_handler_checks_every_size_itself(changes):
    assert np.all(call()[0] == -1)  # no list is scanned
    with pytest.raises(Exception, match=r"(?i)invalid|wrong"):
        jax.block_until_ready(call(**changes))


def test_codes_of_one_list_are_those_of_a_scan(tier, rng):
    codes, tables = jnp.asarray(rng.integers(0, 256, (9, 3, 64), np.uint8)), rng.integers(0, 9, (3, 5, 16), np.uint8)
    lists = ListsOfCodes(codes, jnp.array([[0, 550]]), 1, 9)
    sums, positions = scan_lists(lists, tables, np.zeros((3, 1), np.int32), 40)
    assert_same((sums - MAX_ADDED, positions), scan.scan(codes, tables, 550, 40))
