"""Random small models: with exact products, a replaced model is the model; with codes, it is `amm` by hand."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from fuzz import campaign
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
    """A model of three random parts, every kind of part in some of four seeds in a row; its parts, and an input."""
    rng = np.random.default_rng(seed)
    kinds = [KINDS[(2 * seed) % len(KINDS)], KINDS[(2 * seed + 1) % len(KINDS)], *rng.choice(KINDS, 1)]
    x = inputs(seed)
    return model_of(kinds, seed, kind, x), kinds, x


def inputs(seed):
    """A batch."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal((ROWS, POSITIONS, D)), jnp.float32)


def model_of(kinds, seed, kind, x):
    """The model with these parts, in nnx or in linen."""
    if kind == "nnx":
        rngs = nnx.Rngs(seed)
        return nnx.Sequential(*(Node(str(k), rngs) for k in kinds))
    module = nn.Sequential([LinenNode(str(k)) for k in kinds])
    variables = jax.jit(module.init)(jax.random.key(seed), x)
    return module, jax.tree.map(lambda a: a + 0.1, variables)  # biases are not zero


def run(model, x):
    return model(x) if isinstance(model, nnx.Module) else model[0].apply(model[1], x)


def check_exact(seed, kind):
    """With products of full rank a replaced model is the model."""
    model, _, x = graph(seed, kind)
    fast = replace(model, Rule(".*", product="low rank", rank=10**6), [x], progress=False)
    np.testing.assert_allclose(run(fast, x), run(model, x), rtol=1e-4, atol=1e-5)


def check_codes(seed, kind):
    """With ops of random contents a replaced model is `amm` in the place of every replaced layer."""
    check_codes_of(seed, kind, *graph(seed, kind))


def check_codes_of(seed, kind, model, kinds, x):
    """The same for one model."""
    rng, learned = np.random.default_rng(seed), []

    def learn(rows, w, bias, num_codebooks, config, bar):
        op = random_op(rng, len(w), num_codebooks, len(bias))
        # Outputs of about one, so that tanh does not make all of them 1.
        tables = dataclasses.replace(
            op.tables, scale=op.tables.scale / 128, offset=op.tables.offset - num_codebooks / 2
        )
        learned.append(dataclasses.replace(op, tables=tables))
        return learned[-1]

    rule = Rule(".*", num_codebooks=2, share=False, conv="patches")
    with mock.patch.object(calibrate, "learn", learn):
        fast = replace(model, rule, [x], progress=False)
    ops, in_order = [{} for _ in kinds], iter(learned)
    for change in replace(model, rule, [x], dry_run=True).replaced:
        number, name = place(change.path)
        ops[number][name] = [next(in_order) for _ in range(ROWS if kinds[number] in ("scan", "vmap") else 1)]
    assert next(in_order, None) is None
    y = x
    for number, part in enumerate(kinds):
        y = by_hand(part, kind, ops[number], kernel(model, number), y)
    np.testing.assert_allclose(run(fast, x), y, rtol=1e-4, atol=1e-4)


def place(path):
    """The number of the part, and whether it is the part's first layer or its other one, for a layer's path."""
    first, second, *_ = path.split("/")
    if first == "layers":
        return int(second), path.split("/")[2]
    return int(first.removeprefix("layers_")), "other" if second == "Dense_1" else "layer"


def kernel(model, number):
    """The kernel of a part's first layer, for a part that reads it."""
    if isinstance(model, nnx.Module):
        return model.layers[number].layer.kernel[...]
    return next(iter(model[1]["params"][f"layers_{number}"].values())).get("kernel")


def by_hand(part, kind, ops, kernel, x):
    """Computes the output of a part with these ops; the kernel is that of its first layer."""
    call = lambda name, x, step=0: amm(x, ops[name][step])  # noqa: E731
    if part == "conv":
        x = jnp.concatenate([jnp.roll(x, 1, 1), x, jnp.roll(x, -1, 1)], -1)
    if part == "scan":
        for step in range(ROWS):
            x = jnp.tanh(call("layer", x, step))
        return x
    if part == "vmap":
        return jnp.tanh(jnp.stack([call("layer", x[i], i) for i in range(ROWS)]))
    if part == "cond" and kind == "nnx":
        return jnp.tanh(call("layer", x)) + jnp.tanh(call("other", x))
    y = jnp.tanh(call("layer", x))
    if part == "cond":
        return call("other", y)
    if part == "shared":
        return jnp.tanh(call("layer", y))
    return y @ kernel.T if part == "tied" else y


def case(rng):
    """One random model, by exact products or by codes."""
    seed, kind = int(rng.integers(2**31)), str(rng.choice(["nnx", "linen"]))
    (check_exact if rng.integers(2) else check_codes)(seed, kind)


if __name__ == "__main__":
    campaign.main(case, "models", __doc__)
