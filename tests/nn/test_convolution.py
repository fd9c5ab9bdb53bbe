"""Convolutions by look-ups: patches and shared codes against `amm` by hand, in nnx and linen; what "auto" takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.ops import random_op

from jax_maddness import Rule, amm, replace
from jax_maddness.nn import calibrate

OPTIONS = {"strides": (2, 1), "kernel_dilation": (1, 2), "padding": "SAME"}
C = 12


def convolutions(groups):
    """The same convolution in nnx and linen."""
    in_nnx = nnx.Conv(4, 6, (3, 2), feature_group_count=groups, rngs=nnx.Rngs(0), **OPTIONS)
    module = nn.Conv(6, (3, 2), feature_group_count=groups, **OPTIONS)
    return in_nnx, (module, {"params": {"kernel": in_nnx.kernel[...], "bias": in_nnx.bias[...]}})


def run(model, x):
    return jax.jit(lambda x: model(x) if isinstance(model, nnx.Module) else model[0].apply(model[1], x))(x)


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.standard_normal((2, 7, 5, 4)), jnp.float32)


@pytest.fixture
def made(monkeypatch, rng):
    """Random ops in place of learned ones; all are for patches."""
    ops = []

    def learn(rows, w, bias, num_codebooks, config, bar):
        ops.append(random_op(rng, len(w), num_codebooks, len(bias)))
        return ops[-1]

    def fit_taps(x, w, bias, taps, num_codebooks, config, bar):
        trees = random_op(rng, len(w) // taps, num_codebooks, 1).trees.repeated(taps)
        whole = random_op(rng, len(w), taps * num_codebooks, len(bias))
        ops.append(type(whole)(trees, whole.tables))
        return ops[-1]

    monkeypatch.setattr(calibrate, "learn", learn)
    monkeypatch.setattr(calibrate, "fit_taps", fit_taps)
    return ops


def by_hand(x, ops):
    """Patches by XLA, which orders them features first; an op for each group of features."""
    patches = jax.lax.conv_general_dilated_patches(
        x, (3, 2), (2, 1), "SAME", rhs_dilation=(1, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    patches = jnp.moveaxis(patches.reshape(*patches.shape[:3], 4, 6), 3, 4)  # [batch, positions, taps, features]
    parts = jnp.split(patches, len(ops), -1)
    return jnp.concatenate([amm(p.reshape(*p.shape[:3], -1), op) for p, op in zip(parts, ops, strict=True)], -1)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
@pytest.mark.parametrize("conv", ["patches", "shared"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_amm_on_its_patches(made, x, kind, conv, groups):
    model = convolutions(groups)[kind == "linen"]
    fast = replace(model, Rule(".*", num_codebooks=C, conv=conv), [x])
    assert len(made) == groups
    np.testing.assert_allclose(run(fast, x), jax.jit(by_hand)(x, made), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_through_shared_codes_are_those_of_the_convolution(made, x, groups):
    model = convolutions(groups)[0]
    fast = replace(model, Rule(".*", num_codebooks=C, conv="shared"), [x], keep_weights=True)
    np.testing.assert_allclose(run(fast, x), jax.jit(by_hand)(x, made), rtol=1e-5, atol=1e-4)
    dx, exact = (jax.jit(jax.grad(lambda x, f=f: (f(x) * jnp.arange(6.0)).sum()))(x) for f in (fast, model))
    np.testing.assert_allclose(dx, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("better", ["shared", "patches"])
def test_auto_takes_what_has_the_smaller_error(made, x, monkeypatch, better):
    """The worse way answers with 100 everywhere, the better one with 0."""

    def spoiled(learn, offset):
        def learned(*args):
            op = learn(*args)
            tables = dataclasses.replace(op.tables, scale=jnp.zeros(6), offset=jnp.full(6, offset))
            return dataclasses.replace(op, tables=tables)

        return learned

    monkeypatch.setattr(calibrate, "fit_taps", spoiled(calibrate.fit_taps, 0.0 if better == "shared" else 100.0))
    monkeypatch.setattr(calibrate, "learn", spoiled(calibrate.learn, 0.0 if better == "patches" else 100.0))
    fast = replace(convolutions(1)[0], Rule(".*", num_codebooks=C), [x])
    assert fast.spec.shared == (better == "shared")


def test_dilated_inputs_and_unknown_layers_are_skipped_with_a_reason(x):
    model = nnx.Sequential(
        nnx.Conv(4, 6, (3, 2), input_dilation=2, padding=((0, 0), (0, 0)), rngs=nnx.Rngs(0)),
        nnx.ConvTranspose(6, 2, (3, 3), rngs=nnx.Rngs(0)),
    )
    reasons = [change.reason for change in replace(model, Rule(".*"), [x], dry_run=True).changes]
    assert "input_dilation" in reasons[0]
    assert "ConvTranspose are not supported" in reasons[1]
    with pytest.raises(ValueError, match="No layer would be replaced"):
        replace(model, Rule(".*"), [x])
