"""Layers inside of scans, remat and jit: captured step by step, replaced by stacked ops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.ops import random_op

from jax_maddness import Rule, amm, capture, replace
from jax_maddness.nn import calibrate

STEPS = 3


class Block(nnx.Module):
    """One step: a residual layer."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return x + self.dense(x)


class Stack(nnx.Module):
    """A scan over stacked blocks, each rematerialised, inside of jit."""

    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=STEPS)(nnx.vmap(Block, in_axes=(0,), out_axes=0))(rngs)

    def __call__(self, x):
        step = nnx.scan(nnx.remat(lambda block, x: block(x)), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return nnx.jit(step)(self.blocks, x)


class LinenBlock(nn.Module):
    """The same in linen."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(4, name="dense")(x), None


class LinenStack(nn.Module):
    """The same in linen."""

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(nn.remat(LinenBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=STEPS)
        return nn.jit(scan)(name="blocks")(x, None)[0]


@pytest.fixture(params=["nnx", "linen"])
def model(request):
    if request.param == "nnx":
        return Stack(nnx.Rngs(0))
    return LinenStack(), jax.jit(LinenStack().init)(jax.random.key(0), jnp.zeros((1, 4)))


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.standard_normal((7, 4)), jnp.float32)


def run(model, x):
    return model(x) if isinstance(model, nnx.Module) else model[0].apply(model[1], x)


def kernels(model):
    if isinstance(model, nnx.Module):
        return model.blocks.dense.kernel[...], model.blocks.dense.bias[...]
    return model[1]["params"]["blocks"]["dense"]["kernel"], model[1]["params"]["blocks"]["dense"]["bias"]


def test_each_step_of_a_scan_is_captured_apart(model, x):
    found = capture(model, [x, -x], Rule("blocks/dense"))
    w, b = kernels(model)
    rows = np.concatenate([x, -x])
    assert found.seen == {"blocks/dense": [14] * STEPS}
    assert found.batches == 2
    for step in range(STEPS):
        np.testing.assert_allclose(found.rows["blocks/dense"][step][:, 0], rows, rtol=1e-4, atol=1e-5)
        rows = rows + (rows @ w[step] + b[step])


def test_stacked_layers_get_stacked_ops(model, x, rng, monkeypatch):
    ops = [random_op(rng, 4, 2, 4) for _ in range(STEPS)]
    supply = iter(ops)
    monkeypatch.setattr(calibrate, "learn", lambda *args: next(supply))
    fast = replace(model, Rule(".*", num_codebooks=2), [x])
    expected = x
    for op in ops:
        expected = expected + amm(expected, op)
    for _ in range(2):  # also when the trace is there already
        np.testing.assert_allclose(run(fast, x), expected, rtol=1e-4, atol=1e-4)
