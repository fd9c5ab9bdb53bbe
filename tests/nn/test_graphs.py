"""Random small models: with exact products, a replaced model is the model; with codes, it is `amm` by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.ops import random_op

from jax_maddness import Rule, amm, replace
from jax_maddness.nn import calibrate

D, ROWS, POSITIONS = 4, 3, 5
KINDS = ("linear", "conv", "scan", "vmap", "shared", "tied", "remat", "cond")


class Node(nnx.Module):
    """A part of a model in nnx: [rows, positions, D] -> the same shape."""

    def __init__(self, kind, rngs):
        self.kind = kind
        if kind == "conv":
            self.layer = nnx.Conv(D, D, 3, padding="CIRCULAR", rngs=rngs)
        elif kind in ("scan", "vmap"):
            self.layer = nnx.split_rngs(splits=ROWS)(nnx.vmap(lambda rngs: nnx.Linear(D, D, rngs=rngs)))(rngs)
        else:
            self.layer = nnx.Linear(D, D, rngs=rngs)
            self.other = nnx.Linear(D, D, rngs=rngs) if kind == "cond" else None

    def __call__(self, x):
        call = lambda layer, x: jnp.tanh(layer(x))  # noqa: E731
        if self.kind == "scan":
            step = nnx.scan(lambda x, layer: call(layer, x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return step(x, self.layer)
        if self.kind == "vmap":
            return nnx.vmap(call)(self.layer, x)
        if self.kind == "shared":
            return call(self.layer, call(self.layer, x))
        if self.kind == "tied":
            return call(self.layer, x) @ self.layer.kernel[...].T
        if self.kind == "remat":
            return nnx.remat(call)(self.layer, x)
        if self.kind == "cond":
            return sum(
                nnx.cond(x.sum() > n, lambda s, x: call(s.layer, x), lambda s, x: call(s.other, x), self, x)
                for n in (-1e9, 1e9)  # so that rows reach both
            )
        return call(self.layer, x)


class LinenNode(nn.Module):
    """The same in linen."""

    kind: str

    @nn.compact
    def __call__(self, x):
        own = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        if self.kind == "conv":
            return jnp.tanh(nn.Conv(D, (3,), padding="CIRCULAR")(x))
        if self.kind == "scan":
            return nn.scan(LinenStep, length=ROWS, **own)()(x, None)[0]
        if self.kind == "vmap":
            return jnp.tanh(nn.vmap(nn.Dense, **own)(D)(x))
        if self.kind == "remat":
            return jnp.tanh(nn.remat(nn.Dense)(D)(x))
        layer = nn.Dense(D)
        y = jnp.tanh(layer(x))
        if self.kind == "shared":
            return jnp.tanh(layer(y))
        if self.kind == "tied":
            return y @ layer.variables["params"]["kernel"].T
        if self.kind == "cond":
            other = nn.Dense(D)
            other(x)  # makes its parameters, and gives it rows
            return nn.cond(x.sum() > 1e9, lambda m, x: layer(x), lambda m, x: other(x), self, y)
        return y


class LinenStep(nn.Module):
    """One step of a scan."""

    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(D)(x)), None


def graph(seed, kind):
    """A model of three random parts, every kind of part in some seed, and an input."""
    rng = np.random.default_rng(seed)
    kinds = [KINDS[(2 * seed) % len(KINDS)], KINDS[(2 * seed + 1) % len(KINDS)], *rng.choice(KINDS, 1)]
    x = jnp.asarray(rng.standard_normal((ROWS, POSITIONS, D)), jnp.float32)
    if kind == "nnx":
        rngs = nnx.Rngs(seed)
        return nnx.Sequential(*(Node(str(k), rngs) for k in kinds)), x
    module = nn.Sequential([LinenNode(str(k)) for k in kinds])
    variables = jax.jit(module.init)(jax.random.key(seed), x)
    return (module, jax.tree.map(lambda a: a + 0.1, variables)), x


def run(model, x):
    return model(x) if isinstance(model, nnx.Module) else model[0].apply(model[1], x)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
@pytest.mark.parametrize("seed", range(4))
def test_exact_products_change_nothing(seed, kind):
    model, x = graph(seed, kind)
    fast = replace(model, Rule(".*", product="low rank", rank=10**6), [x], progress=False)
    np.testing.assert_allclose(run(fast, x), run(model, x), rtol=1e-4, atol=1e-5)


class ByHand(nnx.Module):
    """An op in a layer's place."""

    def __init__(self, op):
        self.op = nnx.data(op)

    def __call__(self, x):
        return amm(x, self.op)


@pytest.mark.parametrize("kinds", [("linear", "cond"), ("shared", "remat")])
def test_codes_are_amm_in_each_layers_place(kinds, monkeypatch):
    rng = np.random.default_rng(0)
    ops = []

    def learn(rows, w, bias, num_codebooks, config, bar):
        ops.append(random_op(rng, len(w), num_codebooks, len(bias)))
        return ops[-1]

    monkeypatch.setattr(calibrate, "learn", learn)
    x = jnp.asarray(rng.standard_normal((ROWS, POSITIONS, D)), jnp.float32)
    make = lambda: nnx.Sequential(*(Node(kind, nnx.Rngs(i)) for i, kind in enumerate(kinds)))  # noqa: E731
    rule = Rule(".*", num_codebooks=2, share=False)
    fast, expected = replace(make(), rule, [x]), make()
    for change, op in zip(replace(make(), rule, [x], dry_run=True).replaced, ops, strict=True):
        number, name = change.path.split("/")[1:]
        setattr(expected.layers[int(number)], name, ByHand(op))
    np.testing.assert_allclose(fast(x), expected(x), rtol=1e-5, atol=1e-5)
