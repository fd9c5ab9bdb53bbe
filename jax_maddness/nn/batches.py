"""Batches of inputs, as users pass them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Batches = Iterable[Any] | Callable[[], Iterator[Any]]
"""Inputs of a model, or a function that returns an iterator over them, always the same."""


def peek(batches: Batches) -> tuple[Any, Iterator[Any]]:
    """Returns the first batch, and an iterator over all batches, the first one included.

    Raises:
      ValueError: There is no batch.
    """
    stream = iter(batches() if callable(batches) else batches)
    try:
        first = next(stream)
    except StopIteration:
        raise ValueError(
            "`batches` is empty. Pass inputs of the model: ops are learned from what its layers see."
        ) from None

    def chained() -> Iterator[Any]:
        yield first
        yield from stream

    return first, chained()


def can_be_read_again(batches: Batches) -> bool:
    """Whether the batches can be read more than once; an iterator cannot."""
    return callable(batches) or iter(batches) is not batches
