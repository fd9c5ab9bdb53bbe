"""Validation of the arguments of `fit` and its relatives: each function raises an error that names the remedy."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def codebooks(num_codebooks: int, num_features: int, least: int = 1) -> int:
    """Returns `num_codebooks` as an int, validated to be between `least` and `num_features`."""
    number = integer(num_codebooks)
    if number is None:
        raise TypeError(f"`num_codebooks` is {num_codebooks!r}; expected an integer.")
    if number < least:
        raise ValueError(
            f"`num_codebooks` is {number}; expected at least {least}. Start with one for every 16 features: "
            f"{max(1, num_features // 16)}; more are more accurate and slower."
        )
    if number > num_features:
        raise ValueError(
            f"`num_codebooks` is {number}, but `x_train` has {num_features} features, and every codebook needs one of "
            f"its own. Use at most {num_features} codebooks."
        )
    return number


def integer(value: Any) -> int | None:
    """Returns `value` as an int if it is an integer of Python or NumPy; None if it is anything else, or a bool."""
    if isinstance(value, bool):  # True would count as 1
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def samples(x_train: Any, name: str = "x_train") -> Float[np.ndarray, "rows features"]:
    """Returns `x_train`, the argument called `name`, as float32 rows, finite and at least one."""
    x = _float32(rows(x_train, name), name)
    x = x.reshape(-1, x.shape[-1])
    _finite(x, name)
    return x


def rows(value: Any, name: str) -> Any:
    """Returns `value`, called `name`, as an array of real numbers `[..., features]` with at least one row.

    The array stays where it is: on the host, on a device, or sharded over several.
    """
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
    """Returns each of `arrays` with its leading dimensions, which must be those of `x_train`, flattened to rows."""
    flattened = []
    for number, array in enumerate(map(np.asarray, arrays)):
        if array.shape[: len(leading)] != leading:
            raise ValueError(
                f"`extra[{number}]` has shape {array.shape}; expected {leading} and perhaps more, one entry for each "
                "row of `x_train`. What is the same for all rows belongs into the `loss` itself."
            )
        flattened.append(array.reshape(-1, *array.shape[len(leading) :]))
    return tuple(flattened)


def product(num_features: int, w: Any, bias: Any, name: str = "x_train") -> tuple[np.ndarray, np.ndarray]:
    """Returns `w` and `bias` (zeros for None) as finite float32 arrays whose shapes match each other and `name`."""
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
    """Returns `scale` and `offset`, computed in float64, as float32 arrays on the default device.

    Raises:
      ValueError: float32 does not hold one of them.
    """
    largest_magnitude = np.max([np.abs(scale).max(), np.abs(offset).max()])  # NaN if there is one, unlike Python's max
    if not largest_magnitude <= np.finfo(np.float32).max:
        raise ValueError(
            f"`x_train @ w + bias` reaches {largest_magnitude:.2g}, more than float32 holds. "
            "Scale `x_train` or `w` down."
        )
    return jax.device_put(scale.astype(np.float32)), jax.device_put(offset.astype(np.float32))


def _real(value: Any, name: str) -> Any:
    """Returns `value` as an array of real numbers, without moving it."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"`{name}` is traced: `fit` looks at values, so it cannot run inside of jax.jit, jax.vmap or jax.grad. "
            "Call it before, and pass the op it returns as an argument."
        )
    if not isinstance(value, jax.Array):
        value = _numpy(value, name)
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        if jnp.issubdtype(value.dtype, jnp.complexfloating):
            hint = "Learn its real and imaginary parts separately."
        else:
            hint = f"Cast it: `{name}.astype(np.float32)`."
        raise TypeError(f"`{name}` is {value.dtype}; expected real numbers. {hint}")
    return value


def _numpy(value: Any, name: str) -> np.ndarray:
    """Returns what is not an array of JAX as one of NumPy: lists, and arrays of other libraries such as torch."""
    if isinstance(value, np.ma.MaskedArray):
        if masked := int(np.ma.count_masked(value)):
            raise ValueError(
                f"`{name}` has {masked} masked values, and all values count. Pass rows without any: "
                f"`{name}.data[~numpy.ma.getmaskarray({name}).any(-1)]`."
            )
        return value.data
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Iterator):
        hint = " Pass a function that returns a new iterator over the batches at every call." if _is_rows(name) else ""
        raise TypeError(f"`{name}` is a {type(value).__name__}, which can be read only once; expected an array.{hint}")
    try:
        array = np.asarray(value)
    except Exception as error:
        hint = f" Batches come from a function: `lambda: iter({name})`." if _is_rows(name) else ""
        raise TypeError(
            f"`{name}` is {type(value).__name__}, which NumPy cannot convert to an array of numbers.{hint}"
        ) from error
    if array.dtype == object:
        raise TypeError(f"`{name}` is {type(value).__name__}; expected an array of real numbers.")
    return array


def _is_rows(name: str) -> bool:
    """Returns whether the argument called `name` may come in batches."""
    return name == "x_train"


def _float32(value: Any, name: str) -> np.ndarray:
    """Returns an array as a float32 NumPy array, without a copy if it is one or lies on a CPU device as float32."""
    if isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated):
        raise ValueError(
            f"`{name}` lies on several processes; only `x_train` of `fit` and the rows of `evaluate` may. Pass what "
            "every process can read, such as an array of NumPy."
        )
    with np.errstate(over="ignore"):  # float64 beyond float32's range becomes infinite, and is reported as such
        return np.asarray(value, np.float32)


def _finite(array: np.ndarray, name: str) -> None:
    """Raises `ValueError` if `array`, called `name`, has NaN or infinite values."""
    # The range alone tells whether there are any, without the mask that `np.isfinite(array)` would allocate.
    if np.isfinite(magnitude(array)):
        return
    bad = np.argwhere(~np.isfinite(array))
    raise not_finite(name, len(bad), f", the first at {tuple(bad[0].tolist())}")


def not_finite(name: str, count: int, where: str = "") -> ValueError:
    """Returns the error to raise for an argument called `name` that has `count` values that are not finite."""
    return ValueError(f"`{name}` has {count} NaN or infinite values (as float32){where}. Remove or replace them.")


def magnitude(array: np.ndarray) -> float:
    """Returns the largest magnitude in `array`, without a copy of it; NaN if there is one, unlike XLA on a CPU."""
    return float(max(array.max(), -array.min()))


@jax.jit
def largest(array: Array) -> Float[Array, ""]:
    """Returns the largest magnitude in `array`: NaN if an entry is not finite, 0 if the array is empty.

    XLA's maximum on CPU drops NaN from larger arrays, so it cannot be relied on to find one.
    """
    return jnp.where(jnp.isfinite(array).all(), jnp.abs(array).max(initial=0), jnp.nan)
