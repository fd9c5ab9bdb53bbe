"""Validates the arguments of `build_index` and `add_vectors`."""

from __future__ import annotations

import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from jax_maddness.core.validate import ROW_DTYPES
from jax_maddness.learn import validate
from jax_maddness.retrieval import scan
from jax_maddness.retrieval.index import METRICS

METHODS = ("kmeans", "trees")
"""The values of the argument `method` of `build_index`."""


def options(metric: str, method: str, bias: Any) -> None:
    """Raises ValueError unless `metric` and `method` are known, and `bias` goes with the metric."""
    if metric not in METRICS:
        raise ValueError(f"`metric` is {metric!r}; expected one of {', '.join(map(repr, METRICS))}.")
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}; expected one of {', '.join(map(repr, METHODS))}.")
    if bias is not None and metric != "ip":
        raise ValueError(f"`bias` is added to products, but `metric` is {metric!r}. Leave it out, or use 'ip'.")


def rows(
    vectors: Any, metric: str, bias: Any, features: int | None = None, name: str = "database"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns `vectors` as float32 rows, and the numbers that are added to their products or None.

    Rows have length 1 for "cosine". For "l2" the numbers are minus half the squared lengths, otherwise `bias`.

    Raises:
      TypeError, ValueError: an argument has the wrong type, shape or values; the message names it.
    """
    rows = validate.samples(vectors, name)
    if features is not None and rows.shape[1] != features:
        raise ValueError(f"`{name}` has {rows.shape[1]} features; expected {features}, as the index has.")
    squares = np.einsum("vd,vd->v", rows, rows)
    if not np.isfinite(squares).all():
        raise ValueError(f"`{name}` has vectors so long that their squared lengths overflow float32. Scale it down.")
    if metric == "cosine":
        tiny = np.finfo(np.float32).tiny
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), tiny), None
    if metric == "l2":
        return rows, -squares / 2
    if bias is None:
        return rows, None
    return rows, validate.product(rows.shape[1], rows.T, bias, name)[1]


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


def names(ids: Any, count: int, first: int = 0) -> tuple[Int32[np.ndarray, " vectors"], np.ndarray]:
    """Returns the ids in ascending order, and the original position of each.

    Args:
      ids: the ids, or None for consecutive ones from `first`.
      count: number of vectors.
      first: the first of consecutive ids.

    Raises:
      ValueError: `ids` does not have one distinct int32, 0 or greater, for each vector.
    """
    names = np.arange(first, first + count) if ids is None else np.asarray(ids)
    if names.shape != (count,) or not np.issubdtype(names.dtype, np.integer):
        raise ValueError(f"`ids` is {names.dtype}{list(names.shape)}; expected {count} integers, one for each vector.")
    if names.min() < 0 or names.max() > np.iinfo(np.int32).max or len(np.unique(names)) != count:
        raise ValueError("`ids` has one that is negative, beyond int32, or there twice. Names are unique, from 0.")
    order = np.argsort(names)
    return names[order].astype(np.int32), order


def kept(keep_vectors: Any, given: Any) -> Any:
    """Returns the dtype in which an index keeps vectors, or None if it keeps none.

    Args:
      keep_vectors: the argument of `build_index`.
      given: the vectors as the caller passed them.

    Raises:
      ValueError: `keep_vectors` is a dtype that rows cannot have.
    """
    if keep_vectors is False or keep_vectors is None:
        return None
    dtype = jnp.dtype(given.dtype if keep_vectors is True else keep_vectors)
    if keep_vectors is True:
        return dtype if dtype in ROW_DTYPES else jnp.dtype(jnp.float32)
    if dtype not in ROW_DTYPES:
        raise ValueError(f"`keep_vectors` is {dtype}; expected a bool, float32, bfloat16 or float16.")
    return dtype
