"""Rows in batches: the same op as from an array, without all rows in memory."""

import jax
import numpy as np
import pytest

from jax_maddness import FitConfig, fit
from jax_maddness.learn.data import rows as rows_file
from jax_maddness.learn.data.rows import Rows


@pytest.fixture
def x(rng):
    return np.round(8 * rng.standard_normal((60, 9))).astype(np.float32) / 8  # sums are exact in any order


def in_batches(x, size):
    return lambda: (x[i : i + size] for i in range(0, len(x), size))


@pytest.mark.parametrize("method", ["paper", "axis"])
@pytest.mark.parametrize("size", [1000, 60, 25])
def test_batches_give_the_same_op(rng, x, method, size):
    w = rng.standard_normal((9, 5)).astype(np.float32)
    config = FitConfig(method=method)
    op, other = (fit(rows, w, num_codebooks=3, config=config) for rows in (x, in_batches(x, size)))
    jax.tree.map(np.testing.assert_array_equal, op.trees, other.trees)
    assert np.abs(np.asarray(other.tables.values, int) - np.asarray(op.tables.values, int)).max() <= 1
    np.testing.assert_allclose(other.tables.scale, op.tables.scale, rtol=1e-5)


def test_blocks_are_all_rows_once(x):
    for size in (60, 25, 7):
        rows = Rows.of(in_batches(x, size))
        blocks = list(rows.blocks())
        assert {b.shape for b, _ in blocks} == {(64, 16)}
        np.testing.assert_array_equal(np.concatenate([b[counted][:, :9] for b, counted in blocks]), x)
        assert not any(b[~counted].any() or b[:, 9:].any() for b, counted in blocks)
        assert (rows.count, rows.num_features) == (60, 9)
        np.testing.assert_allclose(rows.mean, x.mean(0, dtype=np.float64))


def test_the_reservoir_is_a_uniform_sample(monkeypatch):
    monkeypatch.setattr(rows_file, "RESERVOIR", 100)
    x = np.arange(1000, dtype=np.float32)[:, None]
    for size in (1000, 130, 64):
        sample = Rows.of(in_batches(x, size)).sample[:, 0]
        assert len(np.unique(sample)) == 100
        # of the first half: binomial, 50 +- 5; the mean of 100 uniform numbers: 500 +- 29
        assert 30 < (sample < 500).sum() < 70
        assert 380 < sample.mean() < 620


def test_errors_say_what_to_do(x):
    w = np.ones((9, 5))
    with pytest.raises(ValueError, match=r"`x_train\(\)` yields no rows. It must return a new iterator"):
        fit(lambda: iter([]), w, num_codebooks=2)
    with pytest.raises(ValueError, match=r"yields batches of 9 and of 8 features"):
        fit(lambda: iter([x, x[:, :8]]), w, num_codebooks=2)
    with pytest.raises(ValueError, match=r"`x_train` has 540 NaN"):
        fit(lambda: iter([x * np.nan]), w, num_codebooks=2)
    used_up = iter([x])
    with pytest.raises(ValueError, match=r"yielded 60 rows first, 0 later"):
        fit(lambda: used_up, w, num_codebooks=2, config=FitConfig("paper"))
