"""Calls on four devices, whose members of `x` are sharded."""

import jax
import numpy as np
from helpers.transformations import derivatives
from helpers.transformations.cases import MEMBERS, Case
from helpers.transformations.checks import assert_same
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def _mesh(kind):
    return jax.make_mesh((MEMBERS,), ("members",), axis_types=(kind,))


def _in_shards(function, case: Case):
    """`function` for every shard of `x`, each with the whole state."""
    specs = (P("members"), jax.tree.map(lambda _: P(), case.state))
    return jax.jit(jax.shard_map(function, mesh=_mesh(AxisType.Auto), in_specs=specs, out_specs=P("members")))


def shard_map(case: Case):
    actual = _in_shards(case.call, case)(case.not_finite, case.state)
    assert_same(actual, case.by_member(case.not_finite, case.state))


def grad_in_shard_map(case: Case):
    actual = _in_shards(derivatives.in_x(case), case)(case.x, case.state)
    derivatives.assert_close(actual, derivatives.by_member(case, derivatives.in_x))


def _on_mesh(kind, function, case: Case):
    """The result of a function of sharded members of `x`."""
    mesh = _mesh(kind)
    with jax.set_mesh(mesh):
        return jax.jit(function)(jax.device_put(case.x, NamedSharding(mesh, P("members"))), case.state)


def on_mesh(kind):
    """Returns the check of results of sharded members, which stay where the members are."""

    def check(case: Case):
        desired = jax.tree.map(np.asarray, case.call(case.x, case.state))
        actual = _on_mesh(kind, case.call, case)
        assert_same(actual, desired)
        by_members = NamedSharding(_mesh(kind), P("members"))
        assert all(a.sharding.is_equivalent_to(by_members, a.ndim) for a in jax.tree.leaves(actual))

    return check


def grad_on_mesh(kind):
    """Returns the check of the derivative in sharded members."""

    def check(case: Case):
        actual = _on_mesh(kind, derivatives.in_x(case), case)
        derivatives.assert_close(actual, derivatives.expected(case, derivatives.in_x))

    return check


def vmap_on_mesh(kind):
    """Returns the check of `jax.vmap` over sharded members."""

    def check(case: Case):
        desired = case.by_member(case.x, case.state)
        actual = _on_mesh(kind, jax.vmap(case.call, (0, None)), case)
        assert_same(actual, desired)

    return check


def vmap_of_grad_on_mesh(kind):
    """Returns the check of `jax.vmap` of derivatives over sharded members."""

    def check(case: Case):
        actual = _on_mesh(kind, jax.vmap(derivatives.in_x(case), (0, None)), case)
        derivatives.assert_close(actual, derivatives.by_member(case, derivatives.in_x))

    return check
