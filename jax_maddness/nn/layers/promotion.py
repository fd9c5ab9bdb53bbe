"""Standard promotion inside of this package, whatever the caller's settings are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

_P = ParamSpec("_P")
_R = TypeVar("_R")


def with_standard_promotion(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Lets `function` add vectors to matrices and floats of several dtypes where the caller's settings refuse it.

    The settings only refuse programs, so that the results of those that they accept, as of the user's model, stay. A
    decorator; warnings that name the caller's line count one frame more.
    """

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return wrapper
