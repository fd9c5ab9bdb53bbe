"""An approximation must be worth its risk: it gains more than a little, and a plan says how sure its drop is."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.simulated import PRODUCTS, Simulated, random_model
from scipy.stats import binom

from jax_maddness import FitConfig, Plan
from jax_maddness.nn.models.model import adapt
from jax_maddness.nn.planning.confidence import are_shares, largest_drop, needed
from jax_maddness.nn.planning.score import Score

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
    assert (f"{examples} held-out examples are few to be sure of a drop of at most 0.01" in str(plan)) == is_few
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


@pytest.mark.parametrize("size", [1, 8, 1000, 4096])
def test_shares_are_told_from_other_scores(size, rng):
    shares = [float(np.mean((rng.random(size) < share).astype(np.float32))) for share in (0.0, 0.8, 1.0)]
    assert are_shares(shares, [size] * 3)
    for other in (0.5 / size, 1 - 1e-5, -0.31, 1.5, float("nan"), float("inf")):
        assert not are_shares([*shares, other], [size] * 4)


def agreement(y, batch):
    return jnp.mean(jnp.argmax(y, -1) == batch[1])


def accuracy(y, batch):
    return 0.75 * agreement(y, batch)


def similarity(y, batch):
    """A cosine, at most 1, and 1 for the exact model."""
    cosines = (y * batch[2]).sum(-1) / (jnp.linalg.norm(y, axis=-1) * jnp.linalg.norm(batch[2], axis=-1))
    return jnp.where(cosines > 1 - 1e-7, 1.0, cosines).mean()


def error(y, batch):
    """Minus an error, 0 for the exact model."""
    return -jnp.abs(y - batch[2]).mean()


@pytest.mark.parametrize("metric", [agreement, accuracy, similarity, error])
@pytest.mark.parametrize("sizes", [(20, 20), (20, 10)])
def test_only_agreement_with_the_exact_model_has_a_confidence(metric, sizes, rng):
    layer = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    batches = []
    for size in (40, *sizes):
        x = jnp.float32(rng.standard_normal((size, 8)))
        batches.append((x, jnp.argmax(layer(x), -1), layer(x)))
    call = lambda model, batch: model(batch[0])  # noqa: E731
    score = Score(adapt(layer, call), batches[1:], metric)
    before = score.exact
    score.of(lambda batch: layer(batch[0]) + 0.01 * jnp.sin(31 * layer(batch[0])))
    assert np.isfinite(before)
    assert score.examples == (40 if metric is agreement and sizes[0] == sizes[1] else 0)


@pytest.mark.parametrize("known", [0, 80])
def test_what_an_earlier_run_has_told_of_the_metric_is_kept(known):
    bench = model_with(2.0)
    bench.examples = known
    plan = bench.plan(0.01, 1e9, PRODUCTS_TOO)
    plan.finished, bench.examples = False, 80
    assert bench.plan(0.01, 1e9, PRODUCTS_TOO, plan=plan).examples == known


@pytest.mark.parametrize("rest", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("ms", [8.6, 4.8, 4.2])
def test_a_plan_that_is_continued_has_the_same_answer(ms, rest):
    bench = model_with(ms)
    bench.rest = rest
    plan = bench.plan(0.01, 1e9, PRODUCTS_TOO)
    before = [(line.by, line.choice) for line in plan.layers]
    plan.finished = False
    again = bench.plan(0.01, 1e9, PRODUCTS_TOO, plan=plan)
    assert [(line.by, line.choice) for line in again.layers] == before


def test_what_is_exact_takes_the_place_of_an_approximation_that_is_hardly_faster():
    """All rewritten is no gain, as one layer loses by it; the other one alone is, found after int8."""
    layers = {
        "a": {"exact": 5.0, ("rewritten", 0): (4.0, 1e-14), ("int8", 0): (3.9, 1e-4)},
        "b": {"exact": 5.0, ("rewritten", 0): (6.2, 1e-14)},
    }
    plan = Simulated(layers, {"a": 0.0, "b": 0.0}, rest=10.0, noise=0.0).plan(0.01, 1e9, PRODUCTS_TOO)
    assert [(line.name, line.by) for line in plan.replaced] == [("a", "rewritten")]


def test_a_gain_that_is_too_small_for_an_approximation_is_called_so():
    layer = {"exact": 5.0, ("int8", 0): (4.3, 1e-4)}
    plan = Simulated({"a": layer}, {"a": 0.0}, rest=10.0, noise=0.0).plan(0.01, 1e9)
    assert not plan.replaced
    assert "the whole model gains too little for an approximation, 1.05x" in str(plan)
