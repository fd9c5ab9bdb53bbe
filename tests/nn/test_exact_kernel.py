"""Rows that stay exact, and maxima that exact products decide, in replaced layers: against the same by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.ops import random_op

from jax_maddness import Rule, finetune, load_model, replace, save_model
from jax_maddness.nn import calibrate
from jax_maddness.nn.layers.approximate import approximate as of_layer
from jax_maddness.nn.layers.approximate import to_op
from jax_maddness.nn.layers.exact_kernel import of_arrays
from jax_maddness.nn.layers.float_tables import to_floats

OPTIONS = {"strides": (2, 1), "kernel_dilation": (1, 2), "padding": "SAME"}


class Pooled(nnx.Module):
    """A convolution, then the greatest of each output."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(4, 9, (3, 2), **OPTIONS, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.conv(x)).max((1, 2))


class LinenPooled(nn.Module):
    """The same in linen."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(9, (3, 2), name="conv", **OPTIONS)(x)).max((1, 2))


@pytest.fixture(autouse=True)
def random_ops(monkeypatch):
    """Random ops in place of learned ones: the results of learning play no part."""

    def learn(rows, w, bias, num_codebooks, config, bar):
        return random_op(np.random.default_rng(0), len(w), num_codebooks, len(bias))

    def fit_taps(x, w, bias, taps, num_codebooks, config, bar):
        whole = random_op(np.random.default_rng(0), len(w), taps * num_codebooks, len(bias))
        trees = random_op(np.random.default_rng(1), len(w) // taps, num_codebooks, 1).trees.repeated(taps)
        return dataclasses.replace(whole, trees=trees)

    monkeypatch.setattr(calibrate, "learn", learn)
    monkeypatch.setattr(calibrate, "fit_taps", fit_taps)


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 9, 6, 4)).astype(np.float32)
    x[:, 2:4, 1:3] *= 6
    return jnp.asarray(x)


@pytest.fixture(scope="module")
def model():
    return Pooled(rngs=nnx.Rngs(0))


def replaced(model, x, **options):
    return replace(model, Rule("conv", num_codebooks=12, **options), [x])


def spec_and_arrays(conv):
    return conv.spec, {name: table[...] for name, table in conv.tables.arrays.items()}


# Traced anew for each backend.
def approximate(x, spec, op, checked=None):
    return jax.jit(lambda x, op, checked: of_layer(x, spec, op, checked))(x, op, checked)


def split(y):
    return np.asarray(y).reshape(len(y), -1, y.shape[-1])


@pytest.mark.slow
@pytest.mark.parametrize("conv", ["shared", "patches"])
def test_the_farthest_rows_are_exact_and_the_others_are_not(model, x, conv):
    y = split(jax.jit(replaced(model, x, conv=conv, exact_rows=0.2).conv)(x))
    same = np.isclose(y, split(model.conv(x)), rtol=1e-5, atol=1e-5).all(-1)
    assert (same.sum(1) == 6).all()  # a fifth of 30 positions
    patches = jax.lax.conv_general_dilated_patches(
        x, (3, 2), (2, 1), "SAME", rhs_dilation=(1, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    size = np.square(split(patches)).sum(-1)
    assert size[same].mean() > 2 * size[~same].mean()


@pytest.mark.parametrize("conv", ["shared", "patches"])
def test_every_position_checked_is_the_exact_maximum(model, x, conv):
    fast = replaced(model, x, conv=conv, num_candidates=30)
    assert jax.eval_shape(fast.conv, x).shape == (5, 1, 1, 9)
    np.testing.assert_allclose(jax.jit(lambda x: fast(x))(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("num_candidates", [0, 1, 3])
def test_look_ups_choose_and_exact_products_decide(backend, model, x, num_candidates, share):
    spec, arrays = spec_and_arrays(
        replaced(model, x, conv="shared", num_candidates=num_candidates, exact_rows=share).conv
    )
    others, checked = of_arrays(arrays)
    codes = split(approximate(x, dataclasses.replace(spec, num_candidates=None, exact_rows=0.0), to_op(spec, others)))
    exact = split(model.conv(x))
    far = split(approximate(x, dataclasses.replace(spec, num_candidates=None), to_op(spec, others), checked))
    stays = np.isclose(far, exact, rtol=1e-5, atol=1e-5).all(-1) if share else np.zeros(exact.shape[:2], bool)
    codes = np.where(stays[..., None], -np.inf, codes)
    best = np.argsort(-codes, 1, kind="stable")[:, : max(num_candidates, 1)]
    found = np.take_along_axis(exact if num_candidates else codes, best, 1).max(1)
    expected = np.maximum(found, np.where(stays[..., None], exact, -np.inf).max(1))
    y = approximate(x, spec, to_op(spec, others), checked)[:, 0, 0]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_those_of_the_tables_and_of_the_exact_products(model, x):
    spec, arrays = spec_and_arrays(replaced(model, x, conv="shared", num_candidates=30).conv)
    others, checked = of_arrays(arrays)
    floats = to_floats(others)

    def output(values, x, spec):
        return approximate(x, spec, to_op(spec, {**floats, "tables_values": values}), checked).sum()

    values = floats["tables_values"]
    d_values = jax.grad(output)(values, x, spec)
    by_codes = jax.grad(output)(values, x, dataclasses.replace(spec, num_candidates=0))
    np.testing.assert_allclose(d_values, by_codes)
    assert np.isclose(d_values.sum(), 5 * 9 * 12)  # one entry for each codebook of each maximum
    exact = jax.grad(lambda x: model.conv(x).max((1, 2)).sum())(x)
    np.testing.assert_allclose(jax.grad(output, 1)(values, x, spec), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_linen_is_the_same(model, x):
    params = {"conv": {"kernel": model.conv.kernel[...], "bias": model.conv.bias[...]}}
    module, variables = replaced(
        (LinenPooled(), {"params": params}), x, conv="shared", num_candidates=1, exact_rows=0.1
    )
    fast = replaced(model, x, conv="shared", num_candidates=1, exact_rows=0.1)
    np.testing.assert_allclose(module.apply(variables, x), fast(x), rtol=1e-6)


@pytest.mark.slow
def test_saved_and_loaded_and_tuned(tmp_path, model, x):
    fast = replaced(model, x, conv="shared", num_candidates=1, exact_rows=0.1)
    save_model(tmp_path / "model", fast)
    again = load_model(tmp_path / "model", nnx.eval_shape(lambda: Pooled(rngs=nnx.Rngs(0))))
    np.testing.assert_array_equal(again(x), fast(x))
    assert again.conv.spec.num_candidates == 1
    _, report = finetune(fast, teacher=model, batches=[x, x + 0.1], steps=2, look_every=1, return_report=True)
    assert np.isfinite(report.layers["conv"]).all()  # of the maxima: the shapes are not the teacher's


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(40, 6), (3, 40, 6)])
def test_rows_of_dense_layers_stay_exact(rng, shape):
    x = rng.standard_normal(shape).astype(np.float32)
    x[..., :2, :] *= 9
    model = nnx.Linear(6, 8, rngs=nnx.Rngs(0))
    fast = replace(model, Rule(".*", num_codebooks=2, exact_rows=0.05), [x])
    same = np.isclose(fast(x), model(x), rtol=1e-5, atol=1e-5).all(-1)
    np.testing.assert_array_equal(same, np.broadcast_to(np.arange(40) < 2, shape[:-1]))


def test_what_cannot_be_checked_is_refused(x):
    dense, grouped = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Conv(4, 6, 3, feature_group_count=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no convolution"):
        replace(dense, Rule(".*", num_candidates=1), [x])
    for options in ({"num_candidates": 1}, {"exact_rows": 0.1}):
        with pytest.raises(ValueError, match="several groups"):
            replace(grouped, Rule(".*", **options), [x[:, 0]])
    for options, said in (({"num_candidates": -1}, "positions"), ({"exact_rows": 1.0}, "share")):
        with pytest.raises(ValueError, match=said):
            Rule(".*", **options)
