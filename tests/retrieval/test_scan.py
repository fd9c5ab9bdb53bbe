"""Scanning a database of codes: every tier against loops; transformations; what the handler checks itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import needs_kernels
from jax import export
from jax.sharding import PartitionSpec as P

from jax_maddness import testing
from jax_maddness.core import ffi
from jax_maddness.retrieval import scan


def by_hand(codes, tables, count, k):
    """[vectors, codebooks], [queries, codebooks, 16] -> sums and positions, as loops say."""
    sums = [[sum(int(t[c][code]) for c, code in enumerate(row)) for row in codes[:count]] for t in tables]
    best = [sorted(range(len(s)), key=lambda i: (-s[i], i))[:k] for s in sums]
    fill = [-1] * k
    return [[[s[i] for i in b] + fill][0][:k] for s, b in zip(sums, best, strict=True)], [(b + fill)[:k] for b in best]


@pytest.mark.parametrize(("vectors", "codebooks"), [(0, 2), (1, 5), (63, 2), (64, 1), (65, 5), (200, 3)])
def test_scan_is_what_loops_say(tier, vectors, codebooks):
    rng = np.random.default_rng(vectors)
    codes = rng.integers(0, 16, (vectors, codebooks), np.uint8)
    tables = rng.integers(0, 4, (3, codebooks, 16), np.uint8)  # few values: many ties
    packed = scan.pack(jnp.asarray(codes))
    for count, k in [(vectors, 10), (vectors // 2, 100)]:
        sums, positions = jax.jit(scan.scan, static_argnums=3)(packed, tables, count, k)
        want = by_hand(codes, tables, count, k)
        np.testing.assert_array_equal(sums, want[0])
        np.testing.assert_array_equal(positions, want[1])


@pytest.mark.parametrize(("vectors", "codebooks"), [(0, 2), (1, 5), (63, 2), (64, 1), (65, 5), (200, 3), (130, 256)])
def test_sums_are_what_loops_say(tier, vectors, codebooks):
    rng = np.random.default_rng(vectors)
    codes = rng.integers(0, 16, (vectors, codebooks), np.uint8)
    tables = rng.integers(0, 256, (5, codebooks, 16), np.uint8)  # bit 7 is noise
    packed = scan.pack(jnp.asarray(codes))
    for count in (vectors, vectors // 2):
        sums = jax.jit(scan.scan_sums)(packed, tables, count)
        want = np.full((5, packed.shape[0] * 64), -1)
        for c in range(codebooks):
            want[:, :count] += (tables & 127)[:, c, codes[:count, c]].astype(int) + (c == 0)
        np.testing.assert_array_equal(sums, want)


def test_sums_under_vmap_are_those_of_each_element(backend, problem):
    codes, tables = problem
    each = jnp.stack([scan.scan_sums(codes, t[None], 900) for t in tables])
    np.testing.assert_array_equal(jax.vmap(lambda t: scan.scan_sums(codes, t[None], 900))(tables), each)
    counts = jnp.array([0, 5, 900, 960])
    both = jax.vmap(lambda t, count: scan.scan_sums(codes, t[None], count))(tables, counts)
    for t, count, sums in zip(tables, counts, both, strict=True):
        np.testing.assert_array_equal(sums, scan.scan_sums(codes, t[None], count))


def test_unpack_undoes_pack():
    codes = np.random.default_rng(0).integers(0, 16, (130, 7), np.uint8)
    np.testing.assert_array_equal(scan.unpack(scan.pack(jnp.asarray(codes)))[:130, :7], codes)


def test_tables_that_do_not_belong_to_the_codes_are_refused():
    packed = scan.pack(jnp.zeros((3, 4), jnp.uint8))
    with pytest.raises(ValueError, match="pack"):
        scan.scan(packed, jnp.zeros((1, 6, 16), jnp.uint8), 3, 1)
    with pytest.raises(ValueError, match="256"):
        scan.scan(scan.pack(jnp.zeros((3, 300), jnp.uint8)), jnp.zeros((1, 300, 16), jnp.uint8), 3, 1)
    with pytest.raises(ValueError, match="256"):
        scan.scan_sums(scan.pack(jnp.zeros((3, 0), jnp.uint8)), jnp.zeros((1, 0, 16), jnp.uint8), 3)
    with pytest.raises(ValueError, match="`k` is -1"):
        scan.scan(packed, jnp.zeros((1, 4, 16), jnp.uint8), 3, -1)


@pytest.fixture
def problem(rng):
    """15 blocks of random codes in 5 codebooks, tables of 4 queries with noise in bit 7."""
    return jnp.asarray(rng.integers(0, 256, (15, 3, 64), np.uint8)), jnp.asarray(rng.integers(0, 256, (4, 5, 16), "u1"))


def expected(codes, tables, count, k):
    """The definition in NumPy, whose stable sort puts the first of equal sums first."""
    both, tables = np.moveaxis(np.asarray(codes), 1, -1).reshape(-1, codes.shape[1]), np.asarray(tables) & 127
    chosen = [both[:, c // 2] >> c % 2 * 4 & 15 for c in range(tables.shape[1])]
    sums = np.zeros((len(tables), len(both)), np.int32)
    for c, code in enumerate(chosen):
        sums += tables[:, c, code]
    sums = np.pad(sums[:, : max(count, 0)], ((0, 0), (0, k)), constant_values=-1)
    positions = np.argsort(-sums, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(sums, positions, 1)
    return best, np.where(best < 0, -1, positions)


def assert_same(actual, desired):
    for a, d in zip(actual, desired, strict=True):
        assert a.dtype == jnp.int32
        np.testing.assert_array_equal(a, d)


def test_count_is_clipped(tier, problem):
    for count in (-(2**31), 0, 959, 2**31 - 1):
        assert_same(scan.scan(*problem, count, 5), expected(*problem, count, 5))


def test_large_sums_and_many_vectors(tier, rng):
    codes, tables = rng.integers(0, 256, (300, 128, 64), np.uint8), np.full((1, 256, 16), 127, np.uint8)
    tables[:, 1:3] = rng.integers(0, 128, (1, 2, 16))
    assert_same(scan.scan(codes, tables, 19_190, 300), expected(codes, tables, 19_190, 300))


@needs_kernels
def test_no_queries_and_no_blocks(tier):
    assert scan.scan(jnp.zeros((2, 1, 64), jnp.uint8), jnp.zeros((0, 1, 16), jnp.uint8), 2, 3)[0].shape == (0, 3)
    sums, positions = scan.scan(jnp.zeros((0, 1, 64), jnp.uint8), jnp.zeros((2, 2, 16), jnp.uint8), 2, 3)
    assert np.all(sums == -1) and np.all(positions == -1)  # noqa: PT018 -- one fact


def test_vmap(backend, problem):
    codes, tables = problem

    def best(codes, tables, count):
        return scan.scan(codes, tables, count, 7)

    folded = jax.jit(jax.vmap(best, (None, 0, None)))(codes, tables.reshape(2, 2, 5, 16), 900)
    assert_same([a.reshape(4, 7) for a in folded], expected(codes, tables, 900, 7))
    shards, counts = codes.reshape(3, 5, 3, 64), jnp.array([320, 100, 0])
    wanted = [expected(s, tables, c, 7) for s, c in zip(shards, counts, strict=True)]
    assert_same(jax.vmap(best, (0, None, 0))(shards, tables, counts), map(np.stack, zip(*wanted, strict=True)))
    each = jax.vmap(jax.vmap(best, (None, 0, None)), (0, None, 0))(shards, tables[:, None], counts)
    assert_same([a[:, :, 0] for a in each], map(np.stack, zip(*wanted, strict=True)))


@needs_kernels
def test_a_batch_of_tables_is_one_call(problem):
    codes, tables = problem
    text = jax.jit(jax.vmap(lambda t: scan.scan(codes, t, 900, 7))).lower(tables[:, None]).as_text()
    assert testing.custom_calls(text) == ["jax_maddness_scan"]
    assert "stablehlo.while" not in text


@pytest.mark.parametrize("check_vma", [True, False])
def test_every_shard_scans_its_own(backend, rng, problem, check_vma):
    codes, tables = jnp.asarray(rng.integers(0, 256, (16, 3, 64), np.uint8)), problem[1]
    counts = jnp.array([256, 0, 17, 256], jnp.int32)
    mesh = jax.make_mesh((4,), ("v",), axis_types=(jax.sharding.AxisType.Auto,))

    def best(codes, tables, counts):
        return jax.tree.map(lambda a: a[None], scan.scan(codes, tables, counts[0], 20))

    sharded = jax.shard_map(
        best, mesh=mesh, in_specs=(P("v"), P(), P("v")), out_specs=(P("v"), P("v")), check_vma=check_vma
    )
    wanted = [expected(codes[4 * i : 4 * i + 4], tables, c, 20) for i, c in enumerate(counts)]
    assert_same(jax.jit(sharded)(codes, tables, counts), map(np.stack, zip(*wanted, strict=True)))


def test_donation_constants_and_loops(backend, problem):
    codes, tables = problem
    wanted = expected(codes, tables, 900, 7)
    assert_same(jax.jit(lambda n: scan.scan(codes, tables, n, 7))(900), wanted)
    once_more = jax.jit(lambda c, t: scan.scan(c, t, 900, 7), donate_argnums=1)
    assert_same(once_more(codes, jnp.copy(tables)), wanted)
    assert_same([a[:, 0] for a in jax.lax.map(lambda t: scan.scan(codes, t[None], 900, 7), tables)], wanted)


def test_the_same_from_any_number_of_threads(tier, rng):
    """Large enough for several threads, with ties across their ranges, for one query and for many."""
    codes = rng.integers(0, 256, (1000, 4, 64), np.uint8)
    for queries in (20, 70):
        tables = rng.integers(0, 3, (queries, 8, 16), np.uint8)
        assert_same(scan.scan(codes, tables, 63_999, 100), expected(codes, tables, 63_999, 100))


@needs_kernels
def test_portable_and_exported(problem):
    def best(codes, tables, count):
        return scan.scan(codes, tables, count, 7)

    testing.assert_portable(best, *problem, jnp.int32(900), platforms=("tpu", "cuda"))
    check = export.DisabledSafetyCheck.custom_call("jax_maddness_scan")
    exported = export.export(jax.jit(best), platforms=["cpu"], disabled_checks=[check])(*problem, jnp.int32(900))
    assert_same(jax.jit(exported.call)(*problem, jnp.int32(900)), expected(*problem, 900, 7))


SHAPES = {
    "codes": ((2, 3, 64), jnp.uint8),
    "tables": ((4, 5, 16), jnp.uint8),
    "count": ((), jnp.int32),
    "sums": ((4, 7), jnp.int32),
    "positions": ((4, 7), jnp.int32),
}


def call(**changes):
    codes, tables, count, *results = (SHAPES | changes).values()
    args = [jnp.zeros(*a) for a in (codes, tables, count)]
    return ffi.call("jax_maddness_scan", tuple(jax.ShapeDtypeStruct(*r) for r in results), *args)


@needs_kernels
@pytest.mark.parametrize(
    "changes",
    [
        {"codes": ((2, 2, 64), jnp.uint8)},
        {"codes": ((2, 3, 63), jnp.uint8)},
        {"codes": ((2, 192), jnp.uint8)},
        {"codes": ((2, 3, 64), jnp.int8)},
        {"tables": ((4, 4, 16), jnp.uint8)},
        {"tables": ((4, 0, 16), jnp.uint8), "codes": ((2, 0, 64), jnp.uint8)},
        {"tables": ((4, 257, 16), jnp.uint8), "codes": ((2, 129, 64), jnp.uint8)},
        {"tables": ((4, 5, 15), jnp.uint8)},
        {"tables": ((4, 5, 16), jnp.int32)},
        {"count": ((1,), jnp.int32)},
        {"count": ((), jnp.float32)},
        {"sums": ((3, 7), jnp.int32)},
        {"sums": ((4, 7), jnp.float32)},
        {"sums": ((28,), jnp.int32)},
        {"positions": ((4, 8), jnp.int32)},
        {"positions": ((4, 7), jnp.uint32)},
        {"positions": ((4, 7, 1), jnp.int32)},
    ],
)
def test_the_handler_checks_every_size_itself(changes):
    assert np.all(call()[0] == -1)  # count is 0
    with pytest.raises(Exception, match=r"(?i)invalid|wrong"):
        jax.block_until_ready(call(**changes))


@pytest.mark.parametrize("best_blocks", [slice(0, None, 16), slice(8, None, 16)])
def test_a_sample_that_misleads_costs_time_alone(tier, best_blocks):
    """Kernels start from every 16th block where there are many: here those are the best of all, or the worst."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 8, (80, 64, 6), np.uint8)
    blocks[best_blocks] += 8
    codes = blocks.reshape(-1, 6)[:-5]
    tables = np.sort(rng.integers(0, 128, (5, 6, 16), np.uint8), axis=-1)
    packed = scan.pack(jnp.asarray(codes))
    for k in (1, 60, 79):
        sums, positions = jax.jit(scan.scan, static_argnums=3)(packed, tables, len(codes), k)
        expected = scan.definition(packed, jnp.asarray(tables), jnp.int32(len(codes)), k)
        np.testing.assert_array_equal(sums, expected[0])
        np.testing.assert_array_equal(positions, expected[1])
