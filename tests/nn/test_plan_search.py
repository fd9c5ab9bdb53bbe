"""The search for a plan on a simulated clock and model: nothing is learned, run or compiled."""

import math

import numpy as np
import pytest
from helpers.simulated import PRODUCTS, Simulated, random_model

SECONDS = {"drop": 3.0, "compare": 1.0, "look": 2.0, "learn": 0.3, "times": 0.2, "codes": 9.0}
LIMIT = 0.01


def mix_of(plan):
    return {line.name: (line.by, line.choice) for line in plan.replaced}


def limits(seed):
    """Limits of time: none, too little for anything, and some in between."""
    return [0.0, math.inf, *np.random.default_rng(seed).uniform(0, 90, 6)]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_time_the_answer_is_safe(seed):
    """It is the quickest within the drop of the model as it is and both whole ones, of those there was time for."""
    for limit in limits(seed):
        bench = random_model(seed)
        bench.seconds = SECONDS
        plan = bench.plan(LIMIT, limit)
        assert bench.now <= max(limit, SECONDS["drop"]) + max(SECONDS["drop"], SECONDS["compare"])
        mix = mix_of(plan)
        assert bench.drop_of(mix) <= LIMIT
        ms = [bench.ms({})]
        for kind, seconds in (("int8", 15), ("factors", 22)):
            if limit >= seconds and bench.drop_of(bench.whole(kind)) <= LIMIT:
                ms.append(bench.ms(bench.whole(kind)))
        assert bench.ms(mix) <= min(ms) * 1.02
        assert plan.after == pytest.approx(1 - bench.drop_of(mix))
        if mix:
            assert plan.exact_ms / plan.fast_ms == pytest.approx(bench.ms({}) / bench.ms(mix))
        assert plan.finished or math.isfinite(limit)


def test_the_best_mix_is_nearly_found():
    """The regret against all mixes, in the mean over models."""
    regrets = []
    for seed in range(40):
        bench = random_model(seed, layers=3)
        plan = bench.plan(LIMIT, math.inf)
        regrets.append(bench.ms(mix_of(plan)) / bench.best_ms(LIMIT) - 1)
    assert np.mean(regrets) < 0.01
    assert max(regrets) < 0.05


def test_products_that_are_known_to_be_slower_are_not_learned():
    learned = []
    for knows in (False, True):
        bench = random_model(6)
        bench.knows, bench.fails = knows, lambda kind, *_, knows=knows: learned.append((knows, kind))
        found = bench.plan(LIMIT, math.inf)
        learned.append(mix_of(found))
    assert learned.count((True, "learn")) < learned.count((False, "learn"))
    assert learned[-1] == next(mix for mix in learned if isinstance(mix, dict))


@pytest.mark.parametrize("step", range(1, 60, 3))
def test_an_interrupt_leaves_the_best_answer_so_far(step):
    """And the same search goes on from there, without measuring anything twice."""
    bench, steps = random_model(5), []

    def fails(*what):
        steps.append(what)
        if len(steps) == step:
            raise KeyboardInterrupt

    bench.fails = fails
    if step == 1:
        with pytest.raises(KeyboardInterrupt):  # there is no answer yet
            bench.plan(LIMIT, math.inf)
        return
    plan = bench.plan(LIMIT, math.inf)
    mix = mix_of(plan)
    assert bench.drop_of(mix) <= LIMIT
    assert bench.ms(mix) <= bench.ms({})
    finished = bench.plan(LIMIT, math.inf, plan=plan)
    assert finished.finished
    assert bench.ms(mix_of(finished)) <= bench.ms(mix)
    trials = [tuple(sorted(mix.items())) for kind, _, mix in steps if kind == "drop" and mix]
    assert len(trials) - len(set(trials)) <= 1  # the one that was interrupted


def test_a_layer_without_memory_stays_and_the_plan_goes_on():
    bench = random_model(1)

    def fails(kind, name, product):
        if name == "layer1" and product == ("codes", 4):
            raise MemoryError
        if name == "layer2" and kind in ("learn", "codes"):
            raise MemoryError
        if kind == "drop" and product and len(product) == 4:
            raise MemoryError

    bench.fails = fails
    plan = bench.plan(1.0, math.inf)
    assert plan.finished
    words = {line.name: line.words for line in plan.layers}
    assert words["layer2"].startswith("stays: nothing was measured")
    assert "whole int8 product: not enough memory to learn it" in words["layer2"]
    assert plan.replaced


def test_only_products_that_are_allowed_are_learned():
    for products in (["factors"], ["codes"], ["int8", "low rank"]):
        bench, learned = random_model(3), set()
        bench.fails = lambda kind, name, product, kinds=learned: kinds.add(product[0]) if name and product else None
        plan = bench.plan(1.0, math.inf, products=tuple(products))
        assert learned <= {*products, "int8"}  # int8 is measured to compare
        assert {line.by for line in plan.replaced} <= {*products}


def test_layers_of_small_share_are_left_out():
    bench = random_model(2, layers=3)
    bench.layers["small"] = {key: 1e-3 if key == "exact" else (1e-4, 0.0) for key in bench.layers["layer0"]}
    bench.sensitivity["small"] = 1.0
    plan = bench.plan(LIMIT, math.inf)
    assert plan.layers[-1].words == "stays: 0.0% of the model's time"
    assert plan.finished


def test_layers_that_are_small_beside_a_slow_convolution_count_once_it_is_rewritten():
    """0.4 % of the exact model's time is a third of the rest."""
    layers = {
        "slow": {"exact": 98.0, ("rewritten", 0): (0.5, 0.0)},
        "dense": {"exact": 0.4, ("int8", 0): (0.1, 1e-5), ("factors", 64): (0.05, 1e-5)},
    }
    bench = Simulated(layers, {"slow": 1.0, "dense": 1.0}, rest=0.3)
    plan = bench.plan(LIMIT, math.inf, products=(*PRODUCTS, "rewritten"))
    assert mix_of(plan) == {"slow": ("rewritten", 0), "dense": ("factors", 64)}
    assert plan.finished


def test_a_convolution_that_is_slower_rewritten_stays():
    """Whatever becomes of mixes: int8 costs too much here."""
    layers = {
        "slow": {"exact": 90.0, ("rewritten", 0): (1.0, 1e-14), ("int8", 0): (0.5, 0.1)},
        "large": {"exact": 5.0, ("rewritten", 0): (9.0, 1e-14), ("int8", 0): (1.0, 0.1)},
    }
    bench = Simulated(layers, {"slow": 1.0, "large": 1.0})
    plan = bench.plan(LIMIT, math.inf, products=(*PRODUCTS, "rewritten"))
    assert mix_of(plan) == {"slow": ("rewritten", 0)}
    assert plan.exact_ms / plan.fast_ms == pytest.approx(96 / 7)
