"""Prototypes by ridge regression, and their rounding to 8 bits, against float64."""

import jax.numpy as jnp
import numpy as np
import pytest
import references

from jax_maddness.learn.prototypes import Statistics, fit_prototypes
from jax_maddness.learn.tables import quantize_tables


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
