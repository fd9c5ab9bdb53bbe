"""`divided`: the batches that layers are learned from, and those on which drops of the metric are measured."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np

from jax_maddness.learn.config import REPORTED_SHARE
from jax_maddness.nn.batches import Batches, peek
from jax_maddness.nn.models.model import Model


def divided(batches: list[Any], held_out: list[Any] | None) -> tuple[list[Any], list[Any]]:
    """Returns the batches to learn from, and those to measure drops on: `held_out`, or the last fifth of `batches`."""
    if held_out is not None:
        return batches, held_out
    count = max(1, round(REPORTED_SHARE * len(batches)))
    train, last = batches[:-count], batches[-count:]
    if not train:
        # Level 4 is the caller of `plan`.
        warnings.warn("There is one batch only: the metric is of what ops are learned from.", stacklevel=4)
    return train or last, last


def validated(held_out: Batches | None, model: Model, batch: Any) -> list[Any] | None:
    """Returns `held_out` as a list of batches, each of the structure, dtypes and ranks of `batch`; None if it is None.

    Their sizes may be others, if the model takes them.

    Raises:
      TypeError: `held_out` is one array, or another thing that is no list of batches.
      ValueError: It has no batch, or one that differs from `batch`, or one that the model does not take.
    """
    if held_out is None:
        return None
    given = list(peek(held_out, "held_out")[1])
    expected, tried = _kind(batch), set[Hashable]()
    for number, one in enumerate(given):
        if _kind(one) != expected:
            raise ValueError(
                f"`held_out` has a batch, number {number}, of {_words(one)}; `batches` has {_words(batch)}. Pass "
                "batches of the same structure and dtypes, with as many dimensions."
            )
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(one))
        if shapes not in tried:
            _try(model, one, number)
        tried.add(shapes)
    return given


def _kind(batch: Any) -> Hashable:
    """Returns what batches of one model have in common."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((str(getattr(leaf, "dtype", type(leaf).__name__)), np.ndim(leaf)) for leaf in leaves)


def _words(batch: Any) -> str:
    """Describes a batch by the dtypes and shapes of its arrays."""
    described = jax.tree.map(lambda a: f"{getattr(a, 'dtype', type(a).__name__)}{list(np.shape(a))}", batch)
    return str(described).replace("'", "")


def _try(model: Model, batch: Any, number: int) -> None:
    """Traces the model on a batch of `held_out`."""
    try:
        jax.eval_shape(model.outputs, model.arrays(), batch)
    except Exception as error:  # whatever the user's code raises
        raise ValueError(
            f"`held_out` has a batch, number {number}, that the model does not take, {_words(batch)}: {error}"
        ) from error
