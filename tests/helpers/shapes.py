"""Every call of a public function in the tests is checked against its annotations: shapes, dtypes and kinds."""

import functools
import inspect
import operator
import typing

import jax
import jax.numpy as jnp
import numpy as np
from beartype.door import is_bearable
from jaxtyping import jaxtyped

import jax_maddness


def with_annotations_checked(function):
    """`function`, which after every call that succeeds compares arguments and result with its annotations.

    One axis name stands for one size in the whole call, as `features` in `x [..., features]` and `w [features, M]`.
    Calls that fail are left alone: their errors are what tests look at.
    """
    signature, hints = inspect.signature(function), typing.get_type_hints(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        values = {**signature.bind(*args, **kwargs).arguments, "return": result}
        with jaxtyped("context"):
            for name, value in values.items():
                if isinstance(value, np.ndarray) and name != "return":
                    value = jnp.asarray(value)  # arrays of NumPy are taken wherever those of JAX are
                if hints[name] is int and np.ndim(value) == 0 and not isinstance(value, bool):
                    value = operator.index(value)  # integers of NumPy and JAX likewise
                if not is_bearable(value, hints[name]):
                    shown = jax.tree.map(lambda a: getattr(a, "aval", a), value)
                    raise AssertionError(f"`{name}` of {function.__name__} is {shown}, against {hints[name]}")
        return result

    return call


def check_public_functions():
    """Replaces the public functions by ones whose annotations are checked, before tests import them."""
    for name in jax_maddness.__all__:
        function = getattr(jax_maddness, name)
        if inspect.isfunction(function):
            setattr(jax_maddness, name, with_annotations_checked(function))
