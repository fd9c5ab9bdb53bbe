"""Validates the arguments of retrieval: each function raises an error that names the argument and the remedy."""

from __future__ import annotations

import numbers
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32, Integer

from jax_maddness.core.arguments import choice
from jax_maddness.core.validate import ROW_DTYPES
from jax_maddness.learn import validate
from jax_maddness.retrieval import scan
from jax_maddness.retrieval.index import METRICS

_SAFE = 2.0**50
"""Rows of at most this magnitude have squared lengths that float32 holds, with any number of features."""
_LEAST = 2.0**-100
"""The largest magnitude of all vectors is at least this, so that numbers a million times smaller are normal."""
_LARGEST_ID = np.iinfo(np.int32).max
METHODS = ("kmeans", "trees")
"""The values of the argument `method` of `build_index`."""


def options(metric: str, method: str, bias: Any) -> None:
    """Raises ValueError unless `metric` and `method` are known, and `bias` goes with the metric."""
    choice(metric, "metric", METRICS)
    choice(method, "method", METHODS)
    if bias is not None and metric != "ip":
        raise ValueError(f"`bias` is added to products, but `metric` is {metric!r}. Leave it out, or use 'ip'.")


def array(value: Any, name: str) -> Any:
    """Returns `value`, called `name`, as an array of NumPy or JAX; arrays of other libraries are converted.

    Raises:
      TypeError: it is no array, or one whose mask would be ignored.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"`{name}` is a masked array, whose mask would be ignored. Pass `{name}.filled(...)`.")
    if isinstance(value, np.ndarray | jax.Array):
        return value
    try:
        converted = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"`{name}` is {type(value).__name__}; expected an array. NumPy cannot read it: {error}"
        ) from None
    if converted.dtype == object:
        raise TypeError(f"`{name}` is {type(value).__name__}; expected an array of numbers.")
    return converted


def samples(vectors: Any, features: int | None, name: str = "queries") -> Float[np.ndarray, "rows features"]:
    """Returns `vectors`, called `name`, as finite float32 rows with the given number of features."""
    given = array(vectors, name)
    if given.ndim == 1:
        raise ValueError(
            f"`{name}` has shape {given.shape}; expected [rows, features]. Pass one vector as `{name}[None]`."
        )
    rows = validate.samples(given, name)
    if features is not None and rows.shape[1] != features:
        raise ValueError(f"`{name}` has {rows.shape[1]} features; expected {features}, as the index has.")
    return rows


def rows(
    vectors: Any, metric: str, features: int | None = None, name: str = "database"
) -> Float[np.ndarray, "vectors features"]:
    """Returns `vectors` as float32 rows whose products and distances float32 can hold.

    Raises:
      TypeError, ValueError: an argument has the wrong type, shape or values; the message names it.
    """
    rows = samples(vectors, features, name)
    if metric == "cosine":
        return rows
    largest = validate.magnitude(rows)
    most = float(np.finfo(np.float32).max)
    if largest > _SAFE and max(float(np.square(row, dtype=np.float64).sum()) for row in rows) > most:
        raise ValueError(f"`{name}` has vectors so long that their squared lengths overflow float32. Scale it down.")
    if features is None and 0 < largest < _LEAST:
        raise ValueError(
            f"`{name}` has no magnitude above {largest:.2g}, and float32 loses digits of such "
            "small numbers. Scale it up."
        )
    return rows


def bias(values: Any, count: int) -> Float[np.ndarray, " vectors"]:
    """Returns a bias as float32, one finite number for each of `count` vectors.

    Raises:
      TypeError, ValueError: it has the wrong type, shape or values.
    """
    given = array(values, "bias")
    if given.shape != (count,):
        raise ValueError(f"`bias` has shape {given.shape}; expected ({count},), one number for each vector.")
    return validate.samples(given[:, None], "bias")[:, 0]


def held(rows: Float[np.ndarray, "vectors features"], dtype: Any, name: str) -> np.ndarray:
    """Returns vectors in the dtype in which an index keeps them.

    Raises:
      ValueError: `dtype` cannot hold one of them: it is infinite there, or zero.
    """
    with np.errstate(over="ignore"):
        kept = rows.astype(dtype)
    lost = rows.any(1) & ~kept.any(1) | ~np.isfinite(kept).all(1)
    if lost.any():
        raise ValueError(
            f"`{name}` has {int(lost.sum())} vectors that {jnp.dtype(dtype).name} cannot hold, the first at "
            f"{int(lost.argmax())}: they would be infinite or zero. Scale them, or build the index with "
            "`keep_vectors=np.float32`."
        )
    return kept


def codebooks(num_codebooks: int, features: int) -> int:
    """Returns `num_codebooks` as an int.

    Raises:
      TypeError, ValueError: it is not an integer, or out of range.
    """
    try:
        number = operator.index(num_codebooks)
    except TypeError:
        raise TypeError(f"`num_codebooks` is {num_codebooks!r}; expected an integer.") from None
    most = min(features, scan.MAX_CODEBOOKS)
    if not 1 <= number <= most:
        raise ValueError(
            f"`num_codebooks` is {number}; expected 1 to {most}, as the vectors have {features} features. "
            f"Start with one for every 8 of them: {max(1, most // 8)}."
        )
    return number


def lists(num_lists: Any, count: int) -> int:
    """Returns `num_lists` as an int.

    Raises:
      TypeError, ValueError: it is not an integer, or not between 1 and the number of vectors.
    """
    number = integer(num_lists, "num_lists")
    if not 1 <= number <= count:
        raise ValueError(
            f"`num_lists` is {number}; expected 1 to {count}, the number of vectors. Start with the square root of it: "
            f"{max(1, round(count**0.5))}."
        )
    return number


def names(ids: Any, count: int, first: int = 0) -> tuple[Int32[np.ndarray, " vectors"], np.ndarray]:
    """Returns the ids in ascending order, and the original position of each.

    Args:
      ids: the ids, or None for consecutive ones from `first`.
      count: number of vectors.
      first: the first of consecutive ids.

    Raises:
      ValueError: `ids` does not have one distinct int32, 0 or greater, for each vector.
    """
    if ids is None:
        if first + count - 1 > _LARGEST_ID:
            raise ValueError(f"`ids` would follow the greatest id of `index`, {first - 1}, beyond int32. Pass `ids`.")
        names = np.arange(first, first + count)
    else:
        names = _integers(ids)
    if names.shape != (count,):
        raise ValueError(f"`ids` has shape {names.shape}; expected {count} integers, one for each vector.")
    if names.min() < 0 or names.max() > _LARGEST_ID or len(np.unique(names)) != count:
        raise ValueError("`ids` has one that is negative, beyond int32, or there twice. Names are unique, from 0.")
    order = np.argsort(names)
    return names[order].astype(np.int32), order


def distinct(ids: Any) -> Integer[np.ndarray, " removed"]:
    """Returns the ids to remove, in ascending order.

    Raises:
      TypeError: they are not integers.
      ValueError: they have another shape than `[removed]`, or one of them is there twice.
    """
    names = _integers(ids)
    if names.ndim != 1:
        raise ValueError(f"`ids` has shape {names.shape}; expected [removed]. Pass one id as `[id]`.")
    ordered, counts = np.unique(names, return_counts=True)
    if len(twice := ordered[counts > 1]):
        raise ValueError(f"`ids` has {len(twice)} more than once, such as {twice[0]}. Pass `np.unique(ids)`.")
    return ordered


def refuse_unknown(unknown: Integer[np.ndarray, " unknown"]) -> None:
    """Raises ValueError if there are ids to remove that the index does not have."""
    if len(unknown):
        raise ValueError(f"`ids` has {len(unknown)} that are not in `index`, such as {unknown[0]}.")


def _integers(ids: Any) -> np.ndarray:
    given = np.asarray(array(ids, "ids"))
    if given.size == 0 and given.dtype == np.float64:  # what NumPy makes of an empty list
        return given.astype(np.int64)
    if given.dtype == np.bool_:
        raise TypeError(
            "`ids` is a mask, of bool; expected integers. Pass the ids where it holds: `np.flatnonzero(mask)`."
        )
    if not np.issubdtype(given.dtype, np.integer):
        raise TypeError(f"`ids` is {given.dtype}; expected integers, as `search` returns them.")
    return given


def kept(keep_vectors: Any, given: Any) -> Any:
    """Returns the dtype in which an index keeps vectors, or None if it keeps none.

    Args:
      keep_vectors: the argument of `build_index`.
      given: the vectors as the caller passed them.

    Raises:
      ValueError: `keep_vectors` is a dtype that rows cannot have.
    """
    if keep_vectors is None or isinstance(keep_vectors, bool | np.bool_):
        if not keep_vectors:
            return None
        dtype = jnp.dtype(given.dtype)
        return dtype if dtype in ROW_DTYPES else jnp.dtype(jnp.float32)
    try:
        dtype = None if isinstance(keep_vectors, int | float) else jnp.dtype(keep_vectors)
    except TypeError:
        dtype = None
    if dtype not in ROW_DTYPES:
        raise ValueError(f"`keep_vectors` is {keep_vectors!r}; expected a bool, float32, bfloat16 or float16.")
    return dtype


def integer(value: Any, name: str) -> int:
    """Returns `value`, the argument called `name`, as an int.

    Raises:
      TypeError: it is a bool, not an integer, or traced.
    """
    try:
        if isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) == np.bool_:
            raise TypeError
        return operator.index(value)
    except TypeError:  # a traced integer raises a subclass of it
        raise TypeError(f"`{name}` is {value!r}; expected an integer, which is static under `jax.jit`.") from None


def share(value: Any, name: str) -> float:
    """Returns `value`, the argument called `name`, as a float.

    Raises:
      TypeError: it is no number.
    """
    shape = getattr(value, "shape", ())
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real | np.ndarray | jax.Array) or shape:
        raise TypeError(f"`{name}` is {value!r}; expected a number.")
    try:
        return float(value)
    except TypeError:
        raise TypeError(f"`{name}` is {value!r}; expected a number that is known while tracing.") from None


def row_array(x: Any, name: str) -> jax.Array:
    """Returns rows or queries as an array of float32, bfloat16 or float16; float64 of NumPy is rounded to float32.

    Raises:
      TypeError: `x` is no array, or of another dtype.
      ValueError: it has no dimension.
    """
    rows = x if isinstance(x, jax.Array) else array(x, name)
    if isinstance(rows, np.ndarray) and rows.dtype == np.float64:
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32)
    if rows.dtype not in ROW_DTYPES:
        raise TypeError(
            f"`{name}` is {rows.dtype}; expected float32, bfloat16 or float16. Cast it: `{name}.astype(jnp.float32)`."
        )
    if not rows.ndim:
        raise ValueError(f"`{name}` has shape (); expected [..., features].")
    return jnp.asarray(rows)
