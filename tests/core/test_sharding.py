"""amm on four host devices: sharded rows and outputs, no collective, the same answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import random_op, random_rows
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_maddness import LookupTables, MaddnessOp, amm, encode

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit])
def mesh(request):
    return jax.make_mesh((2, 2), ("r", "m"), axis_types=(request.param,) * 2)


@pytest.fixture
def op(rng, make_trees):
    return random_op(rng, 8, 3, 6, weights=True, make_trees=make_trees)


@pytest.fixture
def x(rng):
    return jnp.asarray(random_rows(rng, 16, 8))


def with_sharded_outputs(op, mesh):
    def put(a, *spec):
        return jax.device_put(a, NamedSharding(mesh, P(*spec)))

    values, scale, offset = op.tables.values, op.tables.scale, op.tables.offset
    tables = LookupTables(put(values, "m", None, None), put(scale, "m"), put(offset, "m"))
    return MaddnessOp(op.trees, tables, put(op.weights, None, "m"))


@pytest.mark.parametrize("rows", [P("r"), P(("r", "m")), P("m", None), P()])
def test_sharded_rows(mesh, op, x, rows):
    expected = np.asarray(amm(x, op))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, rows))
        for f in (amm, jax.jit(amm)):
            y = f(sharded, op)
            np.testing.assert_array_equal(y, expected)
            assert y.sharding.is_equivalent_to(NamedSharding(mesh, rows), 2)
        np.testing.assert_array_equal(jax.jit(encode)(sharded, op.trees), encode(x, op.trees))


def test_sharded_rows_and_outputs_need_no_collective(mesh, op, x):
    expected = np.asarray(amm(x, op))
    with jax.set_mesh(mesh):
        sharded, op = jax.device_put(x, NamedSharding(mesh, P("r"))), with_sharded_outputs(op, mesh)
        compiled = jax.jit(amm).lower(sharded, op).compile()
        y = compiled(sharded, op)
    np.testing.assert_array_equal(y, expected)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P("r", "m")), 2)
    assert not [name for name in COLLECTIVES if name in compiled.as_text()]


def test_two_sharded_leading_dimensions_and_vmap(mesh, op, x):
    expected = np.asarray(amm(x, op)).reshape(4, 4, 6)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x.reshape(4, 4, 8), NamedSharding(mesh, P("r", "m")))
        np.testing.assert_array_equal(jax.jit(amm)(sharded, op), expected)
        np.testing.assert_array_equal(jax.jit(jax.vmap(amm, (0, None)))(sharded, op), expected)


def test_gradient_of_sharded_rows_and_outputs(mesh, op, x):
    expected = np.asarray(jax.grad(lambda x: (amm(x, op) ** 2).sum())(x))
    with jax.set_mesh(mesh):
        sharded, op = jax.device_put(x, NamedSharding(mesh, P("r"))), with_sharded_outputs(op, mesh)
        dx = jax.jit(jax.grad(lambda x: (amm(x, op) ** 2).sum()))(sharded)
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("manual", [{"r", "m"}, {"r"}])
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_whole_and_partial(mesh, op, x, manual, check_vma):
    expected = np.asarray(amm(x, op))
    replicated = jax.tree.map(lambda _: P(), op)
    f = jax.shard_map(
        amm, mesh=mesh, in_specs=(P("r"), replicated), out_specs=P("r"), axis_names=manual, check_vma=check_vma
    )
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, P("r")))
        np.testing.assert_array_equal(jax.jit(f)(sharded, op), expected)


def test_gradient_inside_shard_map(mesh, op, x):
    expected = np.asarray(jax.grad(lambda x: (amm(x, op) ** 2).sum())(x))
    gradient = jax.grad(lambda x, op: (amm(x, op) ** 2).sum())
    specs = (P("r"), jax.tree.map(lambda _: P(), op))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, P("r")))
        dx = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=P("r")))(sharded, op)
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-4)
