"""The last step of a plan: the exact and the planned model are timed in turns, if the time allows it."""

import itertools
import math

import pytest
from helpers.simulated import random_model

from jax_maddness import FitConfig, Plan
from jax_maddness.nn.planning.clock import Clock, TimeUpError

SECONDS = {"drop": 3.0, "compare": 1.0, "look": 2.0, "learn": 0.3, "times": 0.2, "codes": 9.0}
LIMIT = 0.01


def mix_of(plan):
    return {line.name: (line.by, line.choice) for line in plan.replaced}


class Drifting(type(random_model(0))):
    """A machine on which all models take longer from one comparison to the next, as a laptop that gets warm."""

    comparisons = 0

    def compare(self, mixes):
        self.comparisons += 1
        return [(ms * 1.1**self.comparisons, noise) for ms, noise in super().compare(mixes)]


def drifting_model(seed):
    bench = random_model(seed)
    return Drifting(bench.layers, bench.sensitivity, bench.rest)


@pytest.mark.parametrize("seed", range(8))
def test_the_speed_up_of_a_finished_plan_is_measured(seed):
    bench = drifting_model(seed)
    plan = bench.plan(LIMIT, math.inf)
    exact, fast = plan.measured_ms
    assert exact / fast == pytest.approx(plan.exact_ms / plan.fast_ms)
    assert exact / fast == pytest.approx(bench.ms({}) / bench.ms(mix_of(plan)))
    assert exact > plan.exact_ms  # measured once more, and not what was measured first
    get, *_ = str(plan).splitlines()
    assert f"{exact:.3g} ms -> {fast:.3g} ms a batch, measured: " in get
    assert f"{exact:.3g} ms -> {fast:.3g} ms, measured {exact / fast:.2f}x, predicted" in str(plan)


def test_a_plan_without_time_for_it_says_that_its_speed_up_is_estimated():
    """That of the first answer was measured beside the exact model, and so is not estimated."""
    first, later = random_model(0), random_model(0)
    starts = itertools.count()

    def fails(kind, *_, last=3):
        if kind == "compare" and next(starts) == last:
            raise KeyboardInterrupt

    later.fails = fails
    plan = later.plan(LIMIT, math.inf)
    assert plan.measured_ms is None
    assert " ms a batch, estimated: " in str(plan)
    assert f"estimated {plan.exact_ms / plan.fast_ms:.2f}x" in str(plan)
    starts = itertools.count()
    first.fails = lambda kind, *_: fails(kind, last=2)
    assert first.plan(LIMIT, math.inf).measured_ms is not None


@pytest.mark.parametrize("seed", range(10))
def test_time_is_kept_for_it(seed):
    for limit in range(40, 90, 7):
        bench = random_model(seed)
        bench.seconds = {**SECONDS, "codes": 2.0}
        plan = bench.plan(LIMIT, limit)
        assert bench.now <= limit
        assert not plan.replaced or plan.measured_ms is not None


def test_nothing_is_kept_where_it_would_be_a_large_share():
    now = 0.0
    clock = Clock(False, 10.0, lambda: now)
    clock.reserve("compare", 0.7)
    assert clock.left == pytest.approx(10 - 1.25 * 0.7)
    clock.reserve("compare", 0.81)
    assert clock.left == 10
    clock.reserve("compare", 0.7)
    now = 9.5
    with pytest.raises(TimeUpError):
        clock.step()
    clock.release()
    clock.step()


class Reversed(type(random_model(0))):
    """A machine on which the planned model is slower than the exact one in so many comparisons of the last step."""

    disturbed = 0
    calls = 0

    def compare(self, mixes):
        self.calls += 1
        timings = super().compare(mixes)
        last = self.calls > 2 and mixes[0] == {}  # the first answer is compared with the exact model, too
        self.disturbed -= last
        return [(1.0, 0.0), (1.5, 0.0)] if last and self.disturbed >= 0 else timings


def reversed_model(disturbed):
    bench = random_model(0)
    bench = Reversed(bench.layers, bench.sensitivity, bench.rest)
    bench.disturbed = disturbed
    return bench


def test_an_answer_that_is_slower_than_the_exact_model_is_given_up():
    plan = reversed_model(3).plan(LIMIT, math.inf)
    assert not plan.replaced
    assert plan.measured_ms is None
    assert plan.exact_ms == plan.fast_ms
    assert "nothing is replaced" in str(plan)
    assert any("the whole model gains nothing measurable, 0.67x" in line.words for line in plan.layers)
    assert min(trial.speedup for trial in plan.trials if trial.measured) == pytest.approx(1 / 1.5)


def test_one_comparison_that_was_disturbed_does_not_decide():
    bench = reversed_model(1)
    plan = bench.plan(LIMIT, math.inf)
    assert plan.measured_ms == (bench.ms({}), bench.ms(mix_of(plan)))
    assert bench.disturbed == -2  # two more comparisons
    undisturbed = reversed_model(0)
    undisturbed.plan(LIMIT, math.inf)
    assert undisturbed.disturbed == -1


def test_a_plan_that_goes_on_keeps_the_measurement_only_for_the_same_answer(tmp_path):
    bench = random_model(5)
    plan = bench.plan(LIMIT, math.inf)
    plan.how = {line.name: {"config": FitConfig("paper").__dict__} for line in plan.layers}
    plan.to_json(tmp_path / "plan.json")
    plan = Plan.from_json(tmp_path / "plan.json")
    before = plan.measured_ms
    assert before is not None
    assert bench.plan(LIMIT, 0.0, plan=plan).measured_ms == before  # there was no time for another one
    plan.max_drop, plan.measured_ms = 0.0, (3.0, 1.0)
    assert bench.plan(0.0, 0.0, plan=plan).measured_ms is None
    assert plan.fast_ms == plan.exact_ms
