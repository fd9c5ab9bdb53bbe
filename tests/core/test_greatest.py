"""The greatest sums over rows: every tier against the definition; what the handler checks itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import needs_kernels

from jax_maddness import testing
from jax_maddness.core import ffi
from jax_maddness.core.greatest import MOST, definition, greatest


def problem(rng, examples=2, rows=150, codebooks=5, outputs=21, entries=256):
    codes = rng.integers(0, 16, (examples, rows, codebooks), np.uint8)
    values = rng.integers(0, entries, (outputs, codebooks, 16), np.uint8)
    return jax.device_put((codes, values, rng.random((examples, rows)) < 0.1))


jitted = jax.jit(greatest, static_argnums=3)  # step by step it is as many programs, for each size


def expected(codes, values, skipped, k):
    c = np.arange(codes.shape[-1])
    sums = np.int32(values)[:, c, np.asarray(codes)].sum(-1).transpose(1, 2, 0)  # [examples, rows, outputs]
    lowest, rows = np.iinfo(np.int32).min, sums.shape[1]
    sums = np.where(np.asarray(skipped)[..., None], lowest, sums)
    order = np.argsort(-np.int64(sums), 1, kind="stable")[:, :k]
    best = np.take_along_axis(sums, order, 1)
    order = np.where(best == lowest, -1, order)
    missing = ((0, 0), (0, max(k - rows, 0)), (0, 0))
    return np.pad(best, missing, constant_values=lowest), np.pad(order, missing, constant_values=-1)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, MOST, MOST + 1])
def test_greatest_is_a_stable_sort(tier, rng, k):
    for entries in (256, 2):  # few: many sums are equal
        args = problem(rng, entries=entries)
        for found, wanted in zip(greatest(*args, k), expected(*args, k), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("sizes", [(0, 3, 2, 4), (2, 0, 2, 4), (1, 3, 1, 0), (3, 63, 2, 1), (2, 65, 33, 600)])
def test_sizes(tier, rng, sizes):
    args = problem(rng, *sizes)
    for found, wanted in zip(jitted(*args, 4), expected(*args, 4), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.large  # the definition's one-hot codes
@pytest.mark.parametrize("rows", [2**15, 2**15 + 1])
def test_greatest_sums_beside_greatest_row_numbers(tier, rows):
    """256 codebooks: with one row more, a sum and the number of its row do not fit into 31 bits."""
    codes = np.zeros((1, rows, 256), np.uint8)
    codes[0, [5, rows - 1]] = 15
    values = np.full((2, 256, 16), 254, np.uint8)
    values[..., 15] = [[255], [0]]
    best, at = greatest(codes, values, np.zeros((1, rows), bool), 3)  # jitted, it would take 900 MB
    np.testing.assert_array_equal(best[0], [[255 * 256, 254 * 256], [255 * 256, 254 * 256], [254 * 256, 254 * 256]])
    np.testing.assert_array_equal(at[0], [[5, 0], [rows - 1, 1], [0, 2]])


def test_where_no_row_counts_there_is_none(tier, rng):
    codes, values, _ = problem(rng)
    best, at = greatest(codes, values, jnp.ones(codes.shape[:2], bool), 2)
    assert np.all(best == np.iinfo(np.int32).min)
    assert np.all(at == -1)


def test_vmap(backend, rng):
    codes, values, skipped = problem(rng, 6)
    wanted = expected(codes, values, skipped, 2)
    folded = jax.jit(jax.vmap(lambda c, s: greatest(c, values, s, 2)))(
        codes.reshape(2, 3, *codes.shape[1:]), skipped.reshape(2, 3, -1)
    )
    for found, one in zip(folded, wanted, strict=True):
        np.testing.assert_array_equal(found.reshape(one.shape), one)
    halves = jax.jit(jax.vmap(lambda v: greatest(codes, v, skipped, 2)))(jnp.stack([values, 255 - values]))
    np.testing.assert_array_equal(halves[0][0], wanted[0])
    np.testing.assert_array_equal(halves[0][1], expected(codes, 255 - values, skipped, 2)[0])


@needs_kernels
def test_portable(rng):
    codes, values, skipped = problem(rng)
    testing.assert_portable(lambda *args: greatest(*args, 2), codes, values, skipped, platforms=("tpu", "cuda"))
    defined = jax.jit(lambda *args: definition(*args, 2))
    np.testing.assert_array_equal(defined(codes, values, skipped)[1], greatest(codes, values, skipped, 2)[1])


SHAPES = {
    "codes": ((2, 7, 3), jnp.uint8),
    "values": ((5, 3, 16), jnp.uint8),
    "skipped": ((2, 7), jnp.uint8),
    "sums": ((2, 4, 5), jnp.int32),
    "positions": ((2, 4, 5), jnp.int32),
}


def call(**changes):
    *args, sums, positions = (SHAPES | changes).values()
    results = tuple(jax.ShapeDtypeStruct(*one) for one in (sums, positions))
    return ffi.call("jax_maddness_greatest", results, *(jnp.zeros(*a) for a in args))


@needs_kernels
@pytest.mark.parametrize(
    "changes",
    [
        {"codes": ((2, 7, 4), jnp.uint8)},
        {"codes": ((2, 7, 3), jnp.int8)},
        {"codes": ((14, 3), jnp.uint8)},
        {"codes": ((2, 7, 0), jnp.uint8), "values": ((5, 0, 16), jnp.uint8)},
        {"values": ((5, 3, 15), jnp.uint8)},
        {"skipped": ((2, 6), jnp.uint8)},
        {"skipped": ((2, 7), jnp.int32)},
        {"sums": ((2, 4, 6), jnp.int32)},
        {"sums": ((2, 3, 5), jnp.int32)},
        {"sums": ((2, 17, 5), jnp.int32), "positions": ((2, 17, 5), jnp.int32)},
        {"positions": ((2, 4, 5), jnp.float32)},
    ],
)
def test_the_handler_checks_every_size_itself(changes):
    jax.block_until_ready(call())
    with pytest.raises(Exception, match=r"(?i)invalid|wrong"):
        jax.block_until_ready(call(**changes))
