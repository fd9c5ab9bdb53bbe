"""Transformations of calls: each function here transforms the call of a case and compares it with plain calls.

Most transformations run inside of jit: step by step each primitive would be a program of its own.
"""

import concurrent.futures
import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
from helpers.ops import put
from helpers.transformations import derivatives
from helpers.transformations.cases import MEMBERS, Case, stacked
from jax import export, lax

from jax_maddness import disabled_export_checks, testing
from jax_maddness.core import ffi


def assert_same(actual, desired):
    """Integers are equal, and floats up to the last rounding: XLA may contract `scale * sums + offset` or not."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        exact = np.issubdtype(b.dtype, np.integer)
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-4)


def jit(case: Case):
    assert_same(jax.jit(case.call)(case.not_finite, case.state), case.call(case.not_finite, case.state))


def eval_shape(case: Case):
    shapes = jax.eval_shape(case.call, *jax.tree.map(_shape, (case.x, case.state)))
    assert shapes == jax.tree.map(_shape, case.call(case.x, case.state))


def ahead_of_time(case: Case):
    compiled = jax.jit(case.call).lower(*jax.tree.map(_shape, (case.x, case.state))).compile()
    assert_same(compiled(case.x, case.state), case.call(case.x, case.state))


def donation(case: Case):
    expected, copies = case.call(case.x, case.state), jax.tree.map(jnp.copy, (case.x, case.state))
    assert_same(jax.jit(case.call, donate_argnums=(0, 1))(*copies), expected)


def vmap_over_x(case: Case):
    expected = case.by_member(case.not_finite, case.state)
    assert_same(jax.jit(jax.vmap(case.call, (0, None)))(case.not_finite, case.state), expected)


def vmap_over_state(case: Case):
    expected = stacked([case.call(case.x[0], state) for state in case.states])
    assert_same(jax.jit(jax.vmap(case.call, (None, 0)))(case.x[0], case.stack), expected)


def vmap_over_both(case: Case):
    expected = stacked([case.call(x, state) for x, state in zip(case.x[2:], case.states, strict=True)])
    assert_same(jax.jit(jax.vmap(case.call))(case.x[2:], case.stack), expected)


def nested_vmap(case: Case):
    """Over states, over members that are not the first dimension, and with results that are not either."""
    expected = stacked([case.by_member(case.x, state) for state in case.states])
    over_members = jax.vmap(case.call, (1, None), 1)
    results = jax.jit(jax.vmap(over_members, (None, 0)))(jnp.moveaxis(case.x, 0, 1), case.stack)
    assert_same(jax.tree.map(lambda a: np.moveaxis(a, 2, 1), results), expected)


def empty_batch(case: Case):
    expected = jax.tree.map(lambda a: np.asarray(a)[:0], case.call(case.x, case.state))
    assert_same(jax.jit(case.call)(case.x[:0], case.state), expected)
    assert_same(jax.jit(jax.vmap(case.call, (0, None)))(case.x[:0], case.state), expected)


def scan(case: Case):
    expected = stacked([case.call(x, state) for x, state in zip(case.x[2:], case.states, strict=True)])

    def step(count, member):
        return count + 1, case.call(*member)

    count, results = jax.jit(lambda *members: lax.scan(step, 0, members))(case.x[2:], case.stack)
    assert count == 2
    assert_same(results, expected)


def while_loop(case: Case):
    expected = case.by_member(case.x[1:2], case.state)

    def run(x, state, last):
        first = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(case.call, x[0], state))
        return lax.while_loop(lambda at: at[0] < last, lambda at: (at[0] + 1, case.call(x[at[0]], state)), (0, first))

    assert_same(jax.tree.map(lambda a: a[None], jax.jit(run)(case.x, case.state, 2)[1]), expected)


def cond(case: Case):
    expected = case.call(case.x[0], case.state)

    def run(pred, x, state):
        return lax.cond(pred, case.call, lambda x, state: jax.tree.map(jnp.zeros_like, expected), x, state)

    jitted = jax.jit(run)
    assert_same(jitted(True, case.x[0], case.state), expected)
    assert_same(jitted(False, case.x[0], case.state), jax.tree.map(np.zeros_like, expected))


def exported(case: Case):
    expected = case.call(case.x, case.state)
    checks = disabled_export_checks()
    module = export.export(jax.jit(case.call), disabled_checks=checks)(case.x, case.state).serialize()
    assert_same(export.deserialize(module).call(case.x, case.state), expected)


def exported_for_any_batch(case: Case):
    expected = case.call(case.x, case.state)
    (members,) = export.symbolic_shape("members")
    x = jax.ShapeDtypeStruct((members, *case.x.shape[1:]), case.x.dtype)
    module = export.export(jax.jit(case.call), disabled_checks=disabled_export_checks())(x, case.state)
    assert_same(module.call(case.x, case.state), expected)


def portable(case: Case):
    testing.assert_portable(case.call, case.x, case.state)


def under(*options):
    """Returns the check of results and of derivatives under options of JAX, each a context."""

    def check(case: Case):
        def both(x, state):
            return case.call(x, state), derivatives.forward(case)(x, state)

        desired = case.call(case.x, case.state), derivatives.expected(case, derivatives.forward)
        with contextlib.ExitStack() as stack:
            for option in options:
                stack.enter_context(option())
            results, tangents = jax.jit(both)(case.x, case.state)
        assert_same(results, desired[0])
        derivatives.assert_close(tangents, desired[1])

    return check


def threads(case: Case):
    """Four threads trace, compile and run the same function at once."""
    expected, function, backend = case.by_member(case.x, case.state), jax.jit(case.call), ffi.backend()
    together = threading.Barrier(MEMBERS)

    def run(member):
        with testing.force_backend(backend):  # the choice is that of a thread
            together.wait()
            return [function(member, case.state) for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(MEMBERS) as pool:
        runs = list(pool.map(run, [put(member) for member in np.asarray(case.x)]))
    for results in zip(*runs, strict=True):
        assert_same(stacked(list(results)), expected)


def _shape(a):
    return jax.ShapeDtypeStruct(a.shape, a.dtype)
