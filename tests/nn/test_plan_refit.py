"""The answer of a plan is fitted again: what that brings is measured, and kept only where it is better."""

import math
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.simulated import random_model

from jax_maddness import FitConfig, Plan, Rule, plan, replace
from jax_maddness.nn.planning import measure
from jax_maddness.nn.planning.verdict import CALIBRATED, TUNED

LIMIT = 0.01
BOTH = ((CALIBRATED, 0), (TUNED, 20))
SECONDS = {"drop": 3.0, "compare": 1.0, "look": 2.0, "learn": 0.3, "times": 0.2, "codes": 9.0}
SECONDS |= {CALIBRATED: 5.0, TUNED: 7.0}


def mix_of(plan):
    return {line.name: (line.by, line.choice) for line in plan.replaced}


def bench_of(seed, calibrated=0.5, tuned=0.25):
    bench = random_model(seed)
    bench.seconds, bench.factors = SECONDS, {CALIBRATED: calibrated, TUNED: tuned}
    return bench


@pytest.mark.parametrize(("calibrated", "tuned", "left"), [(0.5, 0.25, 0.125), (1.5, 0.5, 0.5), (0.5, 3.0, 0.5)])
def test_what_makes_the_drop_smaller_is_kept(calibrated, tuned, left):
    bench = bench_of(0, calibrated, tuned)
    found = bench.plan(LIMIT, math.inf, refits=BOTH)
    drop = bench.drop_of(mix_of(found))
    assert found.finished
    assert found.before - found.after == pytest.approx(drop * left)
    first, second = found.refits
    assert (first.kept, second.kept) == (calibrated < 1, second.after < second.before)
    assert second.before == pytest.approx(drop * min(calibrated, 1))
    kept = TUNED if second.kept else CALIBRATED if first.kept else None
    assert set(found.learned.values()) == ({kept} if kept else set())
    assert f"drop {first.before:.2g} -> {first.after:.2g}, {'kept' if first.kept else 'not kept'}." in str(found)
    assert "Fine-tuned in 20 steps: drop" in str(found)


@pytest.mark.parametrize("seed", range(6))
def test_time_is_kept_for_it_and_no_more_is_taken(seed):
    for limit in (0.0, 10.0, 30.0, 60.0, 120.0, 500.0):
        bench = bench_of(seed)
        found = bench.plan(LIMIT, limit, refits=BOTH)
        assert bench.now <= max(limit, SECONDS["drop"]) + SECONDS[TUNED]
        assert bench.drop_of(mix_of(found)) <= LIMIT
        assert not found.finished or len(found.refits) == 2 * bool(found.replaced)
        if limit >= 60 and found.replaced:  # a quarter of it suffices
            assert found.refits


def test_an_earlier_run_is_not_repeated_unless_other_ops_are_learned(tmp_path):
    found = bench_of(3).plan(LIMIT, math.inf, refits=BOTH)
    found.how = {line.name: {"config": FitConfig("paper").__dict__} for line in found.layers}
    found.to_json(tmp_path / "plan.json")

    def read():
        return Plan.from_json(tmp_path / "plan.json")

    bench, steps = bench_of(3), []
    bench.fails = lambda kind, *_: steps.append(kind)
    again = bench.plan(LIMIT, 0.0, plan=read(), refits=BOTH)
    assert again.refits == found.refits
    assert again.after == found.after
    assert not {CALIBRATED, TUNED} & set(steps)
    without = bench_of(3).plan(LIMIT, 0.0, plan=read())
    assert without.refits == ()
    assert without.after < found.after
    other = bench_of(3).plan(LIMIT, math.inf, plan=read(), refits=BOTH[1:])
    assert [refit.kind for refit in other.refits] == [TUNED]
    held = read()
    held.learned = {(name, *product): "by other means" for name, product in mix_of(held).items()}
    bench.plan(LIMIT, math.inf, plan=held, refits=BOTH)
    assert {CALIBRATED, TUNED} <= set(steps)


def test_what_is_not_possible_is_said():
    bench = bench_of(0)

    def fails(kind, *_):
        if kind == CALIBRATED:
            raise MemoryError
        if kind == TUNED:
            raise ValueError("there is nothing to tune.")

    bench.fails = fails
    found = bench.plan(LIMIT, math.inf, refits=BOTH)
    assert found.finished
    assert "each layer: not possible, there is not enough memory." in str(found)
    assert "Fine-tuned in 20 steps: not possible, there is nothing to tune." in str(found)
    assert found.before - found.after == pytest.approx(bench.drop_of(mix_of(found)))


def test_an_interrupt_leaves_the_answer_without_it():
    bench = bench_of(0)

    def fails(kind, *_):
        if kind == TUNED:
            raise KeyboardInterrupt

    bench.fails = fails
    found = bench.plan(LIMIT, math.inf, refits=BOTH)
    assert [refit.kind for refit in found.refits] == [CALIBRATED]
    assert found.replaced
    assert not found.finished


@pytest.fixture
def model():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(16, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 64, rngs=rngs))


@pytest.fixture
def batches(rng):
    mix = rng.standard_normal((4, 16))
    return [jnp.asarray(rng.standard_normal((1000, 4)) @ mix, jnp.float32) for _ in range(6)]


@pytest.mark.parametrize("how", [{"calibrate": "prefix"}, {"finetune_steps": 40}])
def test_replace_takes_what_was_fitted(monkeypatch, model, batches, tmp_path, how):
    """A plan of real layers of which look-ups are said to be faster."""
    monkeypatch.setattr(measure, "times", lambda units, others: [(5.0, 0.0)] * len(units) + [(1.0, 0.0)] * len(others))
    monkeypatch.setattr(
        measure, "interleaved", lambda calls, seconds=0: [(10.0 / (1 + i), 0.0) for i in range(len(calls))]
    )
    rules = Rule(".*", num_codebooks=2, config=FitConfig("paper"))
    settings = {"max_drop": math.inf, "products": "codes", "path": tmp_path / "plan.json"}
    found = plan(model, batches, rules, **settings, **how)
    assert len(found.replaced) > 1
    (refit,) = found.refits
    assert refit.kept
    assert refit.after == pytest.approx(found.before - found.after)
    y, exact = replace(model, found)(batches[-1]), model(batches[-1])
    assert -found.after == pytest.approx(measure.nmse(np.ravel(y), np.ravel(exact)), rel=1e-3)
    read = Plan.from_json(tmp_path / "plan.json")
    assert read.refits == found.refits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        anew = replace(model, read, batches[:5])
    assert any("also fine-tuned" in str(warning.message) for warning in caught) == ("finetune_steps" in how)
    by_hand = replace(model, found.rules(), batches[:5], calibrate=how.get("calibrate", "independent"))
    np.testing.assert_array_equal(anew(batches[-1]), by_hand(batches[-1]))


def test_bad_arguments(model, batches):
    with pytest.raises(ValueError, match="`calibrate` is 'all'"):
        plan(model, batches, Rule(".*"), calibrate="all")
    with pytest.raises(ValueError, match="`finetune_steps`"):
        plan(model, batches, Rule(".*"), finetune_steps=-1)
    with pytest.raises(TypeError, match="`finetune_steps`"):
        plan(model, batches, Rule(".*"), finetune_steps=1.5)
