"""amm under jit, vmap, grad, scan, checkpoint, donation; what retraces; what is differentiated.

Most transformations run inside of jit: step by step each primitive would be a program of its own, for every shape.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import put, random_op, random_rows
from jax import lax

from jax_maddness import FitConfig, MaddnessOp, aggregate, amm, encode, fit, testing


def stack(*ops):
    return put(jax.tree.map(lambda *arrays: np.stack(arrays), *ops))


def assert_same(actual, desired):
    """The same up to the last rounding: XLA may or may not contract `scale * sums + offset` into one operation."""
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_vmap_over_rows(backend, any_op, x):
    op = any_op
    batches = x.reshape(2, 3, 2, 8)
    for f in (amm, jax.vmap(amm, (0, None)), jax.vmap(jax.vmap(amm, (0, None)), (0, None))):
        assert_same(jax.jit(f)(batches, op), amm(x, op).reshape(2, 3, 2, 5))
    assert_same(jax.vmap(amm, (1, None), 1)(batches, op), amm(x, op).reshape(2, 3, 2, 5))


def test_vmap_over_ops(backend, rng, make_trees, x):
    ops = [random_op(rng, 8, 3, 5, make_trees=make_trees) for _ in range(3)]
    shared = jax.jit(jax.vmap(amm, (None, 0)))(x, stack(*ops))
    assert_same(shared, np.stack([amm(x, o) for o in ops]))
    own = jax.jit(jax.vmap(amm))(x.reshape(3, 4, 8), stack(*ops))
    assert_same(own, np.stack([amm(r, o) for r, o in zip(x.reshape(3, 4, 8), ops, strict=True)]))


def test_nested_vmap_over_ops_and_rows(backend, rng, op, x):
    ops = [[random_op(rng, 8, 3, 5) for _ in range(2)] for _ in range(3)]
    nested = stack(*(stack(*row) for row in ops))
    y = jax.jit(jax.vmap(jax.vmap(jax.vmap(amm, (0, None)), (None, 0)), (None, 0)))(x, nested)
    assert_same(y, np.stack([np.stack([amm(x, o) for o in row]) for row in ops]))


def test_vmap_over_a_part_of_the_op(backend, op, x):
    offsets = jnp.arange(15.0).reshape(3, 5)
    changed = jax.vmap(lambda o: amm(x, _with_offset(op, o)))(offsets)
    assert_same(changed, np.stack([amm(x, _with_offset(op, o)) for o in offsets]))


def _with_offset(op, offset):
    return MaddnessOp(op.trees, type(op.tables)(op.tables.values, op.tables.scale, offset), op.weights)


def test_vmap_of_encode_and_aggregate(backend, any_op, x):
    op = any_op
    codes = jax.vmap(encode, (0, None))(x.reshape(3, 4, 8), op.trees)
    np.testing.assert_array_equal(codes.reshape(12, 3), encode(x, op.trees))
    sums = jax.vmap(aggregate, (0, None))(codes, op.tables)
    np.testing.assert_array_equal(sums.reshape(12, 5), aggregate(codes.reshape(12, 3), op.tables))


def test_vmap_over_an_empty_batch(backend, op):
    assert jax.vmap(amm, (0, None))(jnp.zeros((0, 4, 8)), op).shape == (0, 4, 5)


def test_gradient_is_that_of_the_exact_product(backend, op, x):
    g = jnp.asarray(np.random.default_rng(1).standard_normal((12, 5)), jnp.float32)
    dx = jax.jit(jax.grad(lambda x: (g * amm(x, op)).sum()))(x)
    np.testing.assert_allclose(dx, g @ op.weights.T, rtol=1e-5, atol=1e-5)
    y, dy = jax.jvp(lambda x: amm(x, op), (x,), (jnp.ones_like(x),))
    assert_same(y, amm(x, op))
    np.testing.assert_allclose(dy, jnp.ones_like(x) @ op.weights, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_op(backend, any_op, x):
    op = any_op
    g = jax.jit(jax.grad(lambda op: amm(x, op).sum(), allow_int=True))(op)
    sums = aggregate(encode(x, op.trees), op.tables)
    np.testing.assert_allclose(g.tables.scale, sums.sum(0), rtol=1e-6)
    np.testing.assert_allclose(g.tables.offset, jnp.full(5, 12.0))
    np.testing.assert_allclose(g.weights, x.sum(0)[:, None] * jnp.ones(5), rtol=1e-5, atol=1e-5)
    assert not np.any(g.trees.thresholds)


def test_scale_and_offset_can_be_differentiated_without_weights(backend, op, x):
    bare = MaddnessOp(op.trees, op.tables)
    g = jax.grad(lambda offset: amm(x, _with_offset(bare, offset)).sum())(op.tables.offset)
    np.testing.assert_allclose(g, jnp.full(5, 12.0))


def test_gradient_without_weights_says_what_to_do(op, x):
    with pytest.raises(ValueError, match="keep_weights=True"):
        jax.grad(lambda x: amm(x, MaddnessOp(op.trees, op.tables)).sum())(x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradient_has_the_dtype_of_the_rows(backend, op, x, dtype):
    dx = jax.jit(jax.grad(lambda x: amm(x, op).astype(jnp.float32).sum()))(x.astype(dtype))
    assert dx.dtype == dtype
    np.testing.assert_allclose(np.float32(dx), np.tile(np.asarray(op.weights).sum(1), (12, 1)), rtol=0.02, atol=0.02)


def test_vmap_of_grad_and_grad_of_vmap(backend, any_op, x):
    op = any_op

    def loss(x, op):
        return (amm(x, op) ** 2).sum()

    whole = jax.jit(jax.grad(loss))(x, op)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss), (0, None)))(x, op), whole, rtol=1e-4)
    mapped = jax.jit(jax.grad(lambda x: jax.vmap(loss, (0, None))(x, op).sum()))(x)
    np.testing.assert_allclose(mapped, whole, rtol=1e-4)


def test_scan_over_stacked_layers_with_checkpoint_and_grad(backend, rng, make_trees):
    layers = [random_op(rng, 6, 2, 6, weights=True, make_trees=make_trees) for _ in range(3)]
    x = put(random_rows(rng, 9, 6))

    def forward(x, layers):
        step = jax.checkpoint(lambda h, op: (jnp.tanh(amm(h, op)), None))
        return lax.scan(step, x, layers)[0]

    h = x
    for layer in layers:
        h = jnp.tanh(amm(h, layer))
    assert_same(jax.jit(forward)(x, stack(*layers)), h)
    dx = jax.jit(jax.grad(lambda x, layers: forward(x, layers).sum()))(x, stack(*layers))
    assert dx.shape == x.shape
    assert np.all(np.isfinite(dx))


def test_gradient_stops_at_codes(backend, any_op, x):
    assert not np.any(jax.grad(lambda x: encode(x, any_op.trees).astype(jnp.float32).sum() + x.sum() * 0)(x))


def test_hessian_and_linearize(backend, op, x):
    hessian = jax.jit(jax.hessian(lambda x: (amm(x, op) ** 2).sum()))(x[0])
    np.testing.assert_allclose(hessian, 2 * op.weights @ op.weights.T, rtol=1e-4, atol=1e-4)
    _, linear = jax.linearize(lambda x: amm(x, op), x)
    np.testing.assert_allclose(linear(x), x @ op.weights, rtol=1e-4, atol=1e-4)


def test_conditionals_and_loops(backend, any_op, x):
    op = any_op
    y = lax.cond(True, lambda: amm(x, op), lambda: jnp.zeros((12, 5)))
    assert_same(y, amm(x, op))
    doubled = lax.fori_loop(0, 3, lambda _, total: total + amm(x, op), jnp.zeros((12, 5)))
    assert_same(doubled, 3 * amm(x, op))
    assert_same(lax.map(lambda row: amm(row, op), x), amm(x, op))


def test_a_changed_array_does_not_retrace_and_changed_metadata_does(op, x):
    traces = []

    @jax.jit
    def f(x, op):
        traces.append(op)
        return amm(x, op)

    f(x, op)
    f(x, jax.tree.map(lambda a: a + a.dtype.type(0), op))
    assert len(traces) == 1
    f(x, MaddnessOp(type(op.trees)(op.trees.indices, op.trees.thresholds, None), op.tables, op.weights))
    assert len(traces) == 2


STRICT = {
    "x64": lambda: jax.enable_x64(True),
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "strict ranks": lambda: jax.numpy_rank_promotion("raise"),
    "debug_nans": lambda: jax.debug_nans(True),
}


@pytest.mark.slow
@pytest.mark.parametrize("option", STRICT)
def test_under_strict_options(backend, option):
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    with STRICT[option]():
        op = fit(x, np.ones((6, 3), np.float32), num_codebooks=2, config=FitConfig("paper"), keep_weights=True)
        assert all(a.dtype.itemsize <= 4 for a in jax.tree.leaves(op))
        assert amm(x, op).dtype == jnp.float32
        jax.grad(lambda op: amm(x, op).sum(), allow_int=True)(op)
        jax.jit(jax.grad(lambda x: amm(x, op).sum()))(x)


def test_donation(backend, op, x):
    copy, expected = jax.tree.map(jnp.copy, op), amm(x, op)
    assert_same(jax.jit(amm, donate_argnums=1)(x, copy), expected)


def test_forcing_a_backend_is_part_of_the_cache_key(op, x):
    traces = []
    f = jax.jit(lambda x: traces.append(None) or amm(x, op))
    inside = f(x)
    with testing.force_backend("jax"):
        f(x)
        assert len(traces) == 2
        assert not testing.custom_calls(jax.jit(lambda x: amm(x, op)).lower(x).as_text())
    assert_same(f(x), inside)
    assert len(traces) == 2
