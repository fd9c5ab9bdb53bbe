"""`Tensor`: a tensor of a graph whose axes may be stored in another order, so that transpositions cost nothing.

ONNX has the channels of pictures before the positions, and Flax's convolutions have them last. Converting at every
convolution would copy each tensor twice. Instead, the results of convolutions are stored with the channels last, what
follows computes in the order that it finds, and only operations that need the order of the graph transpose.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

Array = Any
"""An array of NumPy, if the value is known while the model is traced, or of JAX."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor: axis `i` of `stored` is axis `order[i]` of the graph's tensor."""

    stored: Array
    order: tuple[int, ...]

    @classmethod
    def of(cls, value: Array) -> Tensor:
        """Returns a tensor in the order of the graph."""
        return cls(value, tuple(range(value.ndim)))

    @property
    def known(self) -> bool:
        """Whether the value is known while the model is traced."""
        return isinstance(self.stored, np.ndarray)

    @property
    def value(self) -> Array:
        """The values in the order of the graph."""
        return self.stored_as(tuple(range(len(self.order)))).stored

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the order of the graph."""
        return tuple(self.stored.shape[self.axis(i)] for i in range(len(self.order)))

    def axis(self, axis: int) -> int:
        """Returns the number of the stored axis that is `axis` in the graph, which may be negative."""
        return self.order.index(axis % len(self.order))

    def stored_as(self, order: tuple[int, ...]) -> Tensor:
        """Returns the tensor stored in another order; axes are added before the others, if there are too few."""
        extra = len(order) - len(self.order)
        if order == self.order:
            return self
        old = (*range(extra), *(axis + extra for axis in self.order))
        values = self.stored.reshape(*[1] * extra, *self.stored.shape)
        return Tensor(values.transpose([old.index(axis) for axis in order]), order)

    def permuted(self, axes: tuple[int, ...]) -> Tensor:
        """Returns the transposed tensor, without moving anything."""
        return Tensor(self.stored, tuple(axes.index(axis) for axis in self.order))


def channels_last(rank: int) -> tuple[int, ...]:
    """Returns the order [batch, *positions, channels]."""
    return (0, *range(2, rank), 1)


def elementwise(function: Callable[..., Array]) -> Callable[..., Tensor]:
    """Returns `function` as an operation that computes in the order of its largest tensor."""

    @functools.wraps(function)
    def operation(attributes: dict[str, Any], *tensors: Tensor) -> Tensor:
        order = max(tensors, key=lambda tensor: (len(tensor.order), tensor.stored.size)).order
        return Tensor(jnp.asarray(function(*(t.stored_as(order).stored for t in tensors), **attributes)), order)

    return operation


def in_graph_order(function: Callable[..., Array]) -> Callable[..., Tensor]:
    """Returns `function` as an operation on tensors in the order of the graph."""

    @functools.wraps(function)
    def operation(attributes: dict[str, Any], *tensors: Tensor | None) -> Tensor:
        return Tensor.of(function(*(None if t is None else t.value for t in tensors), **attributes))

    return operation
