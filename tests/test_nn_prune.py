"""prune_unused: the same outputs, in nnx and linen, from layers that compute only what trees compare."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_op
from flax import linen as nn
from flax import nnx

from jax_maddness import Rule, finetune, load_model, prune_unused, replace, save_model
from jax_maddness.learn.taps import repeated
from jax_maddness.nn import calibrate


def integers(rng, shape):
    """Small ones, so that products are exact in any order of summation."""
    return jnp.asarray(rng.integers(-2, 3, shape), jnp.float32)


class Perceptron(nnx.Module):
    """A norm and an activation before the first layer that is replaced, an activation before the second."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 40, rngs=rngs)
        self.norm = nnx.BatchNorm(40, use_running_average=True, epsilon=0.0, rngs=rngs)
        self.second = nnx.Linear(40, 30, rngs=rngs)
        self.third = nnx.Linear(30, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.first(x)))
        return self.third(nnx.relu(self.second(x)))


class LinenPerceptron(nn.Module):
    """The same in linen, partly rematerialised."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True, epsilon=0.0, name="norm")(nn.remat(nn.Dense)(40, name="first")(x))
        x = nn.relu(nn.Dense(30, name="second")(nn.gelu(x)))
        return nn.Dense(3, use_bias=False, name="third")(x)


class Net(nnx.Module):
    """Convolutions: pooling and a sum of two layers before the one that is replaced, which ends in a mean."""

    def __init__(self, rngs):
        self.first = nnx.Conv(2, 40, (3, 3), rngs=rngs)
        self.beside = nnx.Conv(2, 40, (1, 1), use_bias=False, rngs=rngs)
        self.second = nnx.Conv(40, 36, (3, 2), strides=(1, 2), rngs=rngs)
        self.head = nnx.Linear(36, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.first(x) + self.beside(x)), (2, 2), (2, 2))
        return self.head(nnx.leaky_relu(self.second(x)).max((1, 2)))


class LinenNet(nn.Module):
    """The same in linen."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(40, (3, 3), name="first")(x) + nn.Conv(40, (1, 1), use_bias=False, name="beside")(x)
        x = nn.Conv(36, (3, 2), strides=(1, 2), name="second")(nn.max_pool(nn.relu(x), (2, 2), (2, 2)))
        return nn.Dense(3, name="head")(nn.leaky_relu(x).max((1, 2)))


MODELS = {
    "perceptron": (Perceptron, LinenPerceptron, (5, 6)),
    "net": (Net, LinenNet, (2, 8, 8, 2)),
}


@pytest.fixture
def learned(monkeypatch, rng):
    """Random ops in place of learned ones."""

    def learn(rows, w, bias, num_codebooks, *_):
        return random_op(rng, len(w), num_codebooks, len(bias))

    def fit_taps(x, w, bias, taps, num_codebooks, *_):
        whole = random_op(rng, len(w), taps * num_codebooks, len(bias))
        return type(whole)(repeated(random_op(rng, len(w) // taps, num_codebooks, 1).trees, taps), whole.tables)

    monkeypatch.setattr(calibrate, "learn", learn)
    monkeypatch.setattr(calibrate, "fit_taps", fit_taps)


def made(name, kind, rng):
    """A model whose parameters are small integers, and a batch."""
    in_nnx, in_linen, shape = MODELS[name]
    x = integers(rng, shape)
    if kind == "nnx":
        model = in_nnx(nnx.Rngs(0))
        nnx.update(model, jax.tree.map(lambda a: integers(rng, a.shape), nnx.state(model, nnx.Param)))
        if name == "perceptron":
            model.norm.mean[...], model.norm.var[...] = integers(rng, 40), 4.0 ** integers(rng, 40)
        return model, x
    variables = in_linen().init(jax.random.key(0), x)
    variables = {**variables, "params": jax.tree.map(lambda a: integers(rng, a.shape), variables["params"])}
    if name == "perceptron":
        variables["batch_stats"] = {"norm": {"mean": integers(rng, 40), "var": 4.0 ** integers(rng, 40)}}
    return (in_linen(), variables), x


def run(model, x):
    return jax.jit(lambda x: model(x) if isinstance(model, nnx.Module) else model[0].apply(model[1], x))(x)


def num_bytes(model):
    leaves = jax.tree.leaves(nnx.state(model) if isinstance(model, nnx.Module) else model[1])
    return sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
@pytest.mark.parametrize(("name", "conv"), [("perceptron", "auto"), ("net", "patches"), ("net", "shared")])
def test_outputs_are_the_same(learned, rng, tmp_path, kind, name, conv):
    model, x = made(name, kind, rng)
    fast = replace(model, Rule("second|third|head", num_codebooks=2 if name == "perceptron" else 6, conv=conv), [x])
    before, size = run(fast, x), num_bytes(fast)
    pruned, report = prune_unused(fast, x, return_report=True)
    np.testing.assert_array_equal(run(pruned, x), before)
    np.testing.assert_array_equal(run(fast, x), before)  # what was given is what it was
    paths = {one.path for one in report.narrowed}
    assert paths == ({"first", "second"} if name == "perceptron" else {"first", "beside", "second"})
    for one in report.narrowed:
        assert all(after < was for was, after in (one.outputs, one.work, one.nbytes))
    saved = sum(was - after for was, after in (one.nbytes for one in report.narrowed))
    assert saved <= size - num_bytes(pruned)
    assert not report.stays
    save_model(tmp_path / "m", pruned)
    back = load_model(tmp_path / "m", model if kind == "nnx" else model[0])
    np.testing.assert_array_equal(run(back, x), before)
    with pytest.raises(ValueError, match="prune then"):
        finetune(pruned, teacher=model, batches=[x, x])
