"""Stacks of layers: whatever the order of the calls, each member or step has its own rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec

from jax_maddness import Captured, FitConfig, Rule, capture, finetune, replace
from jax_maddness.nn.models.watch import Watch

MEMBERS, ROWS, D = 3, 8, 4
RULE = Rule(".*", num_codebooks=2, config=FitConfig("paper"))


def members(rngs):
    return nnx.split_rngs(splits=MEMBERS)(nnx.vmap(lambda rngs: nnx.Linear(D, D, rngs=rngs)))(rngs)


class Stacked(nnx.Module):
    """Linears that are stacked, and a function that uses them."""

    def __init__(self, use):
        self.layers = members(nnx.Rngs(0))
        self.use = use

    def __call__(self, x):
        return self.use(self.layers, x)


def call(layer, x):
    return layer(x)


def scan(layers, x, reverse=False):
    step = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, reverse=reverse)
    return step(x, layers)


def by_merge(layers, x):
    """A scan of JAX over the state, with members of another vmap inside of each step."""
    graph, state = nnx.split(layers)
    each = lambda state, x: jax.vmap(nnx.merge(graph, state))(x)  # noqa: E731
    return jax.lax.scan(lambda x, state: (each(state, x), None), x, state)[0]


def each(layers, x):
    """A scan of each example apart, inside of a vmap."""
    graph, state = nnx.split(layers)
    step = lambda x, state: (nnx.merge(graph, state)(x), None)  # noqa: E731
    return jax.vmap(lambda x: jax.lax.scan(step, x, state)[0])(x)


def mapped(layers, x):
    graph, state = nnx.split(layers)
    return jax.lax.map(lambda pair: nnx.merge(graph, pair[0])(pair[1]), (state, x), batch_size=2)


def on_devices(layers, x):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    graph, state = nnx.split(layers)
    spec = PartitionSpec(None, "rows")
    run = lambda state, x: jax.vmap(call)(nnx.merge(graph, state), x)  # noqa: E731
    return jax.shard_map(run, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec)(state, x)


def one(w, b, xs):
    return [[x] for x in xs]


def chain(order):
    def rows(w, b, xs):
        found = [[] for _ in range(MEMBERS)]
        for x in xs:
            for step in order:
                found[step].append(x)
                x = x @ w[step] + b[step]
        return found

    return rows


USES = {
    "vmap": (nnx.vmap(call), one),
    "map": (mapped, one),
    "shard_map": (on_devices, one),
    "scan": (lambda m, x: scan(m, x[0]), lambda w, b, xs: chain([0, 1, 2])(w, b, xs[:1])),
    "reverse": (lambda m, x: scan(m, x[0], reverse=True), lambda w, b, xs: chain([2, 1, 0])(w, b, xs[:1])),
    "two towers": (lambda m, x: (scan(m, x[0]), scan(m, x[1])), lambda w, b, xs: chain([0, 1, 2])(w, b, xs[:2])),
    "twice": (lambda m, x: scan(m, scan(m, x[0])), lambda w, b, xs: chain([0, 1, 2, 0, 1, 2])(w, b, xs[:1])),
    "vmap in scan": (by_merge, chain([0, 1, 2])),
    "scan in vmap": (each, chain([0, 1, 2])),
}


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((MEMBERS, ROWS, D)) + 100 * np.arange(MEMBERS)[:, None, None], jnp.float32)


def sorted_rows(rows):
    rows = np.asarray(rows, np.float64).reshape(-1, D)
    return rows[np.lexsort(np.round(rows, 2).T)]


@pytest.mark.parametrize("name", USES)
def test_each_step_has_its_own_rows(name, x):
    use, rows = USES[name]
    model = Stacked(use)
    found = capture(model, [x], RULE).rows["layers"]
    w, b = np.asarray(model.layers.kernel[...]), np.asarray(model.layers.bias[...])
    for captured, expected in zip(found, rows(w, b, np.asarray(x)), strict=True):
        np.testing.assert_allclose(sorted_rows(captured), sorted_rows(expected), rtol=1e-4, atol=1e-3)


class Ensemble(nn.Module):
    """Members with parameters of their own, in linen."""

    @nn.compact
    def __call__(self, x):
        return nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})(D, name="layers")(x)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_members_are_resumed_replaced_and_tuned(kind, x, tmp_path):
    linen = Ensemble(), Ensemble().init(jax.random.key(0), x)
    model = Stacked(nnx.vmap(call)) if kind == "nnx" else linen
    part = capture(model, [x], RULE)
    part.save(tmp_path / "part.npz")
    both = capture(model, [x, -x], RULE, resume=Captured.load(tmp_path / "part.npz"))
    for number, rows in enumerate(both.rows["layers"]):
        np.testing.assert_array_equal(rows[:, 0], np.concatenate([x[number], -x[number]]))
    fast = replace(model, RULE, [x, -x], captured=both, calibrate="prefix", progress=False)
    run = lambda m, x: m(x) if kind == "nnx" else m[0].apply(m[1], x)  # noqa: E731
    errors = jnp.square(run(fast, x) - run(model, x)).mean((1, 2)) / run(model, x).var((1, 2))
    assert errors.max() < 0.5, errors
    _, report = finetune(
        fast, teacher=model, batches=[x, -x, x], steps=2, look_every=2, return_report=True, progress=False
    )
    before, after = report.layers["layers"]
    assert 0 < after <= before < 0.5


def test_a_kernel_that_is_stacked_twice_stays(x):
    layers = nnx.split_rngs(splits=2)(nnx.vmap(members))(nnx.Rngs(0))
    model = Stacked(lambda m, x: nnx.vmap(nnx.vmap(call, in_axes=(0, None)), in_axes=(0, None))(m, x))
    model.layers = layers
    (change,) = replace(model, RULE, [x[0]], dry_run=True).changes
    assert "stacked" in change.reason


def test_a_watch_keeps_the_order_of_the_program():
    """Also of calls that nothing but their places in the program orders, under vmap and on several devices."""

    @jax.jit
    def inner(watch_x):
        watch.send("a", watch_x)
        return watch_x

    def function(x):
        inner(x)
        inner(x + 1)
        jax.vmap(lambda x: watch.send("b", x, 2 * x))(x)

    watch = Watch()
    watch.compiled(function)(jnp.arange(3.0))
    received = watch.received()
    assert [call[0].tolist() for call in received["a"]] == [[[0, 1, 2]], [[1, 2, 3]]]
    assert [[a.tolist() for a in call] for call in received["b"]] == [[[0, 1, 2], [0, 2, 4]]]
    assert watch.received() == {}
