"""Tables re-solved for other targets, and codes of positions shared among the taps of a patch."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.references import prototypes

from jax_maddness import FitConfig, amm, encode, fit
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.fit_taps import first_tap, fit_taps
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.refit import refit_tables

PAPER = FitConfig("paper")


def correlated(rng, rows, features):
    return (rng.standard_normal((rows, 3)) @ rng.standard_normal((3, features))).astype(np.float32)


def nmse(y, expected):
    return float(np.mean((np.asarray(y) - expected) ** 2) / np.var(expected))


@pytest.mark.slow
def test_refit_learns_targets_that_are_not_the_product(rng):
    x, w = correlated(rng, 2000, 8), rng.standard_normal((8, 5)).astype(np.float32)
    op = fit(x, w, num_codebooks=4, config=PAPER)
    targets = np.tanh(x @ w) * 3 + 7
    refitted = refit_tables(op, x[:1500], targets[:1500])
    before, after = (nmse(amm(x[1500:], o), targets[1500:]) for o in (op, refitted))
    assert after < 0.2 < before
    np.testing.assert_array_equal(refitted.trees.thresholds, op.trees.thresholds)


@pytest.mark.slow
def test_refit_is_ridge_regression_toward_the_op(rng):
    """Against float64: of all penalties that it may take, one gives its answer."""
    x, w = correlated(rng, 600, 8), rng.standard_normal((8, 3)).astype(np.float32)
    op = fit(x, w, num_codebooks=2, config=PAPER)
    targets = (x @ w) ** 2
    codes = np.asarray(encode(x, op.trees))
    missing = np.float64(targets) - np.asarray(amm(x, op))
    one_hot = (codes[:, :, None] == np.arange(16)).reshape(len(x), -1)
    nothing = np.zeros((2, 3), bool)
    answers = []
    for ridge in (1.0, 3.0, 10.0, 30.0, 100.0, 300.0):
        tables, intercept = prototypes(missing, codes, nothing, ridge)
        answers.append(np.asarray(amm(x, op)) + one_hot @ tables + intercept)
    refitted = refit_tables(op, x, targets)
    off = min(np.abs(np.asarray(amm(x, refitted)) - answer).max() for answer in answers)
    assert off <= 2 * 2 * np.asarray(refitted.tables.scale).max()  # two codebooks, rounded to 8 bits twice


def test_refit_changes_nothing_where_nothing_helps(rng):
    x, w = correlated(rng, 300, 8), rng.standard_normal((8, 5)).astype(np.float32)
    op = fit(x, w, num_codebooks=4, config=PAPER)
    said = np.asarray(amm(x, op))
    noise = np.where(np.arange(300)[:, None] % 2, 1.0, -1.0) * rng.standard_normal((300, 5)).astype(np.float32)
    refitted = refit_tables(op, x, said)
    assert refitted is op
    assert nmse(amm(x, refit_tables(op, x, said + noise)), said) < 0.1 * float(np.var(noise) / np.var(said)) + 0.05


@pytest.mark.parametrize(
    ("x", "targets", "why"),
    [((10, 7), (10, 5), "features"), ((10, 8), (9, 5), "rows"), ((10, 8), (10, 4), "outputs")],
)
def test_refit_says_what_does_not_match(rng, op, x, targets, why):
    with pytest.raises(ValueError, match=why):
        refit_tables(op, np.zeros(x), np.zeros(targets))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["paper", "oblique"])
def test_codes_of_positions_serve_patches(rng, method):
    taps, features = 3, 4
    signal = correlated(rng, 1502, features)
    patches = np.concatenate([signal[t : t + 1500] for t in range(taps)], 1)
    w = rng.standard_normal((taps * features, 5)).astype(np.float32)
    bias = np.arange(5, dtype=np.float32)
    with Progress(False) as bar:
        op = fit_taps(patches, w, bias, taps, 2, FitConfig(method, steps=50), bar)
    assert op.num_codebooks == taps * 2
    assert nmse(amm(patches, op), patches @ w + bias) < 0.15
    by_position = first_tap(op, taps)
    codes = np.asarray(encode(jnp.asarray(signal), by_position.trees))
    expected = np.concatenate([codes[t : t + 1500] for t in range(taps)], 1)
    np.testing.assert_array_equal(encode(patches, op.trees), expected)
    again = by_position.trees.repeated(taps)
    np.testing.assert_array_equal(encode(patches, again), expected)
    assert Rows.of(patches).num_features == op.num_features
