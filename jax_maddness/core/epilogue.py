"""Epilogues of products: in the same kernel call, a residual is added and then an activation is applied."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
    "gelu": jax.nn.gelu,
    "gelu_erf": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}
"""The activations that kernels compute, by the names that `amm` takes: those of `jax.nn`, `gelu` being its default,
and `gelu_erf` the exact one."""


class Epilogue(NamedTuple):
    """`activation(z + residual)`, for the outputs `z` of a product; either may be None."""

    activation: str | None = None
    residual: Float[Array, "... outputs"] | None = None

    def __bool__(self) -> bool:
        return self.activation is not None or self.residual is not None

    def after(self, call: Any, *args: Array) -> Float[Array, "... outputs"]:
        """Computes a product and the epilogue in one call of a kernel: `call` is the `Stacked` of the product."""
        if not self:
            return call(*args)
        followed = call.followed_by(self.activation, self.residual is not None)
        return followed(*args) if self.residual is None else followed(self.residual, *args)

    def of(self, z: Float[Array, "... outputs"]) -> Float[Array, "... outputs"]:
        """Computes the epilogue by itself, in float32: the definition. The result has the dtype of `z`."""
        y = z.astype(jnp.float32)
        if self.residual is not None:
            y += self.residual.astype(jnp.float32)
        return (y if self.activation is None else ACTIVATIONS[self.activation](y)).astype(z.dtype)


NONE = Epilogue()
"""Nothing follows."""


def validated(activation: object, residual: Any, like: jax.ShapeDtypeStruct) -> Epilogue:
    """Returns the epilogue that a user asks for.

    Args:
      activation: the name of an activation, or None.
      residual: an array like the outputs, or None.
      like: shape and dtype of the outputs.

    Raises:
      ValueError: there is no such activation, or the shape of `residual` is another.
      TypeError: `activation` is not a string, or `residual` is no array of the outputs' dtype.
    """
    if activation is not None:
        expected = f"expected one of {', '.join(ACTIVATIONS)}, or None"
        if not isinstance(activation, str):
            raise TypeError(f"`activation` is {activation!r:.80}; {expected}. Apply other functions to the result.")
        if activation not in ACTIVATIONS:
            raise ValueError(f"`activation` is {activation!r:.80}; {expected}. Apply other functions to the result.")
    if residual is None:
        return Epilogue(activation)
    if not hasattr(residual, "dtype") or not hasattr(residual, "shape"):
        raise TypeError(f"`residual` is {type(residual).__name__}; expected an array like the result, or None.")
    if residual.dtype != like.dtype:
        raise TypeError(f"`residual` is {residual.dtype}, and the result is {like.dtype}. Cast it to the dtype of `x`.")
    if residual.shape != like.shape:
        raise ValueError(
            f"`residual` has shape {residual.shape}, and the result has {like.shape}; expected the same. "
            "Use `jnp.broadcast_to` where it should be repeated."
        )
    return Epilogue(activation, jnp.asarray(residual))
