"""Int8 factors and whole int8 products as `fit` learns them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_maddness import FitConfig, amm, evaluate, fit, fit_budget
from jax_maddness.core import int8
from jax_maddness.core.terms.int8_product import Int8ProductByRow
from jax_maddness.learn.refit import refit_tables
from jax_maddness.learn.sizes import placeholder
from jax_maddness.learn.tables import factors


@pytest.fixture(scope="module")
def problem():
    """x, w, bias: rows with a large mean, of which two factors and one feature have most of the variance."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((900, 2)) @ rng.standard_normal((2, 12)) * 4
    x = np.float32(rng.standard_normal((900, 12)) + shared + 30)
    x[:, 7] += 40 * rng.standard_normal(900)
    return x, np.float32(rng.standard_normal((12, 9))), np.float32(rng.standard_normal(9))


def learned(problem, codebooks=3, method="paper", **term):
    return fit(*problem, num_codebooks=codebooks, config=FitConfig(method, **term))


def error(op, problem):
    return evaluate(op, *problem).nmse


def test_the_term_is_nearly_the_best_of_its_rank(problem):
    """Alone, its error is little more than what the singular values leave."""
    x, w, _ = problem
    y = np.float64(x - x.mean(0)) @ w
    singular = np.linalg.svd(y, compute_uv=False) ** 2
    for rank in (4, 8):
        op = learned(problem, 0, rank=rank)
        assert op.term.rank == rank
        assert op.num_codebooks == 0
        best = singular[rank:].sum() / singular.sum()
        assert best < error(op, problem) < 1.05 * best + 1e-3


def test_each_part_leaves_less_to_codes(problem):
    parts = [{}, {"rank": 4}, {"outliers": 1}]
    errors = [error(learned(problem, **part), problem) for part in parts]
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.7 * errors[0]
    assert error(learned(problem, 12, rank=4), problem) < 0.5 * error(learned(problem, 0, rank=4), problem)


def test_features_of_their_own_are_those_with_most_power(problem):
    x, w, _ = problem
    term = learned(problem, outliers=2).term
    down = int8.ungrouped(term.down, 12)
    assert {int(np.abs(column).argmax()) for column in down.T[:2]} == set(
        np.argsort(-x.var(0) * np.square(w).sum(1))[:2]
    )
    assert (np.abs(down.T[:2]) > 0).sum() == 2
    assert term.rank == 4  # directions fill what a multiple of 4 leaves


@pytest.mark.slow
@pytest.mark.parametrize("method", ["axis", "oblique"])
def test_every_method_learns_the_rest(problem, method):
    x, w, bias = problem
    few = (x[:600], w, bias)  # as many rows as in test_oblique.py: compiled once
    assert error(learned(few, method=method, rank=4), few) < error(learned(few, 0, rank=4), few)


@pytest.mark.parametrize("outputs", [5, 12, 20])
def test_full_rank_is_as_close_as_int8(problem, outputs):
    w = np.float32(np.random.default_rng(1).standard_normal((12, outputs)))
    full = (problem[0], w, np.zeros(outputs, np.float32))
    assert error(learned(full, 0, rank=min(12, outputs)), full) < 1e-3
    assert error(learned(full, 0, "int8"), full) < 2e-4


def test_one_sum_holds_both_whatever_their_sizes(problem):
    """Tables with coarser or finer steps than the factors, and tables or factors that are all but nothing."""
    x, w, bias = problem
    for power in (-40.0, -3.0, 0.0, 9.0, 40.0):
        scaled = (np.float32(x * 2.0**power), np.float32(w * 2.0**-power), bias)
        np.testing.assert_allclose(
            amm(scaled[0], learned(scaled, rank=4)), amm(x, learned(problem, rank=4)), rtol=1e-3, atol=1e-2
        )
    op = learned(problem, rank=4)
    for size in (1e-9, 1e-3, 1e3, 1e9):
        own, low_rank = factors.taken_apart(op)
        larger = dataclasses.replace(own, scale=own.scale * np.float32(size))
        tables, term = factors.joined(larger, low_rank)
        y = np.float64(amm(x, dataclasses.replace(op, tables=tables, term=term)))
        expected = np.float64(amm(x, dataclasses.replace(op, tables=larger, term=None))) + op.term.product(x, op.tables)
        assert np.abs(y - expected).max() < 0.02 * np.ptp(expected)


def test_a_shift_never_lets_the_sums_overflow():
    assert (255 * 4096 << factors._most_bits(4096, 64)) + 127**2 * 64 < 2**31
    assert factors._most_bits(4096, 64) == 11


@pytest.mark.parametrize("config", [FitConfig("paper", rank=4, outliers=2), FitConfig("int8")])
def test_few_rows_constant_features_and_scales(problem, config):
    x, w, bias = problem
    codebooks = 0 if config.method == "int8" else 3
    for rows in (x[:1], x[:3], np.repeat(x[:1], 50, axis=0), np.where(np.arange(12) < 5, 7, x)):
        op = fit(rows, w, bias, num_codebooks=codebooks, config=config)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(op))
        assert evaluate(op, rows, w, bias).nmse < 0.5 or len(np.unique(rows, axis=0)) == 1
    with pytest.raises(ValueError, match=r"`x_train` varies by .*; int8 factors take rows that vary by"):
        fit(x * np.float32(1e33), w * np.float32(1e-33), num_codebooks=codebooks, config=config)


def test_the_rounding_of_whole_products_is_chosen_on_held_out_rows(rng):
    """Rows of very different sizes want steps of their own, and columns of very different sizes too."""
    w = np.float32(rng.standard_normal((16, 5)))
    x = rng.standard_normal((400, 16))
    by_row = fit(x * np.exp(3 * rng.standard_normal((400, 1))), w, num_codebooks=0, config=FitConfig("int8"))
    assert type(by_row.term) is Int8ProductByRow
    balanced = np.exp(3 * rng.standard_normal(16))
    by_column = fit(np.clip(x, -1, 1) * balanced, w / balanced[:, None], num_codebooks=0, config=FitConfig("int8"))
    assert evaluate(by_column, np.clip(x, -1, 1) * balanced, w / balanced[:, None]).nmse < 1e-4


def test_weights_are_those_of_the_whole_product(problem):
    x, w, bias = problem
    op = fit(x, w, bias, num_codebooks=3, config=FitConfig("paper", rank=4), keep_weights=True)
    np.testing.assert_array_equal(op.weights, w)


def test_a_budget_counts_factors(problem):
    config = FitConfig("paper", rank=2, outliers=3)
    blank = placeholder(12, 9, 3, config)
    assert blank.nbytes == learned(problem, rank=2, outliers=3).nbytes
    found = fit_budget(*problem, num_bytes=blank.nbytes, products=["codes"], config=config)
    assert found.op.nbytes <= blank.nbytes


def test_a_report_of_factors_speaks_of_the_rank(problem):
    report = evaluate(learned(problem, 0, rank=4), *problem, x_train=problem[0])
    assert "leaves" not in str(report)
    assert report.bits == 0
    rough = evaluate(
        fit(np.eye(12).repeat(9, 0), np.eye(12), num_codebooks=0, config=FitConfig(rank=4)), np.eye(12), np.eye(12)
    )
    assert "The rank is the limit" in rough.suggestion


def test_tables_are_refitted_beside_factors(problem):
    x, w, bias = problem
    for op in (learned(problem, rank=4), learned(problem, 0, rank=4), learned(problem, 0, "int8")):
        targets = x @ w + bias + 5
        better = refit_tables(op, x, targets)
        assert abs(np.float64(amm(x, better) - targets).mean()) < 0.2
        assert type(better.term) is type(op.term)


def test_rows_in_batches_and_the_strict_modes(problem):
    x, w, bias = problem
    op = fit(lambda: iter(np.array_split(x, 3)), w, bias, num_codebooks=3, config=FitConfig("paper", rank=4))
    np.testing.assert_allclose(amm(x, op), amm(x, learned(problem, rank=4)), atol=0.5)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for op in (learned(problem, rank=2, outliers=1), learned(problem, 0, "int8")):
            assert all(a.dtype.itemsize <= 4 for a in jax.tree.leaves(op))
            assert amm(x, op).dtype == jnp.float32


def test_errors_say_what_to_do(problem):
    with pytest.raises(ValueError, match="`rank` is 10, but `w` of 12 features and 9 outputs has at most 9"):
        learned(problem, rank=10)
    with pytest.raises(ValueError, match="`outliers` is 13, but there are 12 features"):
        learned(problem, outliers=13)
    for bad in (-1, 2.0, None):
        with pytest.raises(ValueError, match=rf"`rank` is {bad}; expected an integer >= 0"):
            FitConfig(rank=bad)
    with pytest.raises(ValueError, match='method "int8" computes the whole product'):
        learned(problem, 3, "int8")
    with pytest.raises(ValueError, match="`num_codebooks` is 0; expected at least 1"):
        learned(problem, 0)
    with pytest.raises(ValueError, match="more than float32 holds"):
        fit(np.full((4, 3), 1e30), np.full((3, 3), 1e10), num_codebooks=1, config=FitConfig("paper", rank=1))


def test_more_directions_than_the_iteration_has_to_spare(rng):
    x, w = rng.standard_normal((2000, 60)) * np.sqrt(np.arange(1.0, 61.0)), rng.standard_normal((60, 50))
    x = np.float32(x - x.mean(0))
    v = factors.principal(x, w, 5)
    expected = np.linalg.svd(x @ w, full_matrices=False)[2][:5]
    np.testing.assert_allclose(np.abs(np.diagonal(expected @ v)), 1, atol=1e-2)


def test_sharded_rows_learn_the_same_factors(problem):
    x, w, bias = problem
    rows = jax.device_put(x, NamedSharding(jax.make_mesh((4,), ("r",)), P("r")))
    op = fit(rows, w, bias, num_codebooks=3, config=FitConfig("paper", rank=4))
    np.testing.assert_allclose(amm(x, op), amm(x, learned(problem, rank=4)), atol=0.5)
