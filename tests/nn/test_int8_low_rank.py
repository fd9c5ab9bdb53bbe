"""int8 and low rank in place of layers: against the same by hand, in nnx and linen; saved, tuned beside look-ups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.ops import random_op

from jax_maddness import Rule, finetune, load_model, prune_unused_outputs, replace, save_model
from jax_maddness.nn import calibrate
from jax_maddness.nn.layers.int8_low_rank import int8_dynamic, low_rank, to_int8


class Model(nnx.Module):
    """A convolution, attention, a dense layer."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(3, 8, 3, strides=2, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, deterministic=True, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(nnx.relu(self.conv(x))))


class LinenModel(nn.Module):
    """The same layers in linen."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3,), strides=2, name="conv")(x))
        return nn.Dense(5, name="head")(nn.MultiHeadDotProductAttention(2, name="attention")(x))


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).standard_normal((4, 12, 3)), jnp.float32)


@pytest.fixture(scope="module")
def models(x):
    return {"nnx": Model(rngs=nnx.Rngs(0)), "linen": (LinenModel(), jax.jit(LinenModel().init)(jax.random.key(0), x))}


def run(model, x):
    return jax.jit(lambda x: model(x) if isinstance(model, nnx.Module) else model[0].apply(model[1], x))(x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_a_whole_model_in_int8_says_nearly_the_same(models, x, kind):
    fast, exact = replace(models[kind], Rule(".*", product="int8"), [x]), run(models[kind], x)
    error = float(jnp.sum((run(fast, x) - exact) ** 2) / jnp.sum((exact - exact.mean((0, 1))) ** 2))
    assert 0 < error < 1e-3


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_a_model_in_full_rank_says_the_same(models, x, kind):
    fast = replace(models[kind], Rule(".*", product="low rank", rank=100), [x])
    np.testing.assert_allclose(run(fast, x), run(models[kind], x), rtol=1e-3, atol=1e-4)


def test_layers_are_the_products_by_hand(models, x):
    model, y = models["nnx"], jnp.ones((6, 8))
    rules = [Rule("head", product="low rank", rank=2), Rule("conv", product="int8")]
    fast = replace(model, rules, [x])
    w, bias = np.asarray(model.head.kernel[...]), np.asarray(model.head.bias[...])
    seen = np.asarray(model.attention(nnx.relu(model.conv(x)))).reshape(-1, 8)
    down, up, offset = low_rank(seen, w, 2)
    np.testing.assert_allclose(fast.head(y), y @ down @ up + offset + bias, rtol=1e-4, atol=1e-5)
    patches = jnp.stack([jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, tap : tap + 11 : 2] for tap in range(3)], 2)
    by_hand = int8_dynamic(patches.reshape(4, 6, 9), *map(jnp.asarray, to_int8(model.conv.kernel[...].reshape(9, 8))))
    np.testing.assert_allclose(fast.conv(x), by_hand + model.conv.bias[...], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "settings"),
    [
        (4, {}),
        (8, {"strides": 2, "kernel_dilation": (1, 2)}),
        (4, {"padding": "CIRCULAR", "dtype": jnp.bfloat16}),
        (5, {"kernel_size": (1, 1), "feature_group_count": 1, "strides": 2}),
    ],
)
def test_depthwise_and_1x1_convolutions_are_rewritten(rng, outputs, settings, tmp_path):
    x = jnp.asarray(rng.standard_normal((2, 9, 7, 4)), jnp.float32)
    settings = {"kernel_size": (3, 2), "feature_group_count": 4, **settings}
    model = nnx.Conv(4, outputs, rngs=nnx.Rngs(0), **settings)
    model.bias[...] = rng.standard_normal(outputs)
    fast = replace(model, Rule("", product="rewritten"), [x])
    y, exact = (run(m, x) for m in (fast, model))
    assert y.dtype == exact.dtype
    save_model(tmp_path / "model", fast)
    np.testing.assert_array_equal(run(load_model(tmp_path / "model", model), x), y)
    tolerance = 1e-5 if y.dtype == jnp.float32 else 2e-2  # bfloat16 has 8 bits
    np.testing.assert_allclose(*(a.astype(jnp.float32) for a in (y, exact)), rtol=tolerance, atol=tolerance)


def test_only_depthwise_convolutions_have_shifted_products(models, x):
    with pytest.raises(ValueError, match="'conv' is no depthwise or 1x1 convolution"):
        replace(models["nnx"], Rule("conv", product="rewritten"), [x])


@pytest.mark.slow
def test_gradients_pass_int8(models, x):
    fast = replace(models["nnx"], Rule("head", product="int8"), [x])
    found, exact = (jax.grad(lambda x, m=m: (m(x) ** 2).sum())(x) for m in (fast, models["nnx"]))
    np.testing.assert_allclose(found, exact, rtol=0.1, atol=0.02 * float(jnp.abs(exact).max()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_beside_look_ups_they_are_saved_and_tuned(monkeypatch, rng, tmp_path, models, x, kind):
    monkeypatch.setattr(calibrate, "learn", lambda rows, w, bias, c, *_: random_op(rng, len(w), c, len(bias)))
    rules = [Rule("head", num_codebooks=2), Rule("conv", product="int8"), Rule(".*", product="low rank", rank=4)]
    fast = replace(models[kind], rules, [x])
    save_model(tmp_path / "model", fast)
    again = load_model(tmp_path / "model", models["nnx"] if kind == "nnx" else LinenModel())
    np.testing.assert_array_equal(run(again, x), run(fast, x))
    _, report = finetune(fast, teacher=models[kind], batches=[x, x + 1], steps=2, look_every=1, return_report=True)
    assert list(report.layers) == ["head"]
    with pytest.raises(ValueError, match="it is a product, in int8"):
        prune_unused_outputs(fast, x)


def test_what_is_not_known_is_refused(x):
    grouped = nnx.Conv(4, 6, 3, feature_group_count=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="several groups"):
        replace(grouped, Rule(".*", product="int8"), [jnp.ones((2, 5, 4))])
    for options in ({"product": "int4"}, {"rank": 0}, {"product": "int8", "num_candidates": 1}):
        with pytest.raises(ValueError, match=r"product|rank"):
            Rule(".*", **options)
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    fast = replace(model, Rule(".*", product="int8"), [x])
    with pytest.raises(ValueError, match="nothing to tune"):
        finetune(fast, teacher=model, batches=[x, x])
