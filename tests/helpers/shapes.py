"""Every call of a public function in the tests is checked against its annotations: shapes, dtypes and kinds."""

import functools
import inspect
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
from beartype.door import is_bearable
from jaxtyping import jaxtyped

import jax_maddness


def with_annotations_checked(function):
    """`function`, which after every call that succeeds compares arrays and results with its annotations.

    One axis name stands for one size in the whole call, as `features` in `x [..., features]` and `w [features, M]`.
    Calls that fail are left alone: their errors are what tests look at. So are arguments that are no arrays, of which
    functions take more kinds than they promise.
    """
    signature, hints = inspect.signature(function), typing.get_type_hints(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs).arguments
        arrays = {
            name: value for name, value in arguments.items() if is_array(value) and "jaxtyping" in str(hints[name])
        }
        with jaxtyped("context"):
            for name, value in {**arrays, "return": result}.items():
                if not any(is_bearable(form, hints[name]) for form in forms(value)):
                    shown = jax.tree.map(lambda a: getattr(a, "aval", a), value)
                    raise AssertionError(f"`{name}` of {function.__name__} is {shown}, against {hints[name]}")
        return result

    return call


def is_array(value):
    """Whether a value is an array of JAX or NumPy, and of no subclass."""
    return isinstance(value, jax.Array) or type(value) is np.ndarray


def forms(value):
    """The value, and what it is used as: arrays of NumPy and of integers are taken where floats of JAX are promised."""
    yield value
    if type(value) is np.ndarray:
        yield jax.device_put(value)  # asarray would compile a program, and some tests count these
        if value.dtype.kind in "biu":
            yield jax.device_put(value.astype(np.float32))
    elif isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer):
        yield value.astype(jnp.float32)


def check_public_functions():
    """Replaces the public functions by ones whose annotations are checked, before tests import them."""
    for name in jax_maddness.__all__:
        function = getattr(jax_maddness, name)
        if inspect.isfunction(function):
            checked = with_annotations_checked(function)
            setattr(jax_maddness, name, checked)
            setattr(sys.modules[function.__module__], name, checked)  # where pickle looks for it
