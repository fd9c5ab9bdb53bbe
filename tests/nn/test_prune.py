"""prune_unused_outputs: the same outputs, in nnx and linen, from layers that compute only what trees compare."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.ops import random_oblique_trees, random_op

from benchmarks import prune
from jax_maddness import Rule, finetune, load_model, prune_unused_outputs, replace, save_model
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
        return type(whole)(random_op(rng, len(w) // taps, num_codebooks, 1).trees.repeated(taps), whole.tables)

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
    variables = jax.jit(in_linen().init)(jax.random.key(0), x)
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
    pruned, report = prune_unused_outputs(fast, x, return_report=True)
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


class Between(nnx.Module):
    """Two layers, the second of which is replaced, and what is between them."""

    def __init__(self, between, rngs):
        self.first = nnx.Linear(6, 40, rngs=rngs)
        self.beside = nnx.Linear(40, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(40, rngs=rngs)
        self.second = nnx.Linear(40, 4, rngs=rngs)
        self.third = nnx.Linear(40, 3, rngs=rngs)
        self.table = self.first.kernel
        self.between = between

    def __call__(self, x):
        return self.between(self, self.first(x))


def of(apart):
    """The second layer after something."""
    return lambda model, y: model.second(apart(y))


APART = {
    "nothing": of(lambda y: y),
    "a transpose and a mask": of(lambda y: jnp.where(y.T > 0, y.T, 0.5).T),
    "a sum over positions": of(lambda y: jnp.cos(y[:, None] + y[None]).mean(0)),
    "one position more": of(lambda y: jnp.concatenate([y, -y[:1]])),
    "a step with a derivative of its own": of(jax.nn.silu),
    "a bias": lambda model, y: model.second(y + model.norm.scale[...]),
    "a batch's own mean": of(lambda y: (y - y.mean(0, keepdims=True)) * jax.lax.rsqrt(y.var(0) + 1)),
    "a call of jit": of(nnx.jit(lambda y: y.reshape(5, 1, -1)[:, 0])),
    "two calls": lambda model, y: model.second(y) + model.second(-y),
}
MIXED = {
    "a LayerNorm": (lambda model, y: model.second(model.norm(y)), "reduce_sum"),
    "a softmax": (of(jax.nn.softmax), "reduce_sum"),
    "other features": (of(lambda y: y[:, ::-1]), "rev"),
    "features put together": (of(lambda y: y.reshape(5, 20, 2).reshape(5, 40)), "reshape"),
    "a square": (of(lambda y: (y[:, :, None] + y[:, None, :]).mean(1)), "brings features together"),
    "places of features": (of(lambda y: y + jnp.arange(40.0)), "iota"),
    "a constant": (of(lambda y: y * np.linspace(0, 1, 40, dtype=np.float32)), "a constant in its code"),
    "a hidden state that is returned": (lambda model, y: (model.second(y), y), "the model returns"),
    "an exact layer": (lambda model, y: (model.second(y), model.beside(y)), "'beside', which is exact"),
    "a width in the code": (of(lambda y: y + jnp.zeros(40)), "code does not take fewer|shapes"),
    "a kernel that is used again": (lambda model, y: model.second(y) * model.table.sum(), "is used outside"),
    "another call": (lambda model, y: model.second(y) + model.second(jnp.ones((5, 40))), "elsewhere"),
    "a scan": (of(lambda y: jax.lax.scan(lambda c, _: (c * y, None), y, length=2)[0]), "scan"),
}


def pruned(model, x):
    fast = replace(model, Rule("second", num_codebooks=5), [x])
    return fast, *prune_unused_outputs(fast, x, return_report=True)


@pytest.mark.parametrize("between", APART)
def test_what_keeps_features_apart_is_followed(learned, rng, between):
    model, x = Between(APART[between], nnx.Rngs(0)), integers(rng, (5, 6))
    nnx.update(model, jax.tree.map(lambda a: integers(rng, a.shape), nnx.state(model, nnx.Param)))
    fast, small, report = pruned(model, x)
    np.testing.assert_array_equal(run(small, x), run(fast, x))
    assert report.narrowed[0].outputs[1] <= 20


@pytest.mark.parametrize("between", MIXED)
def test_what_brings_features_together_is_refused(learned, rng, between):
    function, reason = MIXED[between]
    with pytest.raises(ValueError, match=rf"(?s)Before 'second': .*({reason})"):
        pruned(Between(function, nnx.Rngs(0)), integers(rng, (5, 6)))


@pytest.mark.parametrize("share", [True, False])
def test_layers_that_read_the_same_lose_what_none_of_them_reads(learned, rng, share):
    x = integers(rng, (5, 6))
    model = Between(lambda model, y: (model.second(y), model.third(y)), nnx.Rngs(0))
    fast = replace(model, Rule("second|third", num_codebooks=2, share=share), [x])
    small, report = prune_unused_outputs(fast, x, return_report=True)
    jax.tree.map(np.testing.assert_allclose, run(small, x), run(fast, x))
    (one,) = report.narrowed
    assert set(one.readers) == {"second", "third"}
    assert one.outputs[1] <= (8 if share else 16)


class Residual(nnx.Module):
    """A layer that adds to what it reads."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 40, rngs=rngs)
        self.second = nnx.Linear(40, 40, rngs=rngs)
        self.third = nnx.Linear(40, 3, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        return self.third(x + self.second(x))


def test_a_layer_that_adds_to_what_it_reads_loses_both(learned, rng):
    model, x = Residual(nnx.Rngs(0)), integers(rng, (5, 6))
    fast = replace(model, Rule("second|third", num_codebooks=2), [x], keep_weights=True)
    small, report = prune_unused_outputs(fast, x, return_report=True)
    np.testing.assert_allclose(run(small, x), run(fast, x), rtol=1e-6)
    assert {one.path for one in report.narrowed} == {"first", "second"}
    outputs = report.narrowed[0].outputs[1]
    assert outputs <= 16
    assert small.second.tables.arrays["weights"].shape == (outputs, outputs)


def test_gradients_are_those_of_what_is_read(learned, rng):
    model, x = Between(APART["nothing"], nnx.Rngs(0)), integers(rng, (5, 6))
    fast = replace(model, Rule("second", num_codebooks=5), [x], keep_weights=True)
    read = np.unique(fast.second.tables.arrays["trees_indices"][...])
    exact = model.first.kernel[:, read] @ model.second.kernel[read]
    small = prune_unused_outputs(fast, x)
    dx = jax.grad(lambda x: small(x).sum())(x)
    np.testing.assert_allclose(dx, jnp.broadcast_to(exact.sum(1), x.shape), rtol=1e-4, atol=1e-5)


class Grouped(nnx.Module):
    """Nothing can be left out here, each time for another reason; but of one layer's."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.heads = nnx.LinearGeneral(8, (2, 20), rngs=rngs)
        self.split = nnx.Conv(40, 40, (3,), feature_group_count=2, rngs=rngs)
        self.last = nnx.Linear(40, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.split(self.heads(self.first(x)).reshape(1, -1, 40)))


@pytest.mark.slow
def test_reasons_are_given_layer_by_layer(learned, rng, monkeypatch):
    model, x = Grouped(nnx.Rngs(0)), integers(rng, (5, 6))
    fast = replace(model, Rule(".*", num_codebooks=1, conv="patches"), [x])
    small, report = prune_unused_outputs(fast, x, return_report=True)
    np.testing.assert_allclose(run(small, x), run(fast, x))
    assert [one.path for one in report.narrowed] == ["first"]
    for path, reason in {"first": "model's input", "split": "several ops", "last": "'split', which makes"}.items():
        assert reason in report.stays[path]
        assert f"Before {path!r}" in str(report)
    with pytest.raises(ValueError, match="No layer of `model` is replaced"):
        prune_unused_outputs(model, x)
    monkeypatch.setattr(
        calibrate, "learn", lambda rows, w, b, c, *_: random_op(rng, len(w), c, len(b), make_trees=random_oblique_trees)
    )
    with pytest.raises(ValueError, match="project groups of features"):
        prune_unused_outputs(replace(model, Rule("last"), [x]), x)


@pytest.mark.slow
def test_what_it_brings_is_measured(learned, monkeypatch, capsys):
    monkeypatch.setattr(prune, "LEARN_FROM", 64)
    prune.main(["--widths", "12,40,5", "--rows", "8", "--codebooks", "2", "--seconds", "0.1"])
    printed = capsys.readouterr().out
    lines = [line for line in printed[printed.rindex("8 rows") :].splitlines() if " | " in line]
    rows = dict(line.strip("| ").split(" | ", 1) for line in lines)
    exact, whole, small = (
        rows[name].split(" | ") for name in ("exact f32", "second layer, C = 2", "second layer, C = 2, pruned")
    )
    assert (exact[1], exact[2]) == ("1.00", "0.0000")
    np.testing.assert_allclose(float(small[2]), float(whole[2]), rtol=0.05)
