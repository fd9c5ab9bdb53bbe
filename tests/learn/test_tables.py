"""Prototypes by ridge regression, and their rounding to 8 bits, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import references

from jax_maddness.learn.tables import shrink, solve
from jax_maddness.learn.tables.quantize import quantize_tables
from jax_maddness.learn.tables.ridge import Statistics, fit_prototypes, ridge_regression


def learn(x, codes, own, w, ridge):
    """Float tables [16 C, M] and the offset [M] that goes with them."""
    mean = x.mean(0)
    statistics = Statistics.zeros(codes.shape[1], x.shape[1]).add(x - mean, codes, np.ones(len(x), bool))
    found = fit_prototypes(statistics, own, w, len(x), ridge)
    return np.asarray(found.weights), np.asarray(found.intercept) + mean @ w


@pytest.mark.parametrize("outputs", [3, 12])  # fewer and more than features: two orders of the same products
@pytest.mark.parametrize("kind", ["independent", "empty codes", "duplicated codebooks"])
def test_prototypes_match_float64(rng, outputs, kind):
    rows, features, codebooks, ridge = 500, 8, 4, 1.0
    x = rng.standard_normal((rows, features)).astype(np.float32) + 10
    codes = rng.integers(0, 16, (rows, codebooks), np.uint8)
    if kind == "empty codes":
        codes = codes & 0b1010
    elif kind == "duplicated codebooks":
        codes[:, 2:] = codes[:, :2]
    own = np.repeat(np.eye(codebooks, dtype=bool), features // codebooks, axis=1)
    w = rng.standard_normal((features, outputs)).astype(np.float32)
    tables, offset = learn(x, codes, own, w, ridge)
    prototypes, intercept = references.prototypes(x, codes, own, ridge)

    # A solve in f32 is off by the condition number, at most rows / ridge after centring, times its rounding.
    tolerance = 4 * rows / ridge * 2**-24 * np.abs(prototypes @ w).max()
    np.testing.assert_allclose(tables, prototypes @ w, rtol=0, atol=tolerance)
    np.testing.assert_allclose(offset, intercept @ w, rtol=1e-6, atol=tolerance)


def test_statistics_of_blocks_add_up(rng):
    x = rng.integers(-9, 9, (50, 4)).astype(np.float32)  # integers: sums are exact in any order
    codes = rng.integers(0, 16, (50, 2), np.uint8)
    whole = Statistics.zeros(2, 4).add(x, codes, np.ones(50, bool))
    halves = Statistics.zeros(2, 4).add(x, codes, np.arange(50) < 20).add(x, codes, np.arange(50) >= 20)
    one_hot = (codes[:, :, None] == np.arange(16)).reshape(50, -1).astype(int)
    for statistics in (whole, halves):
        np.testing.assert_array_equal(statistics.gram, one_hot.T @ one_hot)
        np.testing.assert_array_equal(statistics.sums, one_hot.T @ x)
        np.testing.assert_array_equal(statistics.counts, one_hot.sum(0))


def test_each_used_entry_is_rounded_to_the_nearest_step(rng):
    tables = (rng.standard_normal((5, 16, 7)) * 10.0 ** rng.integers(-9, 9, 7)).astype(np.float32)
    tables[:, :, 3] = 2.5
    used = rng.random((5, 16)) < 0.7
    values, scale, offset = quantize_tables(jnp.asarray(tables), used)
    minima = np.where(used[:, :, None], tables, np.inf).min(1)
    np.testing.assert_allclose(offset, minima.sum(0), rtol=0, atol=5 * 2**-24 * np.abs(minima).sum(0).max())
    restored = np.asarray(values, np.float64).transpose(1, 2, 0) * np.asarray(scale) + minima[:, None]
    error = np.abs(restored - tables)[used]
    assert (error <= np.asarray(scale) * (0.5 + 1e-4) + 2**-22 * np.abs(tables).max((0, 1))).all()
    assert scale[3] == 0
    assert not np.asarray(values)[3].any()
    ranges = np.where(used[:, :, None], tables, -np.inf).max(1) - minima
    np.testing.assert_allclose(scale, ranges.max(0) / 255, rtol=1e-6)


def test_the_penalty_is_the_best_on_rows_set_aside(rng):
    """Against every penalty tried in float64; codes that say little of x, so that penalties matter."""
    train_rows = 8 * 64  # eight rows per code: not few
    codes = rng.integers(0, 16, (train_rows + 60, 4), np.uint8)
    x = (rng.standard_normal((len(codes), 8)) + 0.2 * codes[:, :1]).astype(np.float32)
    own = np.repeat(np.eye(4, dtype=bool), 2, axis=1)
    w = rng.standard_normal((8, 3)).astype(np.float32)
    (train, held_out), (codes_train, codes_held_out) = np.split(x, [train_rows]), np.split(codes, [train_rows])
    mean = train.mean(0)
    statistics = Statistics.zeros(4, 8).add(train - mean, codes_train, np.ones(train_rows, bool))
    verdict = shrink.best_penalty(statistics, own, w, train_rows, codes_held_out, (held_out - mean) @ w)

    one_hot = (codes_held_out[:, :, None] == np.arange(16)).reshape(60, -1)
    expected = {}
    for tried in solve.RIDGES:
        prototypes, intercept = references.prototypes(train, codes_train, own, tried)
        expected[tried] = (((one_hot @ prototypes + intercept - held_out) @ w) ** 2).sum()
    assert verdict.ridge == min(expected, key=expected.get)
    np.testing.assert_allclose(verdict.error, expected[verdict.ridge], rtol=1e-4)


def test_the_condition_is_that_of_the_scaled_system(rng):
    codes = rng.integers(0, 16, (300, 3), np.uint8)
    codes[:, 2] = codes[:, 1]
    statistics = Statistics.zeros(3, 1).add(np.zeros((300, 1)), codes, np.ones(300, bool))
    counts = np.asarray(statistics.counts, np.float64)
    system = np.asarray(statistics.gram) - np.outer(counts, counts) / 300 + np.eye(48)
    system += np.kron(np.eye(3), np.ones((16, 16))) * 300 / 256
    scale = 1 / np.sqrt(np.diag(system))
    found = jax.jit(ridge_regression)(statistics.gram, statistics.sums, 300, 1.0)
    np.testing.assert_allclose(found.condition, np.linalg.cond(system * scale[:, None] * scale), rtol=0.3)


def test_padded_codebooks_and_outputs_count_for_nothing(rng):
    tables = np.zeros((4, 16, 8), np.float32)
    tables[:3, :, :5] = rng.standard_normal((3, 16, 5))
    used = np.zeros((4, 16), bool)
    used[:3] = True
    for whole, part in zip(quantize_tables(tables, used), quantize_tables(tables[:3, :, :5], used[:3]), strict=True):
        np.testing.assert_array_equal(whole[:5, :3] if whole.ndim == 3 else whole[:5], part)
    values, scale, offset = quantize_tables(tables, used)
    assert not np.asarray(scale)[5:].any()
    assert not np.asarray(offset)[5:].any()
    assert not np.asarray(values)[5:].any()
