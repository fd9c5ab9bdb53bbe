"""Derivatives of a case, compared with those of its `smooth` function; those of integer results are zero."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from helpers.ops import put
from helpers.transformations.cases import Case, stacked

from jax_maddness import testing


def tangent_of(x):
    """A tangent for `x`: those of integers have a dtype of their own, and are nothing."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return np.zeros(x.shape, jax.dtypes.float0)
    return put(np.cos(np.arange(x.size)).reshape(x.shape).astype(np.float32))


def first(case: Case, x, state):
    """The result that has derivatives, as floats."""
    return jax.tree.leaves(case.call(x, state))[0].astype(jnp.float32)


def loss(case: Case, x, state):
    """A weighted sum of results, whose gradient has a part of every result."""
    y = first(case, x, state)
    return (y * np.cos(np.arange(y.size)).reshape(y.shape).astype(np.float32)).sum()


def in_x(case: Case):
    """The gradient in `x`, a function of `x` and a state, as those of the next functions."""
    return jax.grad(lambda x, state: loss(case, x, state), allow_int=True)


def in_state(case: Case):
    """The gradient in the state."""
    return jax.grad(lambda x, state: loss(case, x, state), argnums=1, allow_int=True)


def in_x_remat(case: Case):
    """The gradient in `x` with rematerialization."""
    return jax.grad(jax.checkpoint(lambda x, state: loss(case, x, state)), allow_int=True)


def forward(case: Case):
    """The derivative in `x` along one tangent, in forward mode."""

    def tangents(x, state):
        return jax.jvp(lambda x: first(case, x, state), (x,), (tangent_of(x),))[1]

    return tangents


def second(case: Case):
    """The second derivative in `x` of the sum of squared results."""
    return jax.hessian(lambda x, state: (first(case, x, state) ** 2).sum())


@functools.cache
def expected(case: Case, derivative, member=None, state=0):
    """The derivative of the smooth function in the place of the case's, in pure JAX and without other transformations.

    Args:
      case: the function; its plain result decides what the smooth function holds constant.
      derivative: one of the functions above, such as `in_x`.
      member: the member of `x` to take; None: all in one call.
      state: which of the states to take.
    """
    x, state = case.x if member is None else case.x[member], case.states[state]
    with testing.force_backend("jax"):
        y = first(case, x, state)

        def smooth(x, state):
            return jnp.zeros(y.shape) if case.smooth is None else case.smooth(x, state, y)

        result = jax.jit(derivative(dataclasses.replace(case, call=smooth)))(x, state)
    return jax.tree.map(np.asarray, result)


def by_member(case: Case, derivative):
    """The expected derivative for each member, stacked."""
    return stacked([expected(case, derivative, member) for member in range(len(case.x))])


def assert_close(actual, desired):
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if b.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def of_all(derivative, reference=None):
    """Returns the check of a derivative for all members in one call."""

    def check(case: Case):
        assert_close(jax.jit(derivative(case))(case.x, case.state), expected(case, reference or derivative))

    return check


def hessian(case: Case):
    assert_close(jax.jit(second(case))(case.x[0], case.state), expected(case, second, 0))


def vmap_of_grad(case: Case):
    actual = jax.jit(jax.vmap(in_x(case), (0, None)))(case.x, case.state)
    assert_close(actual, by_member(case, in_x))
