"""replace: every kind of layer in nnx and linen is `amm` by hand; what is learned plays no part, so ops are random."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.ops import random_op

from jax_maddness import FitConfig, Rule, amm, capture, replace
from jax_maddness.nn import calibrate
from jax_maddness.nn.models.nnx_modules import Approximate, Table

ALL = [Rule(".*", num_codebooks=3)]


@pytest.fixture
def made(monkeypatch, rng):
    """The random ops that stand for learned ones, in order."""
    ops = []

    def learn(rows, w, bias, num_codebooks, config, bar):
        assert rows.num_features == len(w)
        ops.append(random_op(rng, len(w), num_codebooks, len(bias)))
        return ops[-1]

    monkeypatch.setattr(calibrate, "learn", learn)
    return ops


class Body(nnx.Module):
    """Layers as attributes, in lists, in a Sequential, one of them in two places."""

    def __init__(self, rngs):
        self.first = nnx.Sequential(nnx.Linear(6, 8, rngs=rngs), nnx.relu)
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs), nnx.LinearGeneral(8, (2, 4), rngs=rngs)])
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.again = self.blocks[0]
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.blocks[0](self.first(x))
        x = self.blocks[1](x).reshape(*x.shape[:-1], 8)
        return self.head(self.again(self.attention(x)))


class LinenBody(nn.Module):
    """The same in linen, one of its layers in a module that is rematerialised."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, name="first")(x))
        shared = nn.remat(nn.Dense)(8, name="block")
        x = nn.DenseGeneral((2, 4), name="general")(shared(x)).reshape(*x.shape[:-1], 8)
        return nn.Dense(3, name="head")(shared(nn.MultiHeadDotProductAttention(2, name="attention")(x)))


def models(rng):
    x = jnp.asarray(rng.standard_normal((4, 5, 6)), jnp.float32)
    module = LinenBody()
    return x, Body(nnx.Rngs(0)), (module, jax.jit(module.init)(jax.random.key(0), x))


def run(model, x):
    return model(x) if isinstance(model, nnx.Module) else model[0].apply(model[1], x)


def assert_same(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-5)


@jax.jit
def by_hand(x, first, block, general, qkv, out, head):
    y = amm(amm(jax.nn.relu(amm(x, first)), block), general)
    q, k, v = (part.reshape(*x.shape[:2], 2, 4) for part in jnp.split(amm(y, qkv), 3, -1))
    y = nn.dot_product_attention(q, k, v).reshape(y.shape)
    return amm(amm(amm(y, out), block), head)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_a_model_of_look_ups_is_what_amm_says(made, rng, kind):
    x, in_nnx, in_linen = models(rng)
    model = in_nnx if kind == "nnx" else in_linen
    before = run(model, x)
    fast = replace(model, ALL, [x])
    assert_same(run(fast, x), by_hand(x, *made))
    compiled = nnx.jit(run) if kind == "nnx" else jax.jit(lambda fast, x: run((in_fast, fast), x))
    in_fast, given = (None, fast) if kind == "nnx" else fast
    assert_same(compiled(given, x), by_hand(x, *made))
    np.testing.assert_array_equal(run(model, x), before)  # the original is what it was
    weights = nnx.state(fast, nnx.Param) if kind == "nnx" else fast[1].get("params", {})
    assert not jax.tree.leaves(weights)


def test_layers_with_the_same_input_encode_it_once(made, rng):
    x, in_nnx, in_linen = models(rng)
    rules = [Rule(".*attention/(query|key|value)", num_codebooks=3)]
    module, variables = replace(in_linen, rules, [x])
    fast = replace(in_nnx, rules, [x])
    for compiled in (
        jax.jit(module.apply).lower(variables, x).compile(),
        jax.jit(lambda s, x: nnx.merge(nnx.graphdef(fast), s)(x)).lower(nnx.state(fast), x).compile(),
    ):
        assert compiled.as_text().count('custom_call_target="jax_maddness') == 1
    apart = replace(in_linen, [Rule(rules[0].pattern, num_codebooks=3, share=False)], [x])
    text = jax.jit(apart[0].apply).lower(apart[1], x).compile().as_text()
    assert text.count('custom_call_target="jax_maddness') == 3


def test_the_first_rule_decides_and_unused_ones_are_reported(made, rng):
    x, model, _ = models(rng)
    rules = [Rule("head", skip=True), Rule("blocks/.*", num_codebooks=2), Rule("tail.*"), Rule("first/.*|head")]
    diff = replace(model, rules, [x], dry_run=True)
    assert [c.path for c in diff.replaced] == ["first/layers/0", "again", "blocks/1"]  # "again" is "blocks/0", too
    assert [c.size for c in diff.replaced] == [1, 2, 2]
    assert diff.unused == ("tail.*",)
    reasons = {c.path: c.reason for c in diff.changes}
    assert (reasons["head"], reasons["attention/out"]) == ("skipped by 'head'", "no rule matches")
    assert "tail" in str(diff)
    assert not made
    with pytest.warns(UserWarning, match="tail"):
        fast = replace(model, rules, [x])
    assert isinstance(fast.blocks[0], Approximate)
    assert fast.again is fast.blocks[0]
    assert isinstance(fast.head, nnx.Linear)
    assert isinstance(model.blocks[0], nnx.Linear)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_gradients_pass_where_weights_are_kept(made, rng, kind):
    x, *both = models(rng)
    model = both[kind == "linen"]
    fast = replace(model, [Rule("head", num_codebooks=3)], [x], keep_weights=True)
    op = fast.head.tables.arrays if kind == "nnx" else fast[1]["maddness"]["head"]["op"]
    kernel = model.head.kernel[...] if kind == "nnx" else model[1]["params"]["head"]["kernel"]
    np.testing.assert_array_equal(op["weights"][...], kernel)
    below = replace(model, [Rule("head", num_codebooks=3)], [x])
    dx = jax.grad(lambda x: run(fast, x).sum())(x)
    np.testing.assert_allclose(dx, jax.grad(lambda x: run(model, x).sum())(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="keep_weights"):
        jax.grad(lambda x: run(below, x).sum())(x)


def test_bfloat16_layers_stay_bfloat16(made, rng):
    x = jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)
    model = nnx.Linear(6, 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    fast = replace(model, ALL, [x])
    assert fast(x).dtype == model(x).dtype == jnp.bfloat16
    assert_same(fast(x).astype(float), amm(x.astype(jnp.bfloat16), made[0]).astype(float))


def test_arrays_of_ops_are_no_parameters(made, rng):
    x, model, _ = models(rng)
    fast = replace(model, ALL, [x])
    assert {type(v) for v in jax.tree.leaves(nnx.state(fast), is_leaf=lambda v: isinstance(v, nnx.Variable))} == {Table}


@pytest.mark.slow
def test_sharded_batches_give_the_same_answer(made, rng):
    x, model, _ = models(rng)
    fast = replace(model, ALL, [x])
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")))
    compiled = nnx.jit(run)
    assert_same(compiled(fast, sharded), compiled(fast, x))
    found = capture(model, [sharded], ALL)
    np.testing.assert_allclose(found.rows["first/layers/0"][0][:, 0], x.reshape(-1, 6))


@pytest.mark.slow
def test_each_layer_corrects_the_errors_before_it(rng):
    """Learned, not random: on rows held out the model is closer to the exact one than with independent layers."""
    x = jnp.asarray(rng.standard_normal((3000, 3)) @ rng.standard_normal((3, 8)), jnp.float32)
    model = nnx.Sequential(*(nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(i)), nnx.tanh) for i in range(3)))
    exact, rules = nnx.jit(run)(model, x[2000:]), Rule(".*", num_codebooks=1, config=FitConfig("paper"))
    found = capture(model, [x[:1000], x[1000:2000]], rules)
    errors = {}
    for how in ("independent", "prefix"):
        fast = replace(model, rules, [x[:1000], x[1000:2000]], calibrate=how, captured=found)
        errors[how] = float(jnp.mean((nnx.jit(run)(fast, x[2000:]) - exact) ** 2))
    assert errors["prefix"] < 0.9 * errors["independent"]
    assert errors["independent"] < float(jnp.var(exact))


def test_bad_input_is_refused_before_anything_is_done(made, rng):
    x, model, in_linen = models(rng)
    with pytest.raises(TypeError, match=r"Pass `\(module, variables\)`"):
        replace(in_linen[0], ALL, [x])
    with pytest.raises(TypeError, match="'params'"):
        replace((in_linen[0], {}), ALL, [x])
    with pytest.raises(ValueError, match="`calibrate` is 'both'"):
        replace(model, ALL, [x], calibrate="both")
    with pytest.raises(ValueError, match="several times"):
        replace(model, ALL, iter([x]), calibrate="prefix")
    with pytest.raises(ValueError, match="`captured` has none for 'first/layers/0'"):
        replace(model, ALL, [x], captured=capture(model, [x], Rule("head")))
    with pytest.raises(ValueError, match="`rules` is empty"):
        replace(model, [], [x])
    with pytest.raises(ValueError, match="not a regular expression"):
        Rule("*")
    assert not made


def test_without_flax_the_error_says_what_to_install():
    code = "import sys; sys.modules['flax'] = None; import jax_maddness; jax_maddness.replace"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'jax_maddness[flax]'" in done.stderr
