"""Few rows, heavy tails and weights that cancel: held-out rows choose how far tables are trusted, and `fit` warns."""

import itertools
import warnings

import numpy as np
import pytest
from helpers import references

from jax_maddness import FitConfig, amm, encode, evaluate, fit, fit_budget
from jax_maddness.learn.data import rows as rows_file
from jax_maddness.learn.data import tails
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.tables import shrink
from jax_maddness.learn.tables.verdict import Comparison, verdict

FEATURES, OUTPUTS = 16, 8
PAPER, PAPERS_PENALTY = FitConfig("paper"), FitConfig("paper", ridge=1.0)


def noise(rng, rows):
    return rng.standard_normal((rows, FEATURES))


def correlated(rng, rows):
    """Rows of a few directions and noise."""
    return rng.standard_normal((rows, 4)) @ np.random.default_rng(1).standard_normal((4, FEATURES)) + noise(rng, rows)


def cauchy(rng, rows):
    return rng.standard_cauchy((rows, FEATURES))


def cancelled(rng, rows):
    """Rows with a large common part, which the weights of `problem` cancel."""
    return noise(rng, rows) + 10 * rng.standard_normal((rows, 1))


def problem(kind, rows, seed=0):
    """Training rows, 2,000 other rows of the same kind, and weights whose columns sum to 0."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((FEATURES, OUTPUTS))
    return *(np.float32(kind(rng, n)) for n in (rows, 2000)), np.float32(w - w.mean(0))


def learned(x, w, codebooks, config=PAPER):
    """An op, and whether `fit` warned about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        op = fit(x, w, num_codebooks=codebooks, config=config)
    return op, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("rows", [100, 600])
@pytest.mark.parametrize("kind", [noise, correlated, cauchy, cancelled])
def test_no_op_is_worse_than_the_mean_without_a_warning(kind, rows):
    for codebooks in (2, 4, 8):
        x, others, w = problem(kind, rows)
        op, said = learned(x, w, codebooks)
        nmse = evaluate(op, others, w).nmse
        assert nmse < 1.02 or said, (codebooks, nmse)
        assert not (nmse < 0.7 and said), (codebooks, nmse, said)


@pytest.mark.parametrize("kind", [noise, correlated, cancelled])
def test_more_codebooks_are_not_worse(kind):
    x, others, w = problem(kind, 100)
    errors = [evaluate(learned(x, w, codebooks)[0], others, w).nmse for codebooks in (2, 4, 8, 16)]
    for fewer, more in itertools.pairwise(errors):
        assert more < 1.03 * fewer, errors


def test_with_few_rows_per_code_held_out_rows_choose_the_penalty():
    x, others, w = problem(correlated, 100)
    chosen, papers = (evaluate(learned(x, w, 8, config)[0], others, w).nmse for config in (PAPER, PAPERS_PENALTY))
    assert chosen < 0.9 * papers


def test_with_many_rows_per_code_the_papers_penalty_stays():
    x, _, w = problem(correlated, 600)
    op, other = (learned(x, w, 4, config)[0] for config in (PAPER, PAPERS_PENALTY))
    np.testing.assert_array_equal(op.tables.values, other.tables.values)
    np.testing.assert_array_equal(op.tables.offset, other.tables.offset)


def test_rows_may_come_in_batches_of_which_a_sample_is_held_out(monkeypatch):
    x, others, w = problem(correlated, 600)
    monkeypatch.setattr(rows_file, "RESERVOIR", 300)
    op = fit(lambda: iter(np.array_split(x, 3)), w, num_codebooks=8, config=PAPER)
    assert evaluate(op, others, w).nmse < 1.1 * evaluate(learned(x, w, 8)[0], others, w).nmse


def test_a_handful_of_rows_judges_nothing():
    x, _, w = problem(noise, 20)
    (op, said), (other, _) = (learned(x, w, 4, config) for config in (PAPER, PAPERS_PENALTY))
    np.testing.assert_array_equal(op.tables.values, other.tables.values)
    assert not said


def test_warnings_say_what_to_do():
    x, _, w = problem(cauchy, 100)
    (said,) = learned(x, w, 2)[1]
    assert "The look-ups of 2 codebooks are hardly better than the mean of the outputs: NMSE" in said
    assert "One row has" in said
    assert "clip such rows" in said
    assert "the factors alone" in learned(x, w, 2, FitConfig("paper", outliers=1))[1][0]
    x, _, w = problem(cancelled, 100)
    assert "after their tables were multiplied by 0." in learned(x, w, 2)[1][0]
    with pytest.warns(UserWarning, match="hardly better than the mean"):
        fit_budget(x, w, num_bytes=500, products=["codes"])


@pytest.mark.parametrize("method", ["paper", "axis", "oblique"])
def test_heavy_tails_are_warned_of_even_where_held_out_rows_see_none(method):
    x, _, w = problem(noise, 600)
    config = FitConfig(method, steps=50)
    x[7] *= 100  # one row decides; few random choices of held-out rows have it
    assert any("heavy tails: one has" in text or "One row has" in text for text in learned(x, w, 4, config)[1])
    assert any("heavy tails" in text for text in learned(x, w, 0, FitConfig(rank=2))[1])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_largest_share_of_a_row_is_that_of_its_outputs(scale):
    x, _, w = problem(noise, 600)
    x[7] *= 10
    rows = Rows.of(np.float32(x * scale))
    energy = ((x - x.mean(0, dtype=np.float64)) ** 2) @ (w**2).sum(1)
    for weights in (w, np.float32(w * 1e30), np.float32(w * 1e-30)):
        assert tails.largest_share(rows, weights) == pytest.approx(energy.max() / energy.sum(), rel=1e-4)
    assert tails.largest_share(rows, 0 * w) == 0
    assert not tails.warning(0.09, 10_000)
    assert not tails.warning(0.2, 100)


def test_constant_rows_are_no_reason_for_a_warning():
    assert not learned(np.ones((600, FEATURES)), np.ones((FEATURES, OUTPUTS)), 2)[1]


def test_a_fold_is_judged_as_if_its_rows_had_never_been_summed(rng):
    x, _, w = problem(correlated, 300)
    x, part = 100 * x + 500, rng.permutation(300)[:60]
    op = learned(x, w, 4)[0]
    own = np.kron(np.eye(4, dtype=bool), np.ones((1, FEATURES // 4), bool))
    rows = Rows.of(x)
    with modes():
        statistics = rows.statistics(op.trees, lambda: None)
        fold = shrink.Fold.of(x[part], rows, op.trees, statistics, w)
        found = fold.judge(statistics, own, w, 300, 3.0)
    others, codes = np.delete(x, part, axis=0), np.asarray(encode(x, op.trees))
    prototypes, intercept = references.prototypes(others, np.delete(codes, part, axis=0), own, 3.0)
    one_hot = (codes[part][:, :, None] == np.arange(16)).reshape(60, -1)
    expected = (((one_hot @ prototypes + intercept - x[part]) @ w) ** 2).sum(1)
    np.testing.assert_allclose(found.errors() / rows.factor**2, expected, rtol=1e-3, atol=1e-4 * expected.max())
    energy = (((x[part] - others.mean(0)) @ w) ** 2).sum(1)
    np.testing.assert_allclose(found.energy / rows.factor**2, energy, rtol=1e-3, atol=1e-4 * energy.max())


def test_a_factor_is_taken_only_where_it_is_surely_better(rng):
    exact = rng.standard_normal((400, 5))
    noisy = Comparison.of(exact + 2 * rng.standard_normal((400, 5)), exact)
    assert 0.1 < verdict(noisy, 1.0, few=False).factor < 0.3  # of no use without it
    good = Comparison.of(1.2 * exact + 0.1 * rng.standard_normal((400, 5)), exact)
    assert verdict(good, 1.0, few=False).factor == 1
    assert 0.8 < verdict(good, 1.0, few=True).factor < 0.87
    unbiased = Comparison.of(exact, exact + 0.1 * rng.standard_normal((400, 5)))
    assert verdict(unbiased, 1.0, few=True).factor == 1


def test_the_mean_output_survives_rounding(rng):
    """With outlier rows, the steps of 8 bits are coarse, and most rows have the same rounding errors."""
    x, _, w = problem(correlated, 600)
    x[:3] *= 1000
    op = learned(x, w, 8)[0]
    missed = np.asarray(amm(x, op), np.float64).mean(0) - (np.float64(x) @ w).mean(0)
    assert np.abs(missed / np.asarray(op.tables.scale)).max() < 0.01
