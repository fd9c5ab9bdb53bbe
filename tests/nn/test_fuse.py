"""`fuse`: what follows the products of a traced function joins their kernel calls, and nothing else changes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from helpers.ops import needs_kernels, random_factors, random_op, random_rows
from jax import lax

import jax_maddness
from jax_maddness import FitConfig, Rule, amm
from jax_maddness.core import ffi, products
from jax_maddness.core.epilogue import ACTIVATIONS
from jax_maddness.core.fusion import Fused, fused
from jax_maddness.nn import fuse


@pytest.fixture
def square(rng):
    """An op from 6 features to 6, with outputs near 1."""
    return random_factors(rng, 6, 4, 6)


def found(function, *args):
    """The activation of each product of a function that has an epilogue, and whether it has a residual."""
    with products.recorded():
        closed = jax.make_jaxpr(function)(*args)
    return [(step.activation, step.residual is not None) for step in fused(closed).steps if isinstance(step, Fused)]


def assert_same(function, *args, expected=None):
    """The fused function agrees with the function, and fuses what is expected."""
    one, other = jax.jit(fuse(function))(*args), jax.jit(function)(*args)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        tolerance = 4 * float(jnp.finfo(a.dtype).eps) if a.dtype != jnp.float32 else 1e-5
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=10 * tolerance
        )
    if expected is not None:
        assert found(function, *args) == expected


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_found(rng, square, name, dtype):
    x = jnp.asarray(random_rows(rng, 5, 6)).astype(dtype)
    assert_same(lambda x: ACTIVATIONS[name](amm(x, square)), x, expected=[(name, False)])
    assert_same(lambda x: ACTIVATIONS[name](x + amm(x, square)), x, expected=[(name, True)])


def test_what_flax_calls_them(rng, square):
    x = random_rows(rng, 5, 6)
    for function, name in (
        (nnx.relu, "relu"),
        (nnx.gelu, "gelu"),
        (linen.silu, "silu"),
        (nnx.swish, "silu"),
        (jax.nn.tanh, "tanh"),
    ):
        assert_same(lambda x, function=function: function(amm(x, square)), x, expected=[(name, False)])


def test_shapes_may_change_on_the_way(rng, square):
    x = random_rows(rng, 12, 6)
    residual = random_rows(rng, 12, 6).reshape(3, 4, 6)
    assert_same(lambda x: nnx.relu(amm(x, square).reshape(3, 4, 6) + residual), x, expected=[("relu", True)])
    assert_same(lambda x: nnx.gelu(jnp.squeeze(amm(x[:1], square), 0)), x, expected=[("gelu", False)])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda z, x: (nnx.relu(z), z), []),  # the product is a result itself
        (lambda z, x: nnx.gelu(z) + z, []),
        (lambda z, x: nnx.relu(2 * z), []),
        (lambda z, x: jnp.maximum(z, 0.1), []),
        (lambda z, x: jax.nn.leaky_relu(z), []),
        (lambda z, x: jax.nn.gelu(z.astype(jnp.bfloat16)), []),
        (lambda z, x: nnx.relu(z.T), []),
        (lambda z, x: nnx.relu(z.ravel(order="F")), []),  # a reshape that transposes
        (lambda z, x: nnx.relu(lax.reshape(z, (6, 5), (1, 0))), []),
        (lambda z, x: z.ravel(order="F") + jnp.arange(30.0), []),
        (lambda z, x: z + z, []),
        (lambda z, x: z + jnp.ones(6), []),  # no residual: its shape is another
        (lambda z, x: nnx.relu(z + 1.0), []),
        (lambda z, x: nnx.relu(z + x) + x, [("relu", True)]),
        (lambda z, x: z + x + x, [(None, True)]),
        (lambda z, x: jnp.sum(nnx.silu(z)), [("silu", False)]),
        (lambda z, x: lax.cond(x[0, 0] > 0, nnx.relu, nnx.gelu, z), []),
        (lambda z, x: jax.jit(lambda z: nnx.relu(z) * 2)(z), []),  # a call without products stays closed
    ],
)
def test_near_misses(rng, square, function, expected):
    assert_same(lambda x: function(amm(x, square), x), random_rows(rng, 5, 6), expected=expected)


def test_two_products_of_one_sum(rng, square):
    """One of them takes the other as its residual."""
    other = random_op(rng, 6, 2, 6)
    x = random_rows(rng, 5, 6)
    assert_same(lambda x: nnx.relu(amm(x, square) + amm(x, other)), x, expected=[("relu", True)])


def test_loops_and_transformations(rng, square):
    """Products in loops are fused there; those of a vmap inside of the function stay by themselves."""
    x = jnp.asarray(random_rows(rng, 5, 6))
    assert_same(lambda x: lax.scan(lambda h, _: (nnx.relu(amm(h, square)), h.sum()), x, None, length=3), x)
    text = jax.jit(fuse(lambda x: lax.fori_loop(0, 3, lambda i, h: nnx.relu(amm(h, square)), x))).lower(x).as_text()
    assert text.count('activation = "relu"') == (1 if ffi.enabled() else 0)
    assert_same(lambda x: jax.vmap(lambda row: nnx.relu(amm(row, square)))(x), x)
    assert_same(lambda x: lax.fori_loop(0, 2, lambda i, h: amm(h, square), x), x)
    assert_same(lambda x: jax.checkpoint(lambda x: nnx.gelu(amm(x, square)))(x), x)
    assert_same(lambda x: jax.jit(lambda x: nnx.gelu(amm(x, square)))(x), x, expected=[("gelu", False)])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(fuse(lambda r: nnx.relu(amm(r, square)))))(x), nnx.relu(amm(x, square)), rtol=1e-5
    )


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(rng, seed):
    """Sums, products, activations and branches in any order, of several arrays that are used any number of times."""
    rng = np.random.default_rng(seed)
    ops = [random_factors(rng, 6, 4, 6), random_op(rng, 6, 2, 6)]
    plan = rng.integers(0, 100, (10, 3))
    names = list(ACTIVATIONS)

    def next_of(kind, a, b):
        if kind % 4 == 0:
            return a + b
        if kind % 4 == 1:
            return ACTIVATIONS[names[kind % 8]](a)
        return amm(a, ops[kind % 2]) if kind % 4 == 2 else jnp.tanh(a) * b

    def function(x):
        values = [x]
        for kind, first, second in plan:
            a, b = (values[i % len(values)] for i in (first, second))
            values.append(next_of(kind, a, b) * 0.25)
            values.append(ACTIVATIONS[names[first % 8]](amm(a, ops[second % 2]) + b))
        return values[-3:]

    assert_same(function, random_rows(rng, 4, 6))


def test_flags_and_derivatives(rng, square):
    """Arguments that are no arrays are what they are; derivatives are those of the function."""
    op = random_op(rng, 6, 3, 6, weights=True)
    x = jnp.asarray(random_rows(rng, 5, 6))

    def function(x, last=None, *, twice):
        y = nnx.silu(amm(x, op))
        return {"y": y * 2 if twice else y, "last": last}

    assert fuse(function)(x, twice=False)["last"] is None
    np.testing.assert_allclose(fuse(function)(x, twice=True)["y"], function(x, twice=True)["y"], rtol=1e-5, atol=1e-5)
    one, other = (jax.grad(lambda x, f=f: f(x, twice=True)["y"].sum())(x) for f in (fuse(function), function))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_what_is_differentiated_may_be_closed_over(rng):
    x, op = jnp.asarray(random_rows(rng, 5, 6)), random_op(rng, 6, 3, 6, weights=True)

    def loss(w, wrap):
        return wrap(lambda x: nnx.gelu(amm(x, op) + x @ w))(x).sum()

    for gradient in (jax.grad, lambda f: jax.jit(jax.grad(f), static_argnums=1)):
        one, other = (gradient(loss)(jnp.ones((6, 6)), wrap) for wrap in (fuse, lambda f: f))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_what_is_computed_while_tracing(square):
    def function(x):
        with jax.ensure_compile_time_eval():
            shift = amm(jnp.ones((1, 6)), square)
        return nnx.relu(amm(x, square)) - shift

    with pytest.raises(NotImplementedError, match="Compute it before"):
        fuse(function)(jnp.ones((5, 6)))


class _Block(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 8, (3, 3), rngs=rngs)
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return x + self.down(nnx.gelu(self.up(x)))


@pytest.mark.slow
@needs_kernels
def test_replaced_nnx_model(rng):
    """Convolutions and layers of a model, whose residual follows the second layer."""
    model, batch = _Block(nnx.Rngs(0)), jnp.asarray(rng.standard_normal((40, 6, 6, 4)), jnp.float32)
    config = FitConfig("paper", rank=4)
    fast = jax_maddness.replace(model, [Rule(".*", num_codebooks=0, config=config)], [batch])
    run = jax.jit(fuse(fast))
    np.testing.assert_allclose(run(batch), fast(batch), rtol=1e-4, atol=1e-4)
    text = run.lower(batch).as_text()
    assert sorted(re.findall(r'activation = "(\w+)"', text)) == ["gelu", "relu"]
    assert "tanh" not in text


@pytest.mark.slow
def test_replaced_linen_model(rng):
    module = linen.Sequential([linen.Dense(16), linen.relu, linen.Dense(4), linen.tanh])
    batch = jnp.asarray(rng.standard_normal((300, 6)), jnp.float32)
    variables = module.init(jax.random.key(0), batch)
    fast, changed = jax_maddness.replace(
        (module, variables), [Rule(".*", num_codebooks=2, config=FitConfig("paper"))], [batch]
    )
    np.testing.assert_allclose(
        jax.jit(fuse(fast.apply))(changed, batch), fast.apply(changed, batch), rtol=1e-4, atol=1e-5
    )
    assert found(fast.apply, changed, batch) == [("relu", False), ("tanh", False)]


def test_a_module_that_changes_its_state():
    class Counter(nnx.Module):
        def __init__(self):
            self.calls = nnx.Variable(jnp.zeros(()))

        def __call__(self, x):
            self.calls[...] += 1
            return x

    with pytest.raises(ValueError, match="`model`, Counter, changes its own state"):
        fuse(Counter())(jnp.ones(3))


@pytest.mark.parametrize(("model", "words"), [(3, "`model` is int"), (linen.Dense(3), "Pass its `apply`")])
def test_wrong_models(model, words):
    with pytest.raises(TypeError, match=words):
        fuse(model)
