"""An approximation must be worth its risk: it gains more than a little, and a plan says how sure its drop is."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.simulated import PRODUCTS, Simulated, random_model
from scipy.stats import binom

from jax_maddness import FitConfig, Plan
from jax_maddness.nn.planning.confidence import examples_of, largest_drop, needed

PRODUCTS_TOO = (*PRODUCTS, "rewritten")


def model_with(approximate_ms):
    """A layer that takes 9 ms, rewritten 5, and by an approximation without a measured drop `approximate_ms`."""
    layer = {"exact": 9.0, ("rewritten", 0): (5.0, 1e-14), ("factors", 64): (approximate_ms, 1e-4)}
    return Simulated({"a": layer}, {"a": 0.0}, rest=1.0, noise=0.0)


@pytest.mark.parametrize(("ms", "by"), [(4.8, "rewritten"), (4.2, "factors")])
def test_what_is_exact_stays_where_an_approximation_gains_little(ms, by):
    plan = model_with(ms).plan(0.01, 1e9, PRODUCTS_TOO)
    assert [line.by for line in plan.replaced] == [by]


@pytest.mark.parametrize(("examples", "is_few"), [(80, True), (298, True), (299, False), (5000, False)])
def test_a_plan_says_what_its_drop_may_be_on_other_examples(examples, is_few, tmp_path):
    bench = model_with(2.0)
    bench.examples = examples
    plan = bench.plan(0.01, 1e9, PRODUCTS_TOO)
    plan.held_out = 10
    words = f"The drop is that of {examples:,} examples, so that it may be up to {largest_drop(0.0, examples):.2g} on"
    assert words in str(plan)
    assert (f"{examples} held-out examples are few for a drop of at most 0.01" in str(plan)) == is_few
    plan.how = {"a": {"config": dataclasses.asdict(FitConfig())}}
    plan.to_json(tmp_path / "plan.json")
    assert str(Plan.from_json(tmp_path / "plan.json")) == str(plan)


def test_nothing_is_said_of_what_is_exact_or_no_share():
    exact, no_share = model_with(9.0), random_model(0)
    exact.examples = 80
    for bench, products in ((exact, PRODUCTS_TOO), (no_share, PRODUCTS)):
        plan = bench.plan(0.01, 1e9, products)
        plan.held_out = 10
        assert plan.replaced
        assert " examples" not in str(plan)


@pytest.mark.parametrize("drop", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("examples", [1, 7, 100, 3000])
def test_the_largest_drop_holds_with_its_confidence(drop, examples):
    """With a share as large as that, so few examples would be lost in one of twenty samples."""
    lost = round(drop * examples)
    assert binom.cdf(lost, examples, largest_drop(drop, examples)) == pytest.approx(0.05, rel=1e-6)


def test_a_gain_is_no_drop_and_all_may_be_lost():
    assert largest_drop(-0.3, 50) == largest_drop(0.0, 50)
    assert largest_drop(1.0, 50) == 1.0


@pytest.mark.parametrize("limit", [0.5, 0.01, 1e-3])
def test_so_many_examples_are_needed_and_no_fewer(limit):
    assert largest_drop(0.0, needed(limit)) <= limit < largest_drop(0.0, needed(limit) - 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16])
def test_shares_are_told_from_other_metrics(dtype, rng):
    sizes = [8, 8, 5]
    right = [rng.random(n) < 0.8 for n in sizes]
    shares = [float(np.mean(r).astype(dtype)) for r in right]
    assert examples_of(shares, sizes) == (0 if dtype == jnp.bfloat16 else 21)  # three digits tell nothing
    assert examples_of([-0.31, -0.52, -0.4], sizes) == 0
    assert examples_of([1.5, 1.0, 1.0], sizes) == 0
    assert examples_of([float("nan"), 1.0, 1.0], sizes) == 0
    assert examples_of(shares, [0, 8, 5]) == 0
