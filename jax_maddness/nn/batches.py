"""Batches of inputs, as users pass them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jax_maddness.core.arguments import integer
from jax_maddness.nn.models.layer import Layer

Batches = Iterable[Any] | Callable[[], Iterator[Any]]
"""Inputs of a model, or a function that returns an iterator over them, always the same."""
_LEAST_ROWS = 2
"""Number of rows that an op can be learned from."""


def peek(batches: Batches, name: str = "batches") -> tuple[Any, Iterator[Any]]:
    """Returns the first batch, and an iterator over all batches, the first one included.

    Args:
      batches: the batches.
      name: of the argument that they are, for messages.

    Raises:
      TypeError: They are one array or another thing that is no list of batches.
      ValueError: There is no batch.
    """
    stream = iter(_validated(batches() if callable(batches) else batches, name))
    try:
        first = next(stream)
    except StopIteration:
        again = ", or the function returns an iterator that was read before" if callable(batches) else ""
        why = ": ops are learned from what its layers see" if name == "batches" else ""
        raise ValueError(f"`{name}` is empty{again}. Pass inputs of the model{why}.") from None

    def chained() -> Iterator[Any]:
        yield first
        yield from stream

    return first, chained()


def can_be_read_again(batches: Batches) -> bool:
    """Whether the batches can be read more than once; an iterator cannot."""
    return callable(batches) or iter(_validated(batches, "batches")) is not batches


def _validated(batches: Any, name: str) -> Iterable[Any]:
    """Returns batches, unless they are one batch: rows or names would be taken for batches of their own."""
    kind = type(batches).__name__
    if hasattr(batches, "dtype") and hasattr(batches, "shape"):
        raise TypeError(f"`{name}` is an array; pass a list of batches, for example [x].")
    if isinstance(batches, Mapping):
        raise TypeError(f"`{name}` is a {kind}; pass a list of batches, for example [x], where x is this {kind}.")
    if isinstance(batches, str | bytes) or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise TypeError(f"`{name}` is {batches!r:.100}; pass a list of batches, for example [x].")
    return batches


def validate_limits(max_rows: int, max_bytes: int, layers: Sequence[Layer]) -> None:
    """Raises if `max_rows` or `max_bytes` leave too few rows of a layer to learn from.

    Raises:
      TypeError: One of them is no integer.
      ValueError: One of them is too small.
    """
    integer(max_rows, "max_rows", _LEAST_ROWS)
    integer(max_bytes, "max_bytes", 1)
    for layer in layers:
        if layer.form is None:
            continue
        least = _LEAST_ROWS * 4 * layer.form.groups * layer.shape[0] * max(layer.steps, 1)
        if max_bytes < least:
            raise ValueError(
                f"`max_bytes` is {max_bytes}, but {_LEAST_ROWS} rows of {layer.path!r} take {least}. Pass more."
            )


def validate_rows(path: str, rows: Sequence[np.ndarray], batches: Batches | None) -> None:
    """Raises if rows of a layer are not finite; the message names the batches that are not.

    Args:
      path: of the layer.
      rows: of each step of a scan.
      batches: that they are from; None: `captured` has them.

    Raises:
      ValueError: There is such a row.
    """
    bad = sum(int((~np.isfinite(a).all(tuple(range(1, a.ndim)))).sum()) for a in rows)
    if not bad:
        return
    source = "captured" if batches is None else "batches"
    raise ValueError(
        f"`{source}` give the layer {path!r} {bad} rows with NaN or infinite entries, of {sum(map(len, rows))}; "
        f"{_where(batches)}. Pass batches without them, or leave the layer out: Rule({path!r}, skip=True)."
    )


def _where(batches: Batches | None) -> str:
    """Returns in words which batches have entries that are not finite."""
    if batches is None or not can_be_read_again(batches):
        return "the batches cannot be read again to find them"
    broken = [str(number) for number, batch in enumerate(peek(batches)[1]) if not _is_finite(batch)]
    if not broken:
        return "no batch has such entries itself: the layers before make them"
    return f"these batches have such entries themselves: {', '.join(broken[:20])}"


def _is_finite(batch: Any) -> bool:
    arrays = [
        np.asarray(a) for a in jax.tree.leaves(batch) if jax.dtypes.issubdtype(getattr(a, "dtype", None), np.inexact)
    ]
    return all(bool(np.isfinite(a).all()) for a in arrays)
