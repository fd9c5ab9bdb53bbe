"""`fit` without `num_codebooks`: the closest op that is four times as quick as XLA's product."""

import dataclasses

import numpy as np
import pytest

from jax_maddness import CostModel, FitConfig, evaluate, fit
from jax_maddness.learn.choose import SPEEDUP

D, M = 64, 32
PAPER = FitConfig("paper")
COSTS = CostModel("given", **{part.name: 0.0 for part in dataclasses.fields(CostModel) if part.name != "machine"})
EXACT = dataclasses.replace(COSTS, exact=SPEEDUP * 1e-9)  # in units of a multiply-add, D M = 2048 are allowed


@pytest.fixture
def rows(rng):
    return rng.standard_normal((400, D)).astype(np.float32)


@pytest.fixture
def low_rank(rows, rng):
    """Rows and weights that factors of rank 4 multiply nearly exactly."""
    return rows, (rng.standard_normal((D, 4)) @ rng.standard_normal((4, M))).astype(np.float32)


def test_a_whole_product_in_int8_is_taken_where_it_is_quick(low_rank):
    op = fit(*low_rank, config=PAPER, costs=dataclasses.replace(EXACT, int8=1e-9))
    assert (op.num_codebooks, op.term.name[:4]) == (0, "int8")


def test_factors_are_taken_where_they_are_closer(low_rank):
    costs = dataclasses.replace(EXACT, int8=2e-9, factor=1e-9)
    op = fit(*low_rank, config=PAPER, costs=costs)
    assert op.num_codebooks == 0
    assert op.term.rank == 20  # 20 (D + M) <= D M
    assert evaluate(op, *low_rank).nmse < 1e-3


def test_codes_are_taken_where_factors_take_too_long(low_rank):
    op = fit(*low_rank, config=PAPER, costs=dataclasses.replace(EXACT, int8=2e-9, factor=1e-8, look_up=1e-9))
    assert (op.num_codebooks, op.term) == (D // 16, None)


def test_both_are_taken_where_they_are_closest(rng):
    """Half of the outputs are a low-rank product of some features, and half copies of others in few values."""
    x = rng.choice(np.float32([-1, 1]), (600, D))
    w = np.zeros((D, M), np.float32)
    w[:4] = rng.standard_normal((4, M))
    w[32:, :] = 0.05 * rng.standard_normal((32, M))
    costs = dataclasses.replace(EXACT, int8=2e-9, factor=2 * M / (D + M) * 1e-9, look_up=8e-9)  # C + 2 r / 8 <= 8
    op = fit(x, w, config=PAPER, costs=costs)
    assert costs.seconds(1, D, M, op.num_codebooks, FitConfig(rank=op.term.rank)) <= costs.exact_seconds(1, D, M) / 4
    half = {"codes": fit(x, w, num_codebooks=4, config=PAPER), "both": op}
    errors = {name: evaluate(each, x, w).nmse for name, each in half.items()}
    assert errors["both"] < errors["codes"]


def test_where_nothing_is_as_quick_it_is_a_codebook_for_16_features(low_rank):
    costs = dataclasses.replace(EXACT, int8=1e-6, factor=1e-6, look_up=1e-6)
    op = fit(*low_rank, config=PAPER, costs=costs)
    assert (op.num_codebooks, op.term) == (D // 16, None)


def test_only_what_is_left_open_is_chosen(low_rank):
    costs = dataclasses.replace(EXACT, int8=1e-9)
    op = fit(*low_rank, config=FitConfig("paper", rank=8), costs=costs)
    assert (op.num_codebooks, op.term.rank) == (D // 16, 8)
    assert fit(*low_rank, config=FitConfig("int8"), costs=costs).num_codebooks == 0
    loss = FitConfig("oblique", steps=50, loss=lambda y, exact: ((y - exact) ** 2).mean())
    assert fit(*low_rank, config=loss, costs=costs).num_codebooks == D // 16


@pytest.mark.parametrize("scale", [1e-35, 1.0, 1e30])
def test_rows_may_come_in_batches_of_any_scale(low_rank, scale):
    x, w = np.float32(low_rank[0] * scale), low_rank[1]
    costs = dataclasses.replace(EXACT, int8=2e-9, factor=1e-9)
    op = fit(lambda: iter(np.array_split(x, 3)), w, config=PAPER, costs=costs)
    assert evaluate(op, x, w).nmse < (1 if scale < 1e-30 else 1e-3)


def test_one_row_is_enough(low_rank):
    x, w = low_rank
    assert fit(x[:1], w, config=PAPER, costs=COSTS).num_codebooks == D // 16


def test_costs_are_given_or_measured(low_rank):
    with pytest.raises(TypeError, match=r"`costs` is str; .*`measure_costs` returns one"):
        fit(*low_rank, costs="fast")
