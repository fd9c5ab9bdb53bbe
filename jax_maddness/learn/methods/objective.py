"""What training makes small: a loss of outputs and exact outputs, in the units that the loss wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def squared_error(
    y: Float[Array, "rows outputs"], exact: Float[Array, "rows outputs"], *extra: Array
) -> Float[Array, ""]:
    """The default loss: squared error per row, whatever `extra` says."""
    del extra
    return jnp.square(y - exact).sum(-1).mean()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """A loss for outputs in other units than its own: `loss(y * scale + offset, exact * scale + offset, *extra)`.

    `scale` and `offset` are leaves of a pytree: one loss is compiled once, whatever the units.
    """

    loss: Callable[..., Array] = dataclasses.field(metadata={"static": True})
    scale: ArrayLike = 1.0
    offset: ArrayLike = 0.0

    def of(self, scale: ArrayLike, offset: ArrayLike) -> Objective:
        """The same loss for outputs that become this one's by `y * scale + offset`."""
        outer = jnp.asarray(self.scale)
        return Objective(self.loss, outer * scale, outer * offset + self.offset)

    def __call__(self, y: Array, exact: Array, *extra: Array) -> Float[Array, ""]:
        return self.loss(y * self.scale + self.offset, exact * self.scale + self.offset, *extra)


SQUARED_ERROR = Objective(squared_error)
