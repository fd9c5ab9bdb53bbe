"""Validates arguments of public functions, whatever they are: an error names the argument and what to pass instead."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def integer(value: Any, name: str, least: int, otherwise: str = "") -> int:
    """Returns an integer of Python, NumPy or JAX as an `int`.

    Args:
      value: the argument.
      name: its name.
      least: the least value.
      otherwise: what else may be passed, for the message: ", or None for ...".

    Raises:
      TypeError: It is no integer; a bool is none.
      ValueError: It is less than `least`.
    """
    expected = f"`{name}` is {value!r:.100}; expected an integer >= {least}{otherwise}."
    if isinstance(value, bool | np.bool_):
        raise TypeError(expected)
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(expected) from None
    if number < least:
        raise ValueError(expected)
    return number


def real(value: Any, name: str, expected: str) -> float:
    """Returns a number of Python, NumPy or JAX, which is not NaN, as a `float`.

    Args:
      value: the argument.
      name: its name.
      expected: what is expected, for the message: "a number >= 0".

    Raises:
      TypeError: It is no real number; a bool or a string is none.
      ValueError: It is NaN.
    """
    if getattr(value, "shape", None) == ():  # a scalar array
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` is {value!r:.100}; expected {expected}.")
    if math.isnan(value):
        raise ValueError(f"`{name}` is NaN; expected {expected}.")
    return float(value)


def flag(value: Any, name: str) -> bool:
    """Returns True or False of Python or NumPy as a `bool`.

    Raises:
      TypeError: It is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` is {value!r:.100}; expected True or False.")
    return bool(value)


def function(value: Any, name: str, signature: str) -> None:
    """Raises unless an argument is None or a function.

    Raises:
      TypeError: It is neither.
    """
    if value is not None and not callable(value):
        raise TypeError(f"`{name}` is {value!r:.100}; expected a function, `{signature}`, or None.")


def choice(value: Any, name: str, names: Sequence[str]) -> None:
    """Raises unless an argument is one of several names.

    Raises:
      ValueError: It is none of them, or no string.
    """
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"`{name}` is {value!r:.100}; expected one of: {', '.join(map(repr, names))}.")


def instance(value: Any, name: str, expected: type, source: str = "") -> None:
    """Raises unless an argument is of the expected class.

    Args:
      value: the argument.
      name: its name.
      expected: the class.
      source: where an instance comes from, for the message: "`fit` returns one".

    Raises:
      TypeError: It is of another class.
    """
    if not isinstance(value, expected):
        source = source and f": {source}"
        raise TypeError(f"`{name}` is {type(value).__name__}; expected a {expected.__name__}{source}.")


def real_array(value: Any, name: str) -> Any:
    """Returns an array of real numbers, or what NumPy reads as one, as an array of NumPy or JAX.

    Raises:
      TypeError: It is something else.
    """
    if not isinstance(value, np.ndarray | jax.Array):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"`{name}` is {type(value).__name__}; expected an array of real numbers: {error}") from None
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"`{name}` is an array of {value.dtype}; expected one of real numbers.")
    return value
