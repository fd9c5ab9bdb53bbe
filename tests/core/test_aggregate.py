"""aggregate: every backend and tier gives the exact integer sums."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import references
from helpers.ops import put, random_tables

from jax_maddness import LookupTables, aggregate


def fast_reference(codes, values):
    """`references.aggregate` by NumPy indexing, for sizes where loops take too long."""
    return values[:, np.arange(codes.shape[1]), codes].sum(-1, dtype=np.int64).T.astype(np.int32)


def test_the_fast_reference_is_the_reference(rng):
    codes, tables = rng.integers(0, 16, (7, 5), np.uint8), random_tables(rng, 5, 3)
    values = np.asarray(tables.values)
    np.testing.assert_array_equal(fast_reference(codes, values), references.aggregate(codes, values))


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130])
@pytest.mark.parametrize(("codebooks", "outputs"), [(1, 1), (2, 17), (5, 8), (16, 31), (33, 3)])
def test_sums_equal_the_definition(tier, rng, rows, codebooks, outputs):
    codes, tables = rng.integers(0, 16, (rows, codebooks), np.uint8), random_tables(rng, codebooks, outputs)
    np.testing.assert_array_equal(aggregate(put(codes), tables), fast_reference(codes, np.asarray(tables.values)))


@pytest.mark.parametrize("codebooks", [255, 256, 257, 258, 514, 1031])
def test_sums_beyond_16_bits_are_exact(tier, codebooks):
    codes = np.full((35, codebooks), 15, np.uint8)
    tables = LookupTables(jnp.full((3, codebooks, 16), 255, jnp.uint8), jnp.ones(3), jnp.zeros(3))
    np.testing.assert_array_equal(aggregate(codes, tables), np.full((35, 3), 255 * codebooks))


@pytest.mark.parametrize("outputs", [0, 1, 7, 8, 9, 15, 16, 17, 64, 100])
def test_outputs_on_block_edges(tier, rng, outputs):
    codes, tables = rng.integers(0, 16, (21, 6), np.uint8), random_tables(rng, 6, outputs)
    np.testing.assert_array_equal(aggregate(codes, tables), fast_reference(codes, np.asarray(tables.values)))


def test_only_the_low_four_bits_of_a_code_count(tier, rng):
    codes, tables = rng.integers(0, 256, (40, 6), np.uint8), random_tables(rng, 6, 9)
    np.testing.assert_array_equal(aggregate(codes, tables), fast_reference(codes & 15, np.asarray(tables.values)))


@pytest.mark.parametrize("lead", [(), (2, 3), (2, 0)])
def test_any_leading_dimensions(tier, rng, lead):
    codes, tables = rng.integers(0, 16, (*lead, 4), np.uint8), random_tables(rng, 4, 5)
    sums = fast_reference(codes.reshape(-1, 4), np.asarray(tables.values))
    np.testing.assert_array_equal(aggregate(codes, tables), sums.reshape(*lead, 5))


def test_wrong_codes_say_what_to_do(rng):
    with pytest.raises(TypeError, match="`codes` is int32; expected uint8"):
        aggregate(np.zeros((2, 4), np.int32), random_tables(rng, 4, 5))
    with pytest.raises(ValueError, match=r"`codes` has shape \(2, 3\); expected \[..., 4\]"):
        aggregate(np.zeros((2, 3), np.uint8), random_tables(rng, 4, 5))
