"""`Objective`, the loss that training minimizes, applied to outputs in the units that the loss is defined for."""

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
    """Returns the default loss, the squared error per row; `extra` is ignored."""
    del extra
    return jnp.square(y - exact).sum(-1).mean()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """A loss for outputs in other units than its own: `loss(y * scale + offset, exact * scale + offset, *extra)`.

    `scale` and `offset` are leaves of a pytree, so that a loss is compiled once for all units.

    Attributes:
      loss: function of outputs `[rows, M]`, exact outputs, and arrays with an entry for each row; returns a scalar.
      scale: factor from the units of training to those of `loss`; a scalar or `[M]`.
      offset: number that is added after scaling; a scalar or `[M]`.
    """

    loss: Callable[..., Array] = dataclasses.field(metadata={"static": True})
    scale: ArrayLike = 1.0
    offset: ArrayLike = 0.0

    def of(self, scale: ArrayLike, offset: ArrayLike) -> Objective:
        """Returns the same loss for outputs `y` of which `y * scale + offset` are in this objective's units."""
        outer = jnp.asarray(self.scale)
        return Objective(self.loss, outer * scale, outer * offset + self.offset)

    def __call__(self, y: Array, exact: Array, *extra: Array) -> Float[Array, ""]:
        """Returns the loss of outputs `y` with the exact outputs `exact`."""
        return self.loss(y * self.scale + self.offset, exact * self.scale + self.offset, *extra)


SQUARED_ERROR = Objective(squared_error)
"""The default objective."""
