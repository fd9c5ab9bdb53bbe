"""Validates arguments of the public functions for Flax models: an error names the argument and what to pass instead."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

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
