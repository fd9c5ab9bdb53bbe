"""plan: tiny models of nnx and linen from end to end."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.layer_plans import line
from helpers.ops import random_op

from jax_maddness import FitConfig, Plan, Rule, capture, plan, replace
from jax_maddness.nn import unit_rows
from jax_maddness.nn.capture import record
from jax_maddness.nn.layers import int8_low_rank as products
from jax_maddness.nn.models.model import adapt, layers_of
from jax_maddness.nn.planning import measure, verdict
from jax_maddness.nn.replacement import CodesReplacement, with_replacements
from jax_maddness.nn.rules import decide
from jax_maddness.nn.units import units

RULES = [Rule("wide", config=FitConfig("paper")), Rule("head", skip=True)]


def test_low_rank_of_full_rank_is_exact_and_int8_nearly(rng):
    x, w = np.float32(rng.standard_normal((200, 8)) + 3), np.float32(rng.standard_normal((8, 5)))
    down, up, offset = products.low_rank(x, w, 5)
    assert measure.nmse(x @ down @ up + offset, x @ w) < 1e-9
    assert 0 < measure.nmse(np.asarray(products.int8_dynamic(x, *products.to_int8(w))), x @ w) < 1e-3


class Nnx(nnx.Module):
    """A wide layer, which codes make faster, and a small head."""

    def __init__(self, width=128):
        rngs = nnx.Rngs(0)
        self.wide = nnx.Linear(width, 1024, rngs=rngs)
        self.head = nnx.Linear(1024, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.wide(x)))


class Linen(nn.Module):
    """The same in linen."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(nn.relu(nn.Dense(1024, name="wide")(x)))


@pytest.fixture(scope="module")
def batches():
    """The same in all tests, so that what is measured is compiled once."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((4, 128))
    return [jnp.asarray(rng.standard_normal((512, 4)) @ factors, jnp.float32) for _ in range(3)]


@pytest.fixture
def steady(monkeypatch):
    """Times of a machine on which look-ups take a fifth, int8 and others are of no use, and later models are faster."""

    def times(units, replacements, seconds=0):
        codes = (isinstance(replacement, CodesReplacement) for _, replacement in replacements)
        return [(5.0, 0.01)] * len(units) + [(1.0 if fast else 5.0, 0.01) for fast in codes]

    monkeypatch.setattr(measure, "times", times)
    monkeypatch.setattr(
        measure, "interleaved", lambda calls, seconds=0: [(5.0 / (4 * i + 1), 0.0) for i in range(len(calls))]
    )


CODES = ("codes",)


def model_of(kind, batch):
    if kind == "nnx":
        model = Nnx()
        return model, model
    module = Linen()
    variables = jax.jit(module.init)(jax.random.key(0), batch)
    return (module, variables), jax.jit(lambda x: module.apply(variables, x))


def run(model, x):
    return jax.jit(model if isinstance(model, nnx.Module) else lambda x: model[0].apply(model[1], x))(x)


@pytest.mark.parametrize(("conv", "groups"), [("shared", 1), ("patches", 1), ("shared", 2)])
def test_the_error_of_a_convolution_is_that_of_what_replaces_it(conv, groups, rng):
    layer = nnx.Conv(4, 6, (3, 2), strides=2, feature_group_count=groups, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.standard_normal((16, 8, 8, 4)), jnp.float32)
    (unit,) = units(decide(layers_of(adapt(layer), x), [Rule("")]))
    shared, features = conv == "shared", 4 // groups
    ops = [random_op(rng, features * 6, 12, 6 // groups) for _ in range(groups)]
    if shared:  # trees for one position, tables for all taps
        ops = [dataclasses.replace(op, trees=random_op(rng, features, 2, 1).trees) for op in ops]
    op = jax.tree.map(lambda *a: jnp.stack(a), *ops) if groups > 1 else ops[0]
    replacement = CodesReplacement(op, shared)
    y, exact = (
        np.asarray(m(x)).reshape(-1, 6) for m in (with_replacements(adapt(layer), [unit], [replacement]).model, layer)
    )
    rows = capture(layer, [x], Rule("")).rows[""]
    assert measure.error_of(unit, replacement, rows) == pytest.approx(measure.nmse(y, exact), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_a_plan_is_measured_written_and_applied(kind, batches, steady, tmp_path):
    model, exact = model_of(kind, batches[0])
    found = plan(model, batches, RULES, max_drop=0.5, ratios=(32,), products=CODES, path=tmp_path / "plan.json")
    assert {line.name: line.choice for line in found.layers} == {"wide": 4, "head": None}
    assert found.finished
    fast = replace(model, found)
    y, wanted = run(fast, batches[-1]), exact(batches[-1])
    assert -found.after == pytest.approx(
        float(jnp.sum((y - wanted) ** 2) / jnp.sum((wanted - wanted.mean()) ** 2)), 1e-3
    )
    printed = str(found)
    assert "skipped by 'head'" in printed
    assert "measured 5.00x" in printed
    again = Plan.from_json(tmp_path / "plan.json")
    assert again == found
    with pytest.raises(ValueError, match="Pass inputs of the model"):
        replace(model, again)
    assert run(replace(model, again, batches), batches[0]).shape == wanted.shape


def test_a_plan_of_version_2_says_in_words_what_the_time_did_not_allow(tmp_path):
    late = dataclasses.replace(line(), options=(), unmeasured=True)
    lines = [verdict.decided(late, None, 0.01), line((4, 5.0, 0.1, 0.0))]
    written = Plan((lines[0], dataclasses.replace(lines[1], name="other")), 0.01, "metric", "machine")
    written.to_json(tmp_path / "plan.json")
    old = json.loads((tmp_path / "plan.json").read_text()) | {"version": 2}
    for layer in old["layers"]:
        del layer["unmeasured"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    read = Plan.from_json(tmp_path / "old.json")
    assert [layer.unmeasured for layer in read.layers] == [True, False]
    assert read == Plan.from_json(tmp_path / "plan.json") == written


@pytest.mark.slow
def test_a_scan_is_planned_as_a_whole(steady, rng):
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(64, 64, rngs=rngs)

        def __call__(self, x):
            return x + self.dense(x)

    class Stack(nnx.Module):
        def __init__(self):
            self.blocks = nnx.split_rngs(splits=2)(nnx.vmap(Block, in_axes=(0,), out_axes=0))(nnx.Rngs(0))

        def __call__(self, x):
            return nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)

    data = [jnp.asarray(rng.standard_normal((256, 64)), jnp.float32) for _ in range(2)]
    model = Stack()
    found = plan(model, data, Rule(".*", config=FitConfig("paper")), max_drop=5, ratios=(16,), products=CODES)
    assert found.layers[0].exact.ms == 2 * 5.0
    fast = replace(model, found, keep_weights=True)
    kept = fast.blocks.dense.tables.arrays["weights"][...]
    np.testing.assert_array_equal(kept, model.blocks.dense.kernel[...])
    assert -found.after == pytest.approx(measure.nmse(fast(data[1]).reshape(-1), model(data[1]).reshape(-1)), rel=1e-3)


def test_a_look_takes_no_metric_and_tries_nothing(batches, tmp_path):
    path, model = tmp_path / "plan.json", Nnx()
    found = plan(model, batches, RULES, only_look=True, path=path, metric=lambda y, batch: 1 / 0)
    assert found.only_look
    assert not path.exists()
    assert found.share(found.layers[0]) > 0
    assert "of the model's time" in found.layers[0].words
    assert "At most" in str(found).splitlines()[0]
    assert replace(model, found) is model


def test_depthwise_convolutions_are_rewritten_at_no_cost(steady, monkeypatch, rng):
    monkeypatch.setattr(measure, "times", lambda units, others: [(5.0, 0.0)] * len(units) + [(1.0, 0.0)] * len(others))
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Conv(4, 4, (3,), feature_group_count=4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs))
    data = [jnp.asarray(rng.standard_normal((2, 8, 4)), jnp.float32) for _ in range(2)]
    found = plan(model, data, Rule("layers/0"), max_drop=1e-9)
    (line,) = found.replaced
    assert line.words == "replaced, rewritten exactly: 5.0x"
    assert line.chosen.nmse < 1e-12
    np.testing.assert_allclose(replace(model, found)(data[0]), model(data[0]), rtol=1e-4, atol=1e-5)


def test_rows_after_a_depthwise_convolution_are_those_of_the_exact_model(steady, monkeypatch, rng):
    """They are captured from the model with the convolution rewritten, which is faster; of its own, few are."""
    captured = []

    def recorded(*args, **settings):
        captured.append(record(*args, **settings))
        return captured[-1]

    monkeypatch.setattr(unit_rows, "record", recorded)
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Conv(4, 4, (3,), feature_group_count=4, rngs=rngs), nnx.Linear(4, 16, rngs=rngs))
    data = [jnp.asarray(rng.standard_normal((2, 100, 4)), jnp.float32) for _ in range(3)]
    plan(model, data, Rule(".*"), max_drop=1e-9, products=["int8", "rewritten"])
    learned, compared = captured
    rows = [np.asarray(model.layers[0](x)).reshape(-1, 4) for x in data[:2]]
    np.testing.assert_allclose(learned.rows["layers/1"][0][:, 0], np.concatenate(rows), rtol=1e-5, atol=1e-5)
    assert {path: len(own[0]) for path, own in compared.rows.items()} == {"layers/0": 64}


@pytest.mark.slow
def test_real_times_are_positive_and_a_drop_is_kept_to(batches):
    found = plan(Nnx(), batches, RULES, metric=lambda y, x: -jnp.abs(y).mean() * 0, ratios=(32,))
    assert all(option.ms > 0 for option in found.layers[0].options)
    assert {option.kind for option in found.layers[0].options} == {"exact", "int8", "low rank", "factors", "codes"}
    assert found.before == found.after == 0


def test_plans_for_other_models_are_refused(batches, steady, tmp_path):
    path = tmp_path / "plan.json"
    found = plan(Nnx(), batches, RULES, max_drop=0.5, ratios=(32,), products=CODES, path=path)
    narrow = [batch[:, :64] for batch in batches]
    with pytest.raises(ValueError, match="another model"):
        plan(Nnx(64), narrow, RULES, max_drop=0.5, ratios=(32,), products=CODES, path=path)
    with pytest.raises(ValueError, match="another model"):
        replace(Nnx(64), found, narrow)
    with pytest.raises(ValueError, match="another model"):
        replace(nnx.Sequential(Nnx()), found, batches)


def test_bad_input(batches, tmp_path):
    with pytest.raises(ValueError, match="nothing was done"):
        plan(Nnx(), batches, Rule("tail"))
    with pytest.raises(ValueError, match="`batches` is empty"):
        plan(Nnx(), [], RULES)
    with pytest.raises(ValueError, match="`metric` returned"):
        plan(Nnx(), batches, RULES, ratios=(32,), metric=lambda y, x: y)
    with pytest.raises(ValueError, match="has a loss"):
        plan(Nnx(), batches, Rule("wide", config=FitConfig("oblique", loss=lambda y, exact: ((y - exact) ** 2).mean())))
    with pytest.raises(ValueError, match="`max_drop`"):
        plan(Nnx(), batches, RULES, max_drop=-1)
    (tmp_path / "other.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="was not written by"):
        Plan.from_json(tmp_path / "other.json")
