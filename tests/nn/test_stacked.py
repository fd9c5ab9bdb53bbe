"""Ops that are stacked (groups, scans) or shared (taps, query, key and value): on the prefix, and tuned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jax_maddness import FitConfig, Rule, capture, finetune, replace
from jax_maddness.nn import Term
from jax_maddness.nn.tuning import losses

FEATURES = 4


class Convolutions(nnx.Module):
    """Two convolutions over six positions."""

    def __init__(self, rngs):
        self.first = nnx.Conv(FEATURES, 8, 3, rngs=rngs)
        self.second = nnx.Conv(8, 8, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


class LinenConvolutions(nn.Module):
    """The same in linen, each in two groups."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3,), feature_group_count=2, name="first")(x))
        return nn.Conv(8, (3,), feature_group_count=2, name="second")(x)


class Attention(nn.Module):
    """A layer, then attention, whose query, key and value share an op."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="first")(x)
        return nn.MultiHeadDotProductAttention(2, name="attention")(x)


class Block(nnx.Module):
    """One step of a scan."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return x + nnx.tanh(self.dense(x))


class Stack(nnx.Module):
    """A layer, then a scan over two blocks."""

    def __init__(self, rngs):
        self.first = nnx.Linear(FEATURES, 8, rngs=rngs)
        self.blocks = nnx.split_rngs(splits=2)(nnx.vmap(Block, in_axes=(0,), out_axes=0))(rngs)

    def __call__(self, x):
        return nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(
            self.blocks, self.first(x)
        )


class LinenBlock(nn.Module):
    """One step of a scan, in linen."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.tanh(nn.Dense(8, name="dense")(x)), None


class LinenStack(nn.Module):
    """The same in linen."""

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return scan(name="blocks")(nn.Dense(8, name="first")(x), None)[0]


MODELS = {
    "groups": (LinenConvolutions, "patches"),
    "groups, shared codes": (LinenConvolutions, "shared"),
    "shared codes": (Convolutions, "shared"),
    "query, key, value": (Attention, "auto"),
    "scan": (Stack, "auto"),
    "scan in linen": (LinenStack, "auto"),
}


@functools.cache
def case(name):
    """A model, its rules, batches of rows near a plane, and what its layers saw of the first three."""
    kind, conv = MODELS[name]
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((2, FEATURES))
    rows = rng.standard_normal((12, 16, 6, 2)) @ plane
    batches = [jnp.asarray(x + 0.1 * rng.standard_normal(x.shape), jnp.float32) for x in rows]
    model = kind(nnx.Rngs(0)) if issubclass(kind, nnx.Module) else kind()
    if isinstance(model, nn.Module):
        model = (model, jax.jit(model.init)(jax.random.key(0), batches[0]))
    rules = [Rule(".*", num_codebooks=3, conv=conv, config=FitConfig("paper"))]
    if kind is Attention:
        rules.insert(0, Rule("attention/out", skip=True))
    return model, rules, batches, capture(model, batches[:3], rules, progress=False)


@functools.cache
def learned(name, calibrate):
    model, rules, batches, captured = case(name)
    return replace(model, rules, batches[:3], captured=captured, calibrate=calibrate, progress=False)


def error(fast, model, batches):
    def run(model, x):
        if not isinstance(model, nnx.Module):
            return jax.jit(model[0].apply)(model[1], x)
        graph, state = nnx.split(model)
        return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)

    x = jnp.concatenate(batches)
    return float(losses.nmse(run(fast, x), run(model, x)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["groups", "shared codes", "query, key, value", "scan"])
def test_the_prefix_helps(name):
    """Layers are closer to the exact ones if each is learned on the outputs of the approximated layer before it."""
    model, _, batches, _ = case(name)
    errors = [error(learned(name, how), model, batches[:3]) for how in ("prefix", "independent")]
    assert errors[0] < 0.995 * errors[1] < 0.9, errors


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_tuning_helps(name):
    """A model that was learned from few rows gains from tuning."""
    model, rules, batches, _ = case(name)
    fast = replace(model, rules, batches[:1], progress=False)
    tuned, report = finetune(
        fast,
        teacher=model,
        batches=batches[3:],
        held_out=2,
        steps=40,
        look_every=20,
        learning_rate=0.003,
        return_report=True,
        progress=False,
    )
    assert report.after < 0.98 * report.before
    np.testing.assert_allclose(error(tuned, model, batches[3:5]), report.after, rtol=0.05)  # as it is used
    assert all(after >= 0 for _, after in report.layers.values())
    assert len(report.layers) == (4 if name.startswith("query") else 2)


@pytest.mark.parametrize("name", ["scan", "scan in linen"])
def test_no_loss_sees_into_a_scan(name):
    model, _, batches, _ = case(name)
    with pytest.raises(ValueError, match="inside of a scan"):
        finetune(
            learned(name, "independent"),
            teacher=model,
            batches=batches,
            loss=[Term("nmse", layers="blocks/dense")],
        )
