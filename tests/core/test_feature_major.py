"""amm(..., feature_major=True): rows that lie feature by feature, and the same bits."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import needs_kernels, random_factors, random_oblique_trees, random_op, random_rows
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_maddness import amm, testing, with_small_batch_tables

TARGET = "jax_maddness_amm_by_feature"


def turned(x_by_feature, op, result=False):
    return amm(jnp.moveaxis(x_by_feature, 0, -1), op, feature_major=True, feature_major_result=result)


def both_turned(x_by_feature, op):
    return turned(x_by_feature, op, result=True)


def by_feature(x):
    return jnp.moveaxis(jnp.asarray(x), -1, 0)


def assert_same(one, other):
    np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("rows", "features", "codebooks", "outputs"),
    [(0, 3, 2, 5), (1, 1, 1, 1), (63, 5, 3, 7), (64, 5, 4, 8), (65, 9, 5, 33), (2100, 4, 1, 0)],
)
def test_the_same_bits(tier, rng, rows, features, codebooks, outputs, dtype):
    op = random_op(rng, features, codebooks, outputs)
    x = jnp.asarray(random_rows(rng, rows, features, special=0.1)).astype(dtype)
    expected = jax.jit(amm)(x, op)
    for call in (turned, both_turned):
        y = jax.jit(call)(by_feature(x), op)
        assert y.dtype == dtype
        assert_same(y, expected)


@pytest.mark.parametrize(("rows", "codebooks", "outputs"), [(4000, 20, 150), (70, 64, 4001)])
def test_several_tasks(tier, rng, rows, codebooks, outputs):
    """Split over rows and over outputs: 1.3 million cycles and 1 million, where one thread gets 100,000."""
    op, x = random_op(rng, 40, codebooks, outputs), jnp.asarray(random_rows(rng, rows, 40, special=0.01))
    expected = jax.jit(amm)(x, op)
    for call in (turned, both_turned):
        assert_same(jax.jit(call)(by_feature(x), op), expected)


def test_rows_of_any_number_of_dimensions(tier, rng, op):
    for lead in ((), (3,), (2, 3), (2, 0, 3), (40, 5, 2)):
        x = jnp.asarray(rng.standard_normal((*lead, 8)), jnp.float32)
        assert_same(turned(by_feature(x), op), amm(x, op))
        assert_same(both_turned(by_feature(x), op), amm(x, op))
        # That rows lie otherwise costs time alone.
        assert_same(amm(x, op, feature_major=True, feature_major_result=True), amm(x, op))


@needs_kernels
def test_nothing_is_transposed(op):
    def both(x_by_feature, op):
        return jnp.moveaxis(both_turned(x_by_feature, op), -1, 0)

    for call, target in ((turned, TARGET), (both, f"{TARGET}_and_output")):
        text = jax.jit(call).lower(jnp.zeros((8, 100)), op).compile().as_text()
        assert f'"{target}"' in text
        assert not re.search(r"f32\[[\d,]+\]\S* (transpose|copy|fusion)\(", text), text


@needs_kernels
def test_layers_in_a_row_transpose_nothing(rng):
    ops = random_op(rng, 8, 3, 6), random_op(rng, 6, 2, 5)

    def model(x_by_feature, ops):
        for op in ops:
            x_by_feature = jnp.moveaxis(both_turned(x_by_feature, op), -1, 0)
        return x_by_feature

    text = jax.jit(model).lower(jnp.zeros((8, 100)), ops).compile().as_text()
    assert not re.search(r"f32\[[\d,]+\]\S* (transpose|copy|fusion)\(", text), text
    x = jnp.asarray(rng.standard_normal((100, 8)), jnp.float32)
    assert_same(jax.jit(model)(by_feature(x), ops), amm(amm(x, ops[0]), ops[1]).T)


@needs_kernels
def test_others_are_computed_as_ever(rng, op, x):
    oblique = dataclasses.replace(op, trees=random_oblique_trees(rng, 8, 3))
    few = with_small_batch_tables(op)
    for other, rows in ((oblique, x), (random_factors(rng, 8, 4, 5, 3), x), (few, x[:1])):
        called = testing.custom_calls(jax.jit(turned).lower(by_feature(rows), other).as_text())
        assert len(called) == 1
        assert called != [TARGET]
        assert_same(turned(by_feature(rows), other), amm(rows, other))


@pytest.mark.parametrize("turned", [turned, both_turned])
def test_transformations(backend, rng, op, turned):
    x = jnp.asarray(rng.standard_normal((3, 11, 8)), jnp.float32)
    xt = jnp.moveaxis(x, -1, 1)  # of each member [features, rows]
    ops = jax.tree.map(lambda *a: jnp.stack(a), *[random_op(rng, 8, 3, 5) for _ in range(3)])
    assert_same(jax.vmap(turned, (0, None))(xt, op), amm(x, op))
    assert_same(jax.vmap(turned, (2, None))(jnp.moveaxis(xt, 0, 2), op), amm(x, op))
    assert_same(jax.vmap(turned, (None, 0))(xt[0], ops), jax.vmap(amm, (None, 0))(x[0], ops))
    assert_same(jax.vmap(turned)(xt, ops), jax.vmap(amm)(x, ops))
    assert_same(jax.vmap(jax.vmap(turned, (0, None)), (None, 0))(xt, ops), jax.vmap(amm, (None, 0))(x, ops))
    assert_same(jax.lax.map(lambda one: turned(one, op), xt), amm(x, op))

    def loss(x, op, call):
        return (call(x, op) ** 2).sum()

    grads = jax.grad(loss)(xt[0], op, turned), jax.grad(loss)(x[0], op, amm)
    np.testing.assert_allclose(grads[0].T, grads[1], rtol=1e-6)
    _, dy = jax.jvp(lambda x: turned(x, op), (xt[0],), (jnp.ones_like(xt[0]),))
    np.testing.assert_allclose(dy, jnp.broadcast_to(op.weights.sum(0), dy.shape), rtol=1e-5)


@pytest.mark.parametrize("turned", [turned, both_turned])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_rows_and_outputs_may_be_sharded(axis_type, rng, turned):
    mesh = jax.make_mesh((2, 2), ("n", "m"), axis_types=(axis_type,) * 2)
    op, x = random_op(rng, 8, 3, 6), jnp.asarray(rng.standard_normal((64, 8)), jnp.float32)
    with jax.sharding.set_mesh(mesh) if axis_type == AxisType.Explicit else mesh:
        rows = jax.device_put(by_feature(x), NamedSharding(mesh, P(None, "n")))
        assert_same(jax.jit(turned)(rows, op), amm(x, op))
        if axis_type == AxisType.Auto:
            outputs = jax.jit(turned, out_shardings=NamedSharding(mesh, P("n", "m")))(rows, op)
            assert_same(outputs, amm(x, op))


def test_portable_and_exported_for_any_number_of_rows(op):
    testing.assert_portable(both_turned, jnp.zeros((8, 5)), op)
    (n,) = export.symbolic_shape("n")
    exported = export.export(jax.jit(both_turned), platforms=["tpu"])(jax.ShapeDtypeStruct((8, n), jnp.float32), op)
    assert exported.out_avals[0].shape == (n, 5)


def test_the_flag_is_a_flag(op, x):
    with pytest.raises(TypeError, match="`feature_major` is 1; expected True or False"):
        amm(x, op, feature_major=1)
    with pytest.raises(TypeError, match="`feature_major_result` is 1; expected True or False"):
        amm(x, op, feature_major_result=1)
