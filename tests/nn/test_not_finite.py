"""NaN and infinities in what `plan` and `finetune` compare: they never count as a small error, and never win."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_maddness import FitConfig, Rule, finetune, replace
from jax_maddness.nn.nmse import nmse
from jax_maddness.nn.planning import verdict
from jax_maddness.nn.planning.mix import Mixer
from jax_maddness.nn.planning.report import Plan
from jax_maddness.nn.planning.score import Score, relative_error
from jax_maddness.nn.planning.verdict import LayerPlan, Option, Trial
from jax_maddness.nn.tuning import losses
from jax_maddness.nn.tuning.run import Run

NOT_FINITE = (np.nan, np.inf, -np.inf)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 7),
    st.integers(1, 5),
    st.sampled_from(NOT_FINITE),
    st.sampled_from(["float16", "float32", "float64"]),
    st.integers(-40, 30),
)
def test_masked_outputs_are_left_out_of_the_error_and_must_agree(seed, rows, outputs, mask, dtype, exponent):
    rng = np.random.default_rng(seed)
    scale = 1.0 if dtype == "float16" else 10.0**exponent
    exact, y = (scale * rng.standard_normal((2, rows, outputs))).astype(dtype)
    masked = rng.random(exact.shape) < 0.3
    y[masked] = exact[masked] = mask
    known = np.where(masked, np.nan, exact.astype(np.float64) / scale)
    if (~masked).any():
        with np.errstate(all="ignore"):
            mean = np.nansum(known, 0) / np.maximum((~masked).sum(0), 1)
        spread = np.nansum(np.square(known - mean))
        wanted = np.nansum(np.square(y.astype(np.float64) / scale - known)) / spread if spread > 1e-20 else 1.0
        np.testing.assert_allclose(nmse(y, exact), wanted, rtol=1e-6)
    other = y.copy()
    place = tuple(rng.integers(exact.shape))
    other[place] = 1.0 if masked[place] else rng.choice(NOT_FINITE)
    assert nmse(other, exact) == math.inf
    assert nmse(exact, exact) == 0


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_outputs_that_are_not_finite_are_infinitely_bad(value, dtype, rng):
    exact = [(jnp.asarray(rng.standard_normal((4, 3)), dtype), jnp.arange(4))] * 2
    bad = [exact[0], (exact[0][0].at[1, 2].set(value), exact[0][1])]
    assert relative_error(bad, exact) == math.inf
    assert relative_error(exact, exact) == 0
    assert relative_error(bad, bad) == 0  # masked in the exact model, too
    with pytest.raises(ValueError, match="Pass `metric`"):
        relative_error([exact[0][1]], [exact[0][1]])
    with pytest.raises(ValueError, match="Pass `metric`"):
        relative_error([exact[0][0] * value], [exact[0][0] * value])


class Returns:
    """Stands in for a model: it returns the batch times a number."""

    def __init__(self, factor):
        self.factor = factor

    def run(self):
        return lambda batch: batch * self.factor


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_score_is_never_nan(value):
    batches = [jnp.arange(4.0), jnp.arange(4.0) + 1]
    score = Score(Returns(1.0), batches, None)
    assert (score.exact, score.of(Returns(value).run())) == (0.0, -math.inf)
    judge = Score(Returns(1.0), batches, lambda y, batch: y.mean())
    assert judge.exact == 2
    for metric in (lambda y, batch: value, lambda y, batch: "good", lambda y, batch: y, lambda y, batch: None):
        with pytest.raises(ValueError, match="`metric` returned"):
            _ = Score(Returns(1.0), batches, metric).exact


def line(*options):
    return LayerPlan("a", ("a",), "Linear", (64, 64), 100, (Option("exact", 0, 10.0, 0.0, 0.0), *options))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("limit", [0.01, math.inf])
def test_an_option_that_is_not_finite_is_never_chosen(value, limit):
    good = Option("codes", 8, 5.0, 0.0, 0.05, 0.005)
    for name in ("nmse", "drop", "noise", "ms"):
        bad = dataclasses.replace(good, **{"size": 4, "ms": 2.0, "nmse": 0.1, name: value})
        mixers = [Mixer([line(*options)], {}, (), limit, 20.0) for options in ([bad], [bad, good])]
        assert [mixer.best(limit) for mixer in mixers] == [{}, {"a": good.product}]
        assert verdict.decided(line(bad), None, limit).words.startswith("stays: ")
    assert not verdict.within(value, limit)
    assert not verdict.gains(10.0, 1.0, value, 0.02)
    assert not verdict.gains(value, 1.0, 0.0, 0.02)


def test_a_plan_with_infinite_errors_is_written_and_drawn(tmp_path):
    bad = verdict.decided(line(Option("codes", 4, 2.0, 0.0, 0.1, math.nan)), None, 0.01)
    plan = Plan((bad,), 0.01, "metric", "machine", trials=(Trial((("a", "codes", 4),), 2.0, math.inf),))
    plan.to_json(tmp_path / "plan.json")
    assert Plan.from_json(tmp_path / "plan.json") == plan
    plan.html(tmp_path / "plan.html")
    assert "nan" not in (tmp_path / "plan.html").read_text().lower()


@pytest.mark.parametrize("name", ["nmse", "kl", "peaks", "ranks"])
def test_losses_of_masked_outputs(name, rng):
    """The same as without the masked outputs, with finite gradients; and no finite number for NaN."""
    shape = (6, 5) if name in ("nmse", "kl") else (4, 6, 3)
    axis = -1 if name in ("nmse", "kl") else 1  # classes, or positions
    y, wanted = jnp.asarray(rng.standard_normal((2, *shape)), jnp.float32)
    loss = losses.LOSSES[name]
    pads = [(0, 0)] * len(shape)
    pads[axis] = (1, 1)
    masked = [jnp.pad(a, pads, constant_values=-jnp.inf) for a in (y, wanted)]
    run = jax.jit(jax.value_and_grad(loss))
    value, gradient = run(*masked)
    np.testing.assert_allclose(value, run(y, wanted)[0], rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert not np.isfinite(run(y * jnp.nan, wanted)[0])
    assert not np.isfinite(run(y, wanted * jnp.nan)[0])
    if name == "nmse":
        with pytest.raises(ValueError, match="no floating array"):
            loss(jnp.arange(3), jnp.arange(3), None)


class Two(nnx.Module):
    """A layer that is replaced, and a head, some of whose outputs are masked."""

    def __init__(self):
        self.body, self.head = (nnx.Linear(d, m, rngs=nnx.Rngs(d)) for d, m in ((8, 16), (16, 4)))

    def __call__(self, x):
        return self.head(nnx.relu(self.body(x))).at[:, 3].set(-jnp.inf)


@functools.cache
def tuned_from():
    rng = np.random.default_rng(0)
    batches = [jnp.asarray(rng.standard_normal((64, 2)) @ rng.standard_normal((2, 8)), jnp.float32) for _ in range(6)]
    model = Two()
    return model, replace(model, Rule("body", num_codebooks=4, config=FitConfig("paper")), batches[:1]), batches


def test_the_best_evaluation_is_a_finite_one(monkeypatch):
    """Whatever is not finite counts as infinitely bad: at first, in between, and for patience."""
    model, fast, batches = tuned_from()
    tune = {"teacher": model, "batches": batches, "steps": 5, "look_every": 1, "return_report": True}
    found = [math.nan, 3.0, -math.inf, 2.0, 4.0, math.inf]
    monkeypatch.setattr(Run, "_losses", lambda self, model, batches: [found[self.calls]])
    counts = iter(range(100))
    monkeypatch.setattr(Run, "calls", property(lambda self: next(counts)), raising=False)
    _, report = finetune(fast, **tune)
    assert [loss for _, loss in report.looks] == [math.inf, 3.0, math.inf, 2.0, 4.0, math.inf]
    assert (report.best_step, report.after) == (3, 2.0)
    found = [math.nan] * 6
    counts = iter(range(100))
    with pytest.raises(ValueError, match="`loss` was no finite number"):
        finetune(fast, **tune)


def test_masked_outputs_are_tuned_and_a_nan_is_located():
    model, fast, batches = tuned_from()
    tune = {"teacher": model, "steps": 4, "look_every": 2, "return_report": True}
    _, report = finetune(fast, batches=batches, **tune)
    assert all(math.isfinite(loss) for _, loss in report.looks)
    broken = batches[1].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="Held-out batch 1 has 1 entries that are NaN"):
        finetune(fast, batches=batches[2:], held_out=[batches[0], broken], **tune)
    with pytest.raises(ValueError, match=r"training batch of step . has 1 entries that are NaN"):
        finetune(fast, batches=[broken, *batches[2:4]], held_out=batches[:1], **tune)
    with pytest.raises(ValueError, match="`teacher` itself on held-out batch 0 is nan"):
        finetune(fast, batches=batches, loss=lambda y, z, b: jnp.square(y - z).mean(), **tune)
