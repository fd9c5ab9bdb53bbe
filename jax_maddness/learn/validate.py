"""What `fit` accepts, and what it says about the rest."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def kind(value: object, expected: type, name: str) -> None:
    """Raises unless `value` is an instance of `expected`."""
    if not isinstance(value, expected):
        raise TypeError(f"`{name}` is {type(value).__name__}; expected a {expected.__name__}.")


def codebooks(num_codebooks: int, num_features: int) -> int:
    """`num_codebooks` as an int between 1 and `num_features`."""
    try:
        number = operator.index(num_codebooks)
    except TypeError:
        raise TypeError(f"`num_codebooks` is {num_codebooks!r}; expected an integer.") from None
    if number < 1:
        raise ValueError(
            f"`num_codebooks` is {number}; expected at least 1. Start with one for every 16 features: "
            f"{max(1, num_features // 16)}; more are more accurate and slower."
        )
    if number > num_features:
        raise ValueError(
            f"`num_codebooks` is {number}, but `x_train` has {num_features} features, and every codebook needs one of "
            f"its own. Use at most {num_features} codebooks."
        )
    return number


def samples(x_train: Any, name: str = "x_train") -> Float[np.ndarray, "rows features"]:
    """`x_train`, called `name`, in float32 with its leading dimensions flattened to rows: finite, at least one row."""
    x = _float32(rows(x_train, name), name)
    x = x.reshape(-1, x.shape[-1])
    _finite(x, name)
    return x


def rows(value: Any, name: str) -> Any:
    """`value`, called `name`, as an array wherever it is: of real numbers [..., features], at least one row."""
    x = _real(value, name)
    if x.ndim < 2:
        raise ValueError(
            f"`{name}` has shape {x.shape}; expected [..., features] with at least two dimensions. "
            "Pass many rows: an op is learned from samples of `x`."
        )
    if 0 in x.shape:
        raise ValueError(f"`{name}` has shape {x.shape}, so no rows. Pass at least one, better thousands.")
    return x


def extras(arrays: Sequence[Any], leading: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Each of `arrays` with the `leading` dimensions of `x_train` flattened to rows."""
    found = []
    for number, array in enumerate(map(np.asarray, arrays)):
        if array.shape[: len(leading)] != leading:
            raise ValueError(
                f"`extra[{number}]` has shape {array.shape}; expected {leading} and perhaps more, one entry for each "
                "row of `x_train`. What is the same for all rows belongs into the `loss` itself."
            )
        found.append(array.reshape(-1, *array.shape[len(leading) :]))
    return tuple(found)


def product(num_features: int, w: Any, bias: Any, name: str = "x_train") -> tuple[np.ndarray, np.ndarray]:
    """`w` and `bias` (zeros for None) in float32: finite, and of shapes that match each other and `name`."""
    w = _float32(_real(w, "w"), "w")
    if w.ndim != 2 or 0 in w.shape:
        raise ValueError(
            f"`w` has shape {w.shape}; expected [features, outputs], neither of them 0. "
            "Reshape it so that `x @ w` is a matrix product: a single output is `w[:, None]`."
        )
    if num_features != w.shape[0]:
        raise ValueError(
            f"`{name}` has {num_features} features, but `w` has {w.shape[0]} rows. Pass `w` as [features, outputs]: "
            "the op approximates `x @ w`."
        )
    bias = np.zeros(w.shape[1], np.float32) if bias is None else _float32(_real(bias, "bias"), "bias")
    if bias.shape != w.shape[1:]:
        raise ValueError(f"`bias` has shape {bias.shape}; expected {w.shape[1:]}, one number per column of `w`.")
    _finite(w, "w")
    _finite(bias, "bias")
    return w, bias


def in_range(scale: np.ndarray, offset: np.ndarray) -> tuple[Array, Array]:
    """`scale` and `offset`, computed in float64, as float32."""
    reached = np.max([np.abs(scale).max(), np.abs(offset).max()])  # NaN if there is one, unlike Python's max
    if not reached <= np.finfo(np.float32).max:
        raise ValueError(
            f"`x_train @ w + bias` reaches {reached:.2g}, more than float32 holds. Scale `x_train` or `w` down."
        )
    return jax.device_put(scale.astype(np.float32)), jax.device_put(offset.astype(np.float32))


def _real(value: Any, name: str) -> Any:
    """`value` as an array of real numbers, wherever it is."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"`{name}` is traced: `fit` looks at values, so it cannot run inside of jax.jit, jax.vmap or jax.grad. "
            "Call it before, and pass the op it returns as an argument."
        )
    if not hasattr(value, "dtype"):
        value = np.asarray(value)
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        if jnp.issubdtype(value.dtype, jnp.complexfloating):
            hint = "Learn its real and imaginary parts separately."
        else:
            hint = f"Cast it: `{name}.astype(np.float32)`."
        raise TypeError(f"`{name}` is {value.dtype}; expected real numbers. {hint}")
    return value


def _float32(value: Any, name: str) -> np.ndarray:
    """An array as one of NumPy; on a CPU nothing is copied that is one already."""
    if isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated):
        raise ValueError(
            f"`{name}` lies on several processes; only `x_train` of `fit` and the rows of `evaluate` may. Pass what "
            "every process can read, such as an array of NumPy."
        )
    with np.errstate(over="ignore"):  # float64 beyond float32's range becomes infinite, and is reported as such
        return np.asarray(value, np.float32)


def _finite(array: np.ndarray, name: str) -> None:
    if np.isfinite(magnitude(array)):
        return
    bad = np.argwhere(~np.isfinite(array))
    raise not_finite(name, len(bad), f", the first at {tuple(bad[0].tolist())}")


def not_finite(name: str, count: int, where: str = "") -> ValueError:
    """To be raised where `name` has `count` values that are not finite."""
    return ValueError(f"`{name}` has {count} NaN or infinite values (as float32){where}. Remove or replace them.")


def magnitude(array: np.ndarray) -> float:
    """The largest magnitude, NaN if there is one (unlike XLA's maximum on CPU), without a copy of `array`."""
    return float(max(array.max(), -array.min()))


@jax.jit
def largest(array: Array) -> Float[Array, ""]:
    """The largest magnitude in `array`: NaN if an entry is not finite, 0 if there is none.

    XLA's maximum on CPU drops NaN from larger arrays, so it cannot be relied on to find one.
    """
    return jnp.where(jnp.isfinite(array).all(), jnp.abs(array).max(initial=0), jnp.nan)
