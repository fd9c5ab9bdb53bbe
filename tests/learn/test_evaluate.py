"""`evaluate`: its figures against their definitions, and what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jax_maddness import FitConfig, amm, encode, evaluate, fit
from jax_maddness.learn import advice
from jax_maddness.learn import evaluate as evaluate_file

ROWS, FEATURES, OUTPUTS = 120, 9, 5
PAPER = FitConfig("paper")


@pytest.fixture
def problem(rng):
    """op, x, w, bias, x_train."""
    x_train, x = (rng.standard_normal((n, FEATURES)).astype(np.float32) for n in (ROWS, 50))
    w = rng.standard_normal((FEATURES, OUTPUTS)).astype(np.float32)
    bias = rng.standard_normal(OUTPUTS).astype(np.float32)
    return fit(x_train, w, bias, num_codebooks=4, config=PAPER), x, w, bias, x_train


def test_figures_match_their_definitions(problem):
    op, x, w, bias, _ = problem
    report = evaluate(op, x, w, bias)
    exact = x @ w + bias
    error, spread = (np.asarray(amm(x, op)) - exact) ** 2, (exact - exact.mean(0)) ** 2
    np.testing.assert_allclose(report.nmse, error.sum() / spread.sum(), rtol=1e-5)
    np.testing.assert_allclose(report.nmse_per_output, error.sum(0) / spread.sum(0), rtol=1e-5)
    np.testing.assert_allclose(report.r2, 1 - report.nmse)
    counts = (np.asarray(encode(x, op.trees))[:, :, None] == np.arange(16)).sum(0)
    np.testing.assert_allclose(report.occupancy, counts / len(x))
    assert report.unused_leaves == (counts == 0).sum()
    assert 0 < report.bits < 4


@pytest.mark.parametrize("with_train", [False, True])
def test_attribution_adds_up(problem, with_train):
    op, x, w, bias, x_train = problem
    report = evaluate(op, x, w, bias, x_train if with_train else None)
    np.testing.assert_allclose(report.encoder + report.quantization + report.shift, report.nmse, rtol=1e-12)
    assert report.encoder >= 0
    assert report.quantization > 0
    if with_train:
        np.testing.assert_allclose(report.train_nmse, evaluate(op, x_train, w, bias).nmse)
        np.testing.assert_allclose(report.shift, report.nmse - report.train_nmse)
    else:
        assert report.train_nmse is None
        assert report.shift == 0


def test_quantization_is_about_what_float_tables_save(rng):
    x = rng.standard_normal((300, 4)).astype(np.float32)
    w = rng.standard_normal((4, 40)).astype(np.float32)
    op = fit(x, w, num_codebooks=4, config=PAPER)
    coarse = np.asarray(op.tables.values) // 16 * 16  # as if 4 bits were all there is
    tables = dataclasses.replace(
        op.tables, values=jnp.asarray(coarse), offset=op.tables.offset + 4 * 7.5 * op.tables.scale
    )
    rounded = dataclasses.replace(op, tables=tables)
    added = evaluate(rounded, x, w).nmse - evaluate(op, x, w).nmse
    spread = ((x @ w - (x @ w).mean(0)) ** 2).sum()
    expected = 4 * len(x) * float(((16 * np.asarray(op.tables.scale)) ** 2).sum()) / 12 / spread
    np.testing.assert_allclose(added, expected, rtol=0.3)


def test_blocks_change_nothing(problem, monkeypatch):
    op, x, w, bias, _ = problem
    whole = evaluate(op, x, w, bias)
    monkeypatch.setattr(evaluate_file, "_BLOCK", 16)
    np.testing.assert_allclose(evaluate(op, x, w, bias).nmse_per_output, whole.nmse_per_output, rtol=1e-6)


@pytest.mark.slow
def test_few_rows_are_noticed(rng):
    x = rng.standard_normal((3000, 32)).astype(np.float32)
    w = rng.standard_normal((32, 8)).astype(np.float32)
    op = fit(x[:60], w, num_codebooks=16, config=PAPER)
    report = evaluate(op, x[60:], w, x_train=x[:60])
    assert report.suggestion.startswith("Rows too few for C = 16: NMSE on training rows 0.")
    assert report.suggestion in str(report)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_rows_that_shift_are_told_from_rows_that_are_too_few(problem, shift):
    _, x, w, bias, x_train = problem
    op = fit(x_train, w, bias, num_codebooks=9, config=FitConfig("paper", ridge=0.01))
    report = evaluate(op, x + np.float32(shift) * np.arange(FEATURES), w, bias, x_train)
    assert report.nmse > 1.3 * report.train_nmse
    said = "Rows of another kind: NMSE" if shift else "Rows too few for C = 9: NMSE"
    assert report.suggestion.startswith(said)


def test_words():
    full = np.full((4, 16), 1 / 16)
    say = advice.suggestion
    few, shifted = advice.Simpler(2, 0.6, 0.6), advice.Simpler(2, 0.4, 0.2)
    assert "Rows too few for C = 4, or of another kind" in say(4, 0.5, 0.0, 0.1, 100, full)
    assert say(4, 0.5, 0.0, 0.1, 100, full, few).endswith("Learn from >= 1,280 rows.")
    assert "Rows of another kind" in say(4, 0.5, 0.0, 0.1, 100, full, shifted)
    assert "Fewer codebooks are better on these rows: C = 2 has 0.4" in say(4, 0.5, 0.0, 0.1, 100, full, shifted)
    assert "Worse than predicting the mean" in say(4, 1.5, 0.0, None, None, full)
    assert "8 bits" in say(4, 0.01, 0.005, None, None, full)
    assert "unused" in say(4, 0.01, 0.0, None, None, np.eye(16)[:4])
    assert "C = 8" in say(4, 0.1, 0.0, None, None, full)
    assert say(4, 0.01, 0.0, 0.01, 10**6, full) == ""


def test_a_constant_output_has_no_error_of_its_own(problem):
    _, x, w, bias, x_train = problem
    w = w.copy()
    w[:, 2] = 0
    report = evaluate(fit(x_train, w, bias, num_codebooks=4, config=PAPER), x, w, bias)
    assert np.isnan(report.nmse_per_output[2])
    assert np.isfinite(report.nmse)
    assert "worst" in str(report)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("kind", ["one row", "the same row", "zero"])
def test_where_no_output_varies_nothing_is_wrong(kind, scale, rng):
    x = rng.standard_normal((40, FEATURES))
    x = {"one row": x[:1], "the same row": np.repeat(x[:1], 40, 0), "zero": 0 * x}[kind]
    x, w = np.float32(x * scale), rng.standard_normal((FEATURES, 5)).astype(np.float32)
    op = fit(x, w, np.ones(5), num_codebooks=2, config=PAPER)
    report = evaluate(op, x, w, np.ones(5))
    assert report.nmse == 0
    assert np.isnan(report.nmse_per_output).all()
    assert "NMSE 0" in str(report)
    wrong = dataclasses.replace(op, tables=dataclasses.replace(op.tables, offset=2 * op.tables.offset))
    assert evaluate(wrong, x, w, np.ones(5)).nmse > 1


@pytest.mark.parametrize(("offset", "bias"), [(0.0, 0.0), (1e3, 0.0), (1e5, 0.0), (0.0, 1e6), (-1e5, 1e6)])
def test_a_large_mean_or_bias_hides_no_error(offset, bias, rng):
    x = np.float32(offset + rng.standard_normal((400, 64)))
    w, b = rng.standard_normal((64, 5)).astype(np.float32), np.full(5, bias, np.float32)
    op = fit(x, w, b, num_codebooks=4, config=PAPER)
    exact = x.astype(np.float64) @ w + bias
    for each in (op, dataclasses.replace(op, tables=dataclasses.replace(op.tables, scale=0 * op.tables.scale))):
        error = ((np.asarray(amm(x, each), np.float64) - exact) ** 2).sum() / ((exact - exact.mean(0)) ** 2).sum()
        np.testing.assert_allclose(evaluate(each, x, w, b).nmse, error, rtol=1e-3)
        sharding = NamedSharding(jax.make_mesh((4,), ("rows",)), PartitionSpec("rows"))
        np.testing.assert_allclose(evaluate(each, jax.device_put(x, sharding), w, b).nmse, error, rtol=2e-2)


def test_the_same_row_on_several_devices(rng):
    x = np.repeat(rng.standard_normal((1, FEATURES)), 40, 0).astype(np.float32)
    w = rng.standard_normal((FEATURES, 5)).astype(np.float32)
    sharding = NamedSharding(jax.make_mesh((4,), ("rows",)), PartitionSpec("rows"))
    report = evaluate(fit(x, w, num_codebooks=2, config=PAPER), jax.device_put(x, sharding), w)
    assert report.nmse == 0
    assert np.isnan(report.nmse_per_output).all()


def test_errors_say_what_to_do(problem):
    op, x, w, bias, _ = problem
    with pytest.raises(TypeError, match="`op` is str; expected a MaddnessOp"):
        evaluate("op", x, w)
    with pytest.raises(ValueError, match=r"`x` has 50 NaN"):
        evaluate(op, np.where(np.arange(FEATURES) == 0, np.nan, x), w)
    with pytest.raises(ValueError, match=r"`x` has 8 features, but `w` has 9 rows"):
        evaluate(op, x[:, :8], w)
    with pytest.raises(ValueError, match=r"`w` has 4 columns, but `op` has 5 outputs"):
        evaluate(op, x, w[:, :4])
    with pytest.raises(ValueError, match=r"`x_train` has 8 features"):
        evaluate(op, x, w, bias, x[:, :8])
