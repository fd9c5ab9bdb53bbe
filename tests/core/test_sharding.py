"""amm on four host devices: sharded rows and outputs, no collective, the same answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import needs_kernels, random_op, random_rows
from jax import export
from jax.experimental import serialize_executable
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_maddness import LookupTables, MaddnessOp, aggregate, amm, disabled_export_checks, encode

OLD = jax.__version_info__ < (0, 10)
"""Kernel calls on Explicit axes are partitioned by a function there, as those on Auto axes are."""
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


def test_sharded_codebooks_are_gathered_or_their_sums_added(mesh, rng):
    """`amm` gathers the tables; inside of shard_map, devices look up their own codebooks, and sums are added."""
    if OLD and mesh.axis_types[0] == AxisType.Explicit:
        pytest.skip("needs JAX 0.10")
    op, x = random_op(rng, 8, 4, 6), jnp.asarray(random_rows(rng, 16, 8))
    y, sums = np.asarray(amm(x, op)), np.asarray(aggregate(encode(x, op.trees), op.tables))

    def put(a, *spec):
        return jax.device_put(a, NamedSharding(mesh, P(*spec)))

    trees = jax.tree.map(lambda a: put(a, ("r", "m")), op.trees)
    values, scale, offset = put(op.tables.values, None, ("r", "m")), put(op.tables.scale), put(op.tables.offset)

    def own_sums(x, trees, values):
        return jax.lax.psum(aggregate(encode(x, trees), LookupTables(values, scale, offset)), ("r", "m"))

    specs = (P(), P(("r", "m")), P(None, ("r", "m")))
    with jax.set_mesh(mesh):
        added = jax.jit(jax.shard_map(own_sums, mesh=mesh, in_specs=specs, out_specs=P()))(put(x), trees, values)
        gathered = jax.jit(amm)(put(x), MaddnessOp(trees, LookupTables(values, scale, offset)))
    np.testing.assert_array_equal(added, sums)
    np.testing.assert_array_equal(gathered, y)


@needs_kernels
@pytest.mark.parametrize("how", ["Explicit", "Auto, in shard_map", "Explicit, in shard_map"])
def test_what_is_sharded_can_be_exported_and_its_executable_stored(how, op, x):
    """Over Auto axes this needs shard_map: `amm` is partitioned by a function, which JAX does not serialize."""
    kind, *inside = how.split(", ")
    if OLD and not inside:
        pytest.skip("needs JAX 0.10")
    mesh = jax.make_mesh((4,), ("r",), axis_types=(getattr(AxisType, kind),))
    sharded = jax.device_put(x, NamedSharding(mesh, P("r")))
    op = jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, P())), op)
    f = jax.shard_map(amm, mesh=mesh, in_specs=(P("r"), P()), out_specs=P("r")) if inside else amm
    with jax.set_mesh(mesh):
        expected = np.asarray(amm(x, op))
        module = export.export(jax.jit(f), disabled_checks=disabled_export_checks())(sharded, op)
        again = export.deserialize(module.serialize())
        assert again.nr_devices == 4
        np.testing.assert_array_equal(jax.jit(again.call)(sharded, op), expected)
        compiled = jax.jit(f).lower(sharded, op).compile()
        loaded = serialize_executable.deserialize_and_load(*serialize_executable.serialize(compiled))
        np.testing.assert_array_equal(loaded(sharded, op), expected)
