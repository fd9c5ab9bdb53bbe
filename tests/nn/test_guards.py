"""Layers that are not what their kernel says, that the model reads, or that no row reaches: right, or they stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jax_maddness import FitConfig, Rule, capture, finetune, load_model, plan, replace, save_model

WHOLE = Rule(".*", product="low rank", rank=10**6)
CODES = Rule(".*", num_codebooks=2, config=FitConfig("paper"))
D = 6


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.standard_normal((40, D)), jnp.float32)


def run(model, x):
    return model(x) if isinstance(model, nnx.Module) else model[0].apply(model[1], x)


def initialised(module, x, scale=3):
    """The module with variables whose weights are not those of the start."""
    variables = module.init(jax.random.key(0), x)
    return module, jax.tree.map(lambda a: a * scale, variables)


def twice(*args, **kwargs):
    kwargs.pop("out_sharding", None)
    return 2 * jax.lax.dot_general(*args, **kwargs)


def conv_twice(*args, **kwargs):
    return 2 * jax.lax.conv_general_dilated(*args, **kwargs)


def doubled(*args, **kwargs):
    values = args[0] if isinstance(args[0], tuple) else args
    return tuple(None if v is None else 2 * v for v in values)


def of(module):
    return lambda x: initialised(module, x)


OWN = {
    "nnx dot_general": lambda x: nnx.Linear(D, 5, dot_general=twice, rngs=nnx.Rngs(0)),
    "nnx promote_dtype": lambda x: nnx.Linear(D, 5, promote_dtype=doubled, rngs=nnx.Rngs(0)),
    "nnx conv": lambda x: nnx.Conv(D, 5, 3, conv_general_dilated=conv_twice, rngs=nnx.Rngs(0)),
    "linen dot_general": of(nn.Dense(5, dot_general=twice)),
    "linen conv": of(nn.Conv(5, (3,), conv_general_dilated=conv_twice)),
}


@pytest.mark.parametrize("name", OWN)
def test_a_layer_with_another_product_stays(name, x):
    (change,) = replace(OWN[name](x), WHOLE, [x], dry_run=True).changes
    assert "is not x @ kernel + bias" in change.reason
    with pytest.raises(ValueError, match="is not x @ kernel"):
        replace(OWN[name](x), WHOLE, [x])


class Normed(nnx.Module):
    """A layer in one that computes its kernel, and another layer."""

    def __init__(self, norm, **options):
        rngs = nnx.Rngs(0)
        self.normed = norm(nnx.Linear(D, 8, rngs=rngs), rngs=rngs, **options)
        self.last = nnx.Linear(8, 4, rngs=rngs)
        if norm is nnx.WeightNorm:
            scales = nnx.state(self.normed, lambda path, v: "scale" in str(path))
            nnx.update(self.normed, jax.tree.map(lambda a: 3 * a, scales))

    def __call__(self, x):
        y = self.normed(x) if isinstance(self.normed, nnx.WeightNorm) else self.normed(x, update_stats=False)
        return self.last(nnx.relu(y))


class LinenNormed(nn.Module):
    """The same in linen."""

    norm: type

    @nn.compact
    def __call__(self, x):
        options = {"update_stats": False} if self.norm is nn.SpectralNorm else {}
        return nn.Dense(4)(nn.relu(self.norm(nn.Dense(8))(x, **options)))


NORMED = {
    "nnx WeightNorm": lambda x: Normed(nnx.WeightNorm),
    "nnx SpectralNorm": lambda x: Normed(nnx.SpectralNorm),
    "linen WeightNorm": of(LinenNormed(nn.WeightNorm)),
    "linen SpectralNorm": of(LinenNormed(nn.SpectralNorm)),
    "linen SpectralNorm at the start": lambda x: initialised(LinenNormed(nn.SpectralNorm), x, 1),
}


@pytest.mark.parametrize("name", NORMED)
def test_the_kernel_that_a_layer_sees_is_learned_from(name, x):
    model = NORMED[name](x)
    fast = replace(model, WHOLE, [x])
    np.testing.assert_allclose(run(fast, x), run(model, x), rtol=1e-4, atol=1e-5)


def test_normed_layers_are_saved_and_tuned(x, tmp_path):
    for model, kind in ((Normed(nnx.WeightNorm), "nnx"), (initialised(LinenNormed(nn.SpectralNorm), x), "linen")):
        fast = replace(model, CODES, [x], progress=False)
        tuned = finetune(fast, teacher=model, batches=[x, -x], steps=1, look_every=1, progress=False)
        assert run(tuned, x).shape == (40, 4)
        save_model(tmp_path / kind, fast)
        again = load_model(tmp_path / kind, Normed(nnx.WeightNorm) if kind == "nnx" else model[0])
        np.testing.assert_array_equal(run(again, x), run(fast, x))


class Reading(nnx.Module):
    """A model that looks at its layers in other ways than by calls."""

    def __init__(self):
        self.first, self.second = nnx.Linear(D, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 8, rngs=nnx.Rngs(1))

    def __call__(self, x):
        assert isinstance(self.second, nnx.Linear) or hasattr(self.second, "spec")
        y = self.second(self.first(x)).reshape(-1, 2, self.second.out_features // 2)
        return y.reshape(-1, 8) @ self.first.kernel[...].T


@pytest.mark.parametrize("pattern", ["first", "second", ".*"])
def test_a_model_may_read_its_layers(pattern, x):
    model = Reading()
    fast = replace(model, Rule(pattern, product="low rank", rank=10**6), [x])
    np.testing.assert_allclose(fast(x), model(x), rtol=1e-4, atol=1e-4)
    assert (fast.second.in_features, fast.second.param_dtype) == (8, jnp.float32)
    assert hasattr(fast.second, "kernel") == (pattern == "first")
    if pattern != "first":
        with pytest.raises(AttributeError, match=r"Rule\('second', skip=True\)"):
            _ = fast.second.kernel


def test_a_positive_axis_serves_every_rank(rng):
    layer = nnx.LinearGeneral(8, (2, 3), axis=1, rngs=nnx.Rngs(0))
    flat, deep = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((9, 8), (4, 8, 5)))
    both = replace(layer, WHOLE, [(flat, deep)], call=lambda m, pair: (m(pair[0]), m(pair[1])))
    one = replace(layer, WHOLE, [flat])
    for fast in (both, one):
        for x in (flat, deep):
            np.testing.assert_allclose(fast(x), layer(x), rtol=1e-4, atol=1e-5)
    found = capture(layer, [(flat, deep)], CODES, call=lambda m, pair: (m(pair[0]), m(pair[1])))
    assert found.seen[""] == [9 + 4 * 5]


class Branches(nnx.Module):
    """A branch that never runs, and an expert that sees zeros."""

    def __init__(self):
        self.never, self.always, self.idle = (nnx.Linear(D, D, rngs=nnx.Rngs(i)) for i in range(3))

    def __call__(self, x):
        y = nnx.cond(x.sum() > 1e9, lambda m, x: m.never(x), lambda m, x: m.always(x), self, x)
        return y + self.idle(0 * x)


def test_layers_without_rows_stay_and_are_named(x):
    model = Branches()
    with pytest.warns(UserWarning, match=r"'never' stays: .*fewer than two rows.*'idle' stays: .*same row"):
        fast = replace(model, CODES, [x], progress=False)
    assert [isinstance(m, nnx.Linear) for m in (fast.never, fast.always, fast.idle)] == [True, False, True]
    with pytest.raises(ValueError, match="'never' stays"):
        replace(model, Rule("never", num_codebooks=2), [x])
    report = plan(model, [x, x], CODES, max_seconds=0, progress=False)
    words = {line.name: line.words for line in report.layers}
    assert "fewer than two rows" in words["never"]
    assert "same row" in words["idle"]


class Step(nn.Module):
    """One step of a scan."""

    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(D)(x)), None


class Lifted(nn.Module):
    """Layers in transforms that hand on parameters that all steps share."""

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Step, variable_broadcast="params", split_rngs={"params": False}, length=3)
        x = scan()(x, None)[0].reshape(5, 8, D)
        x = nn.vmap(nn.Dense, variable_axes={"params": None}, split_rngs={"params": False})(D)(x)
        return nn.RNN(nn.remat(nn.SimpleCell)(4))(x)


def test_lifted_transforms_with_shared_parameters(x):
    model = Lifted(), Lifted().init(jax.random.key(0), x)
    fast = replace(model, WHOLE, [x])
    assert not jax.tree.leaves(fast[1].get("params", {}))
    for apply in (fast[0].apply, jax.jit(fast[0].apply)):
        np.testing.assert_allclose(apply(fast[1], x), run(model, x), rtol=1e-4, atol=1e-5)


def test_a_low_rank_of_a_large_patch_needs_little_memory(rng):
    """A covariance of its 65,536 features would be 32 GiB."""
    layer = nnx.Conv(1024, 4, 64, padding="VALID", use_bias=False, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.standard_normal((1, 80, 1024)), jnp.float32)
    fast = replace(layer, Rule(".*", product="low rank", rank=2), [x])
    assert jnp.square(fast(x) - layer(x)).mean() < layer(x).var()
