"""How far the outputs of a replaced model are from the exact one's: what `finetune` makes small."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array

Loss = Callable[[Any, Any, Any], Any]
"""`loss(outputs, teacher_outputs, batch)`: a scalar."""


def nmse(outputs: Any, wanted: Any, batch: Any = None) -> Array:
    """Squared error over the variance of what is wanted, the mean over all arrays of floats."""
    del batch
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(wanted), strict=True)
    return jnp.stack([_nmse(y, z) for y, z in pairs if jnp.issubdtype(y.dtype, jnp.floating)]).mean()


def _nmse(y: Array, wanted: Array) -> Array:
    y, wanted = y.astype(jnp.float32), wanted.astype(jnp.float32)
    spread = jnp.square(wanted - wanted.mean(tuple(range(wanted.ndim - 1)), keepdims=True)).sum()
    return jnp.square(y - wanted).sum() / jnp.maximum(spread, jnp.finfo(jnp.float32).tiny)


def kl(temperature: float = 1.0) -> Loss:
    """Kullback-Leibler divergence of the teacher's classes from the model's, times the temperature squared.

    Both return logits [..., classes] (Hinton et al. 2015, "Distilling the knowledge in a neural network").
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` is {temperature}; expected a positive number.")

    def loss(outputs: Array, wanted: Array, batch: Any = None) -> Array:
        del batch
        log_p, log_q = (jax.nn.log_softmax(a.astype(jnp.float32) / temperature) for a in (wanted, outputs))
        return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()

    return loss


LOSSES: dict[str, Loss] = {"nmse": nmse, "kl": kl()}
