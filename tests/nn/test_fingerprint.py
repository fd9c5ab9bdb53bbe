"""Runs are resumed with what they began with, and with nothing else; the message says what differs."""

import dataclasses
import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_maddness import FitConfig, Plan, Rule, finetune, plan, replace
from jax_maddness.learn.progress import Progress
from jax_maddness.nn import fingerprint
from jax_maddness.nn.calibrate import learn_unit
from jax_maddness.nn.models.model import adapt, layers_of
from jax_maddness.nn.planning import measure
from jax_maddness.nn.planning.record import WEIGHTS
from jax_maddness.nn.planning.verdict import LayerPlan
from jax_maddness.nn.tuning import losses
from jax_maddness.nn.units import units

RULE = Rule("body", num_codebooks=4, config=FitConfig("paper"))


class Model(nnx.Module):
    """A layer that is replaced, and a head."""

    def __init__(self, seed, activation=nnx.relu):
        rngs = nnx.Rngs(seed)
        self.body, self.head = nnx.Linear(8, 128, rngs=rngs), nnx.Linear(128, 4, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        return self.head(self.activation(self.body(x)))


@functools.cache
def batches():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((64, 2)) @ rng.standard_normal((2, 8)), jnp.float32) for _ in range(12)]


@functools.cache
def replaced(seed):
    return replace(Model(seed), RULE, batches()[:1])


def int8_plan(model):
    """A plan for `model` that replaces its body by an int8 product, which it holds."""
    (body, *_) = units([(layers_of(adapt(model), batches()[0])[0], Rule("body", product="int8"))])
    lines = (
        LayerPlan("body", ("body",), "Linear", (8, 128), 64, choice=0, by="int8"),
        LayerPlan("head", ("head",), "Linear", (128, 4), 64),
    )
    return Plan(
        lines,
        0.01,
        "metric",
        "machine",
        2.0,
        1.0,
        how={"body": {"config": dataclasses.asdict(FitConfig("paper"))}},
        fingerprint={WEIGHTS: fingerprint.of_arrays(adapt(model).weights())},
        learned={("body", "int8", 0): learn_unit(body, [np.ones((2, 1, 8))], False, Progress(False))},
        example=jax.ShapeDtypeStruct((64, 8), jnp.float32),
    )


def test_a_plan_serves_models_with_other_weights_only_where_ops_can_be_learned_anew(tmp_path):
    plan, x = int8_plan(Model(0)), batches()[0]

    def same(fast, other):
        jax.tree.map(np.testing.assert_array_equal, nnx.state(fast), nnx.state(other))

    direct = replace(Model(1), Rule("body", product="int8"), [x])
    same(replace(Model(0), plan), replace(Model(0), Rule("body", product="int8"), [x]))
    with pytest.raises(ValueError, match="a model with other weights, and the ops that it holds would be wrong"):
        replace(Model(1), plan)
    plan.to_json(tmp_path / "plan.json")
    for given in (plan, Plan.from_json(tmp_path / "plan.json")):
        with pytest.warns(UserWarning, match="other weights: its choices are taken, and ops are learned anew"):
            same(replace(Model(1), given, [x]), direct)
    plan.fingerprint = {}  # as of an earlier version, which cannot tell
    same(replace(Model(0), plan), replace(Model(0), Rule("body", product="int8"), [x]))


def test_random_states_are_no_weights():
    dropout = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    before = fingerprint.of_arrays(adapt(dropout).weights())
    dropout(jnp.ones((1, 2)))
    assert fingerprint.of_arrays(adapt(dropout).weights()) == before


def damaged(field, value):
    def change(fields):
        fields[field] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        damaged("layers", [{}]),
        damaged("how", {}),
        damaged("how", {"body": {"config": {"method": "none"}}}),
        damaged("max_drop", "1%"),
        damaged("exact_ms", [1]),
        damaged("fast_ms", 0),
        damaged("fingerprint", {"a": 1}),
        damaged("trials", [{"replaced": [], "speedup": "a", "drop": 0}]),
        damaged("other", 1),
        lambda fields: fields["layers"][0].update(shape=["a", 2]),
        lambda fields: fields["layers"][0].update(by="int4"),
    ],
)
def test_a_damaged_plan_is_refused(tmp_path, change):
    int8_plan(Model(0)).to_json(tmp_path / "plan.json")
    fields = json.loads((tmp_path / "plan.json").read_text())
    change(fields)
    (tmp_path / "plan.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="is a damaged plan"):
        Plan.from_json(tmp_path / "plan.json")


def test_paths_of_plans_are_files(tmp_path):
    plan = int8_plan(Model(0))
    for call in (plan.to_json, plan.html, Plan.from_json):
        with pytest.raises(ValueError, match="folder"):
            call(tmp_path)
        with pytest.raises(TypeError, match="`path`"):
            call(None)
    with pytest.raises(FileNotFoundError):
        Plan.from_json(tmp_path / "none")
    plan.html(tmp_path / "plan.html")
    assert os.listdir(tmp_path) == ["plan.html"]


def altered(place):
    changed = [np.array(x) for x in batches()]
    changed[place][-1, -1] += 1
    return changed


def test_a_run_of_finetune_is_resumed_only_with_what_it_began_with(tmp_path):
    scale = np.ones(4, np.float32)

    def loss(y, wanted, batch):
        return losses.nmse(y * scale, wanted * scale)

    tune = {"teacher": Model(0), "batches": batches(), "steps": 2, "look_every": 1, "held_out": 2, "loss": loss}
    run = functools.partial(finetune, checkpoint=tmp_path / "run")
    tuned = run(replaced(0), **tune)
    again = run(replaced(0), **{**tune, "teacher": Model(0), "batches": [np.array(x) for x in batches()]})
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(tuned))
    other_scale = functools.partial(lambda scale, y, z, b: losses.nmse(y * scale, z * scale), np.float32([1, 2, 1, 1]))
    for changed, words in [
        ({"teacher": Model(1)}, "weights of `teacher`"),
        ({"teacher": Model(0, nnx.gelu)}, "code of `teacher`"),
        ({"batches": altered(0)}, "held-out batches"),
        ({"batches": altered(11)}, "`batches`"),
        ({"batches": batches()[:-1]}, "`batches`"),
        ({"loss": "nmse"}, "`loss`"),
        ({"loss": other_scale}, "`loss`"),
        ({"steps": 4}, r"`steps` \(2 there, 4 here\)"),
        ({"seed": 1}, "`seed`"),
        ({"call": lambda model, x: model(2 * x)}, "code of `model`"),
    ]:
        with pytest.raises(ValueError, match=f"another run, with other: .*{words}"):
            run(replaced(0), **{**tune, **changed})
    with pytest.raises(ValueError, match=r"another run, with other: .*weights of `model`"):
        run(replaced(1), **{**tune, "teacher": Model(1)})
    jax.tree.map(np.testing.assert_array_equal, nnx.state(run(replaced(0), **tune)), nnx.state(tuned))  # nothing lost


def test_a_plan_goes_on_only_with_what_it_was_measured_with(tmp_path, monkeypatch):
    monkeypatch.setattr(
        measure, "interleaved", lambda calls, seconds=0: [(float(len(calls) - i), 0.01) for i in range(len(calls))]
    )
    calls, path = [], tmp_path / "plan.json"

    def metric_of(weights):
        def metric(y, batch):
            calls.append(0)
            return float(np.square(np.asarray(y) * weights).mean())

        return metric

    arguments = {"metric": metric_of(np.ones(4)), "max_drop": 100.0, "path": path, "products": ["codes"]}
    plan(Model(0), batches(), RULE, **arguments, max_seconds=0)
    found = plan(Model(0), batches(), RULE, **arguments)  # more time
    assert found.replaced
    before = len(calls)
    assert plan(Model(0), batches(), RULE, **{**arguments, "metric": metric_of(np.ones(4))}) == found
    assert len(calls) == before
    assert not plan(Model(0), batches(), RULE, **{**arguments, "max_drop": 0.0}).replaced
    written = path.read_text()
    for model, data, changed, words in [
        (Model(1), batches(), {}, "weights of `model`"),
        (Model(0, nnx.gelu), batches(), {}, "code of `model`"),
        (Model(0), altered(0), {}, "`batches`"),
        (Model(0), batches(), {"metric": metric_of(np.zeros(4))}, "`metric`"),
        (Model(0), batches(), {"max_rows": 99}, r"`max_rows` \(16384 there, 99 here\)"),
    ]:
        with pytest.raises(ValueError, match=f"another model, or made otherwise: .*{words}"):
            plan(model, data, RULE, **{**arguments, **changed})
    assert path.read_text() == written
    old = json.loads(written) | {"version": 3}
    del old["fingerprint"]
    path.write_text(json.dumps(old))
    with pytest.raises(ValueError, match="of an earlier version"):
        plan(Model(0), batches(), RULE, **arguments)
    assert Plan.from_json(path).replaced == Plan.from_json(path).layers[:0]  # the last one was stricter
    path.write_text(json.dumps({**json.loads(written), "layers": 3}))
    with pytest.raises(ValueError, match="damaged plan"):
        plan(Model(0), batches(), RULE, **arguments)


LABELS = np.arange(3)


def helper(y):
    return y + 1


def module_metric(y, batch):
    return (helper(y) == LABELS).mean()


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A metric with a parameter."""

    weight: float

    def __call__(self, y, batch):
        return self.weight * y.mean()


def test_functions_are_told_apart_by_what_they_compute(monkeypatch):
    def of(number, text="a"):
        count, constant = 0, number

        def metric(y, batch, scale=number):
            nonlocal count
            count += 1
            return [y * constant], text, scale

        return metric

    same = [of(1), of(1)]
    same[0](1, 1)  # counts
    different = [of(1), of(2), of(1, "b"), Weighted(1.0), Weighted(2.0), np.mean, np.sum, functools.partial(of(1), 3)]
    prints = [fingerprint.of_function(one) for one in different]
    assert len(set(prints)) == len(prints)
    assert len({fingerprint.of_function(one) for one in same}) == 1
    assert fingerprint.of_function(Weighted(2.0)) == prints[4]
    before = fingerprint.of_function(module_metric)
    assert fingerprint.of_function(jax.jit(module_metric)) != ""
    monkeypatch.setitem(module_metric.__globals__, "helper", lambda y: y + 2)
    after = fingerprint.of_function(module_metric)
    monkeypatch.setitem(module_metric.__globals__, "LABELS", np.arange(3) + 1)
    assert len({before, after, fingerprint.of_function(module_metric)}) == 3


def test_programs_are_told_apart_by_their_constants(rng):
    table = rng.standard_normal(50).astype(np.float32)
    other = table.copy()
    other[7] += 1

    def of(table):
        inner = jax.jit(lambda x: x + jnp.asarray(table))
        return fingerprint.of_program(lambda x: jax.lax.scan(lambda c, _: (inner(c), None), x, None, 2)[0], table)[0]

    assert of(table) == of(table.copy()) != of(other)
    key = jax.random.key(0)
    arrays = {"key": key, "a": table, "empty": np.zeros((0, 3)), "half": jnp.ones(3, jnp.bfloat16), "n": 3}
    assert fingerprint.of_arrays(arrays) == fingerprint.of_arrays(dict(reversed(arrays.items())))
    changed = {"key": jax.random.key(1), "a": other, "empty": np.zeros((0, 2)), "half": jnp.ones(3), "n": 4}
    assert len({fingerprint.of_arrays(arrays | {name: a}) for name, a in changed.items()}) == len(changed)
