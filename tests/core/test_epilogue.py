"""amm(..., activation=, residual=): what follows a product, in the same call of the kernel."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import (
    TREES,
    needs_kernels,
    random_factors,
    random_int8,
    random_op,
    random_rows,
    random_term,
)
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_maddness import Int8Product, Int8ProductByRow, amm, disabled_export_checks, testing, with_small_batch_tables
from jax_maddness.core.epilogue import ACTIVATIONS, Epilogue

CHOICES = [None, *ACTIVATIONS]


def make_op(rng, kind, features=8, outputs=5):
    if kind == "int8":
        return random_int8(rng, Int8Product, features, outputs)
    if kind == "int8 by row":
        return random_int8(rng, Int8ProductByRow, features, outputs)
    if kind == "factors":
        return random_factors(rng, features, 4, outputs)
    trees, *term = kind.split(" and ")
    if term == ["factors"]:
        return random_factors(rng, features, 4, outputs, codebooks=3, make_trees=TREES[trees])
    op = random_op(rng, features, 3, outputs, make_trees=TREES[trees])
    return dataclasses.replace(op, term=random_term(rng, features, outputs, 2, 3)) if term else op


KINDS = (
    "axis",
    "oblique",
    "axis and factors",
    "oblique and factors",
    "axis and an exact term",
    "factors",
    "int8",
    "int8 by row",
)


def assert_close(y, z, residual, activation, dtype):
    """The definition in float32, to within 4e-7 of max(1, |z|) and the rounding of the dtype."""
    with np.errstate(invalid="ignore"):
        total = np.asarray(z, np.float32) + (0 if residual is None else np.asarray(residual, np.float32))
    expected = np.asarray(Epilogue(activation).of(jnp.asarray(total)).astype(dtype), np.float32)
    spacing = float(jnp.finfo(dtype).eps)
    bound = 2e-6 * np.maximum(1, np.abs(total)) + spacing * np.abs(expected)
    actual = np.asarray(y, np.float32)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    with np.errstate(invalid="ignore"):
        difference = np.abs(actual - expected)
    assert (np.isnan(expected) | (actual == expected) | (difference <= bound)).all(), (
        activation,
        np.nanmax(difference),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_as_defined(tier, rng, kind):
    """Random sizes, dtypes and activations; with and without a residual; NaN and infinities among the rows."""
    for activation in rng.permuted(CHOICES)[:2]:
        rows, outputs = int(rng.integers(0, 40)), int(rng.integers(1, 70))
        dtype = rng.choice([jnp.float32, jnp.bfloat16, jnp.float16])
        op = make_op(rng, kind, outputs=outputs)
        x = jnp.asarray(random_rows(rng, rows, 8, special=0.02)).astype(dtype)
        residual = None if rng.random() < 0.3 else jnp.asarray(random_rows(rng, rows, outputs, 0.02)).astype(dtype)
        y = jax.jit(amm, static_argnames="activation")(x, op, activation=activation, residual=residual)
        assert y.dtype == dtype
        if op.term is not None and kind.endswith("exact term"):  # XLA adds it, to rounded outputs of the look-ups
            z = amm(x, dataclasses.replace(op, term=None)).astype(jnp.float32) + op.term.product(x, op.tables)
        else:
            z = amm(x.astype(jnp.float32), op)
        assert_close(y, z, residual, activation, dtype)


@pytest.mark.parametrize("activation", CHOICES)
def test_every_activation(backend, rng, activation):
    """Outputs of every magnitude and both signs; test_epilogue.cc has every tier."""
    op = random_op(rng, 8, 3, 64)
    scale = rng.choice([-1, 1], 64) * 10.0 ** rng.uniform(-6, 6, 64)
    tables = dataclasses.replace(op.tables, scale=jnp.asarray(scale, jnp.float32), offset=jnp.zeros(64))
    op, x = dataclasses.replace(op, tables=tables), random_rows(rng, 30, 8)
    assert_close(amm(x, op, activation=activation), amm(x, op), None, activation, jnp.float32)


@pytest.mark.parametrize("rows", [1, 8, 700])
def test_blocks_and_tasks(rng, rows):
    """More rows than a block, more work than one thread gets, and both layouts of tables."""
    op, x = random_op(rng, 40, 20, 1501), random_rows(rng, rows, 40)
    residual = random_rows(rng, rows, 1501)
    for one in (op, with_small_batch_tables(op)):
        y = amm(x, one, activation="relu", residual=residual)
        assert_close(y, amm(x, one), residual, "relu", jnp.float32)


def test_rows_by_feature(rng, op):
    x = jnp.asarray(random_rows(rng, 100, 8))
    for result in (False, True):
        y = amm(x, op, activation="silu", feature_major=True, feature_major_result=result)
        assert_close(y, amm(x, op), None, "silu", jnp.float32)


def test_vmap(backend, rng, any_op, x):
    residual = jnp.asarray(random_rows(rng, 12, 5))
    expected = amm(x, any_op, activation="gelu", residual=residual)

    def fused(x, residual):
        return amm(x, any_op, activation="gelu", residual=residual)

    batched = jax.jit(jax.vmap(fused))(x.reshape(3, 4, 8), residual.reshape(3, 4, 5))
    np.testing.assert_allclose(batched.reshape(12, 5), expected, rtol=1e-5, atol=1e-4)
    ops = jax.tree.map(lambda a: jnp.stack([a, a]), any_op)
    both = jax.jit(jax.vmap(lambda op: amm(x, op, activation="gelu", residual=residual)))(ops)
    np.testing.assert_allclose(both, jnp.stack([expected] * 2), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded(rng, op, axis_type):
    mesh = jax.make_mesh((4,), ("r",), axis_types=(axis_type,))
    x, residual = random_rows(rng, 16, 8), random_rows(rng, 16, 5)
    expected = np.asarray(amm(x, op, activation="tanh", residual=residual))
    with jax.set_mesh(mesh):
        put = lambda a: jax.device_put(a, NamedSharding(mesh, P("r")))  # noqa: E731
        call = jax.jit(lambda x, residual: amm(x, op, activation="tanh", residual=residual))
        y = call(put(x), put(residual))
        assert y.sharding.spec[0] == "r"
        assert "all-" not in call.lower(put(x), put(residual)).compile().as_text()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", CHOICES)
def test_derivatives(backend, rng, activation):
    """Those of the function in jax.nn after the product, with respect to rows, scale, offset and residual."""
    op = random_op(rng, 8, 3, 5, weights=True)
    x, residual = jnp.asarray(random_rows(rng, 6, 8)), jnp.asarray(random_rows(rng, 6, 5))

    def loss(fused, x, scale, residual):
        changed = dataclasses.replace(op, tables=dataclasses.replace(op.tables, scale=scale))
        if fused:
            return (amm(x, changed, activation=activation, residual=residual) ** 2).sum()
        return (Epilogue(activation, residual).of(amm(x, changed)) ** 2).sum()

    of = [
        jax.jit(jax.grad(loss, (1, 2, 3)), static_argnums=0)(fused, x, op.tables.scale, residual)
        for fused in (True, False)
    ]
    for fused, apart in zip(*of, strict=True):
        np.testing.assert_allclose(fused, apart, rtol=2e-4, atol=1e-3)


def test_the_derivative_of_the_scale_needs_no_weights(rng):
    op = random_op(rng, 8, 3, 5)
    x = random_rows(rng, 6, 8)

    def loss(scale):
        return amm(
            x, dataclasses.replace(op, tables=dataclasses.replace(op.tables, scale=scale)), activation="relu"
        ).sum()

    assert np.isfinite(jax.grad(loss)(op.tables.scale)).all()


@needs_kernels
def test_one_call_of_a_kernel(rng, op, x):
    """The activation is part of the custom call; nothing of it is left to XLA."""
    text = jax.jit(lambda x: amm(x, op, activation="gelu")).lower(x).as_text()
    assert re.search(r'@jax_maddness_amm\(.*activation = "gelu"', text)
    assert "tanh" not in text


@needs_kernels
def test_export_for_other_platforms(rng, op, x):
    call = jax.jit(lambda x, residual: amm(x, op, activation="gelu", residual=residual))
    residual = random_rows(rng, 12, 5)
    exported = export.export(call, platforms=["cpu", "tpu"], disabled_checks=disabled_export_checks())(x, residual)
    restored = export.deserialize(exported.serialize())
    np.testing.assert_allclose(restored.call(x, residual), call(x, residual), rtol=1e-6)
    symbolic = export.symbolic_shape("n")[0]
    shapes = [jax.ShapeDtypeStruct((symbolic, width), jnp.float32) for width in (8, 5)]
    anew = export.export(call, disabled_checks=disabled_export_checks())(*shapes)
    np.testing.assert_allclose(anew.call(x, residual), call(x, residual), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"activation": "swish"},
            ValueError,
            r"`activation` is 'swish'; expected one of relu, .*Apply other functions",
        ),
        ({"activation": jax.nn.relu}, TypeError, "`activation` is .*expected one of relu"),
        ({"residual": np.zeros((12, 4), np.float32)}, ValueError, r"`residual` has shape \(12, 4\)"),
        ({"residual": np.zeros(5, np.float32)}, ValueError, "broadcast_to"),
        ({"residual": np.zeros((12, 5), jnp.bfloat16)}, TypeError, "`residual` is bfloat16, and the result is float32"),
        ({"residual": 1.0}, TypeError, "`residual` is float; expected an array"),
    ],
)
def test_wrong_arguments(op, x, arguments, error, words):
    with pytest.raises(error, match=words):
        amm(x, op, **arguments)


@needs_kernels
@pytest.mark.parametrize("activation", ["", "swish"])
def test_the_kernel_refuses_other_names(op, x, activation):
    trees, tables = (a[None] for a in op.trees.arrays()), op.tables
    arrays = (x[None], *trees, tables.values[None], tables.scale[None], tables.offset[None])
    call = jax.ffi.ffi_call("jax_maddness_amm", jax.ShapeDtypeStruct((1, 12, 5), jnp.float32))
    with pytest.raises(Exception, match="no activation"):
        call(*arrays, activation=activation)
    with pytest.raises(Exception, match="shape and the type"):
        call(*arrays, jnp.zeros((1, 12, 4)), activation="relu")
    with testing.force_backend("jax"):
        assert amm(x, op, activation="relu").shape == (12, 5)
