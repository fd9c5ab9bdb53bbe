"""The losses of `finetune`: distances of a replaced model's outputs, or hidden states, from the exact model's."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_maddness.core.arguments import real

Loss = Callable[[Any, Any, Any], Any]
"""`loss(outputs, teacher_outputs, batch)` returns a scalar."""


def nmse(outputs: Any, wanted: Any, batch: Any = None) -> Array:
    """Returns the squared error over the variance of the wanted outputs, the mean over all floating arrays.

    Where a wanted output is not finite, as masked logits are not, the output must be the same, and is left out of both
    sums; if one differs, or nothing is left, the loss is infinite.

    Args:
      outputs: a pytree of arrays.
      wanted: the teacher's, of the same structure and shapes.
      batch: not used.

    Raises:
      ValueError: The shapes differ, or there is no floating array.
    """
    del batch
    _validate_shapes(outputs, wanted)
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(wanted), strict=True)
    errors = [_nmse(y, z) for y, z in pairs if jnp.issubdtype(y.dtype, jnp.floating)]
    if not errors:
        raise ValueError("The model returns no floating array for `loss` 'nmse' to compare. Pass a function as `loss`.")
    return jnp.stack(errors).mean()


def _validate_shapes(outputs: Any, wanted: Any) -> None:
    shapes, wanted_shapes = ([a.shape for a in jax.tree.leaves(tree)] for tree in (outputs, wanted))
    if shapes != wanted_shapes:
        raise ValueError(
            f"A loss compares outputs of shapes {shapes} with the teacher's {wanted_shapes}. Pass a function that "
            "makes them alike: of a layer with `Rule(num_candidates=...)`, it is the teacher's maximum over positions."
        )


def _nmse(y: Array, wanted: Array) -> Array:
    y, wanted = y.astype(jnp.float32), wanted.astype(jnp.float32)
    finite = jnp.isfinite(wanted)
    same = (y == wanted) | (jnp.isnan(y) & jnp.isnan(wanted))
    # Zeros go in before the arithmetic: the gradient of a value that `where` drops would still be NaN.
    y, wanted = (jnp.where(finite, a, 0) for a in (y, wanted))
    rows = tuple(range(wanted.ndim - 1))
    mean = wanted.sum(rows, keepdims=True) / jnp.maximum(finite.sum(rows, keepdims=True), 1)
    spread = jnp.square(jnp.where(finite, wanted - mean, 0)).sum()
    error = jnp.square(y - wanted).sum() / jnp.maximum(spread, jnp.finfo(jnp.float32).tiny)
    return jnp.where((finite | same).all() & finite.any(), error, jnp.inf)


def kl(temperature: float = 1.0) -> Loss:
    """Returns a loss: the Kullback-Leibler divergence of the teacher's classes from the model's, times temperature^2.

    Both return logits [..., classes] (Hinton et al. 2015, "Distilling the knowledge in a neural network"). Classes to
    which the teacher gives no probability, as to masked ones, add nothing.

    Args:
      temperature: the logits are divided by it; a positive number.

    Raises:
      ValueError: `temperature` is not positive.
    """
    if not 0 < real(temperature, "temperature", "a positive number") < math.inf:
        raise ValueError(f"`temperature` is {temperature}; expected a positive number.")

    def loss(outputs: Array, wanted: Array, batch: Any = None) -> Array:
        del batch
        log_p, log_q = (jax.nn.log_softmax(a.astype(jnp.float32) / temperature) for a in (wanted, outputs))
        # 0 log 0 is 0. The infinite logarithms are replaced before the arithmetic: afterwards, gradients would be NaN.
        impossible = log_p == -jnp.inf
        difference = jnp.where(impossible, 0, log_p) - jnp.where(impossible, 0, log_q)
        return temperature**2 * (jnp.exp(log_p) * difference).sum(-1).mean()

    return loss


def peaks(outputs: Array, wanted: Array, batch: Any = None) -> Array:
    """Returns the `nmse` of each channel at the position of the teacher's maximum, for layers before a global maximum.

    Both are [batch, *positions, channels]. The gradient is sparse: one position for each channel.
    """
    del batch
    _validate_shapes(outputs, wanted)
    y, z = (a.reshape(len(a), -1, a.shape[-1]) for a in (outputs, wanted))
    place = jnp.argmax(z, 1, keepdims=True)
    return nmse(*(jnp.take_along_axis(a, place, 1)[:, 0] for a in (y, z)))


def ranks(temperature: float = 0.2) -> Loss:
    """Returns a loss that is small if each channel ranks positions as the teacher does.

    It serves look-ups that propose candidates for a maximum. It is the Kullback-Leibler divergence of the position that
    comes first, with probabilities `softmax(value / (temperature * deviation))` over the positions, the mean over
    channels (Cao et al. 2007, "Learning to rank: from pairwise approach to listwise approach"). The deviation is the
    teacher's, over the batch. An error that is the same at all positions costs nothing.

    Both are [batch, *positions, channels].

    Args:
      temperature: the lower, the fewer positions count; a positive number.
    """
    divergence = kl(temperature)

    def loss(outputs: Array, wanted: Array, batch: Any = None) -> Array:
        _validate_shapes(outputs, wanted)
        z = wanted.astype(jnp.float32).reshape(len(wanted), -1, wanted.shape[-1])
        deviation = z.std((0, 1), where=jnp.isfinite(z))  # masked positions have none
        scale = 1 / jnp.maximum(deviation, jnp.finfo(jnp.float32).tiny)
        y = outputs.astype(jnp.float32).reshape(z.shape)
        logits, wanted_logits = (jnp.moveaxis(a * scale, 1, -1) for a in (y, z))
        return divergence(logits, wanted_logits, batch) / temperature**2

    return loss


LOSSES: dict[str, Loss] = {"nmse": nmse, "kl": kl(), "peaks": peaks, "ranks": ranks()}
"""Losses by the names that `finetune` and `Term` take."""


@dataclasses.dataclass(frozen=True)
class Term:
    """One of several losses that `finetune` adds.

    Attributes:
      loss: `"nmse"`, `"kl"`, `"peaks"`, `"ranks"`, or a function of outputs, the teacher's outputs and the batch.
      weight: the factor of the loss, a positive number.
      layers: a regular expression for the whole path of modules, layers or blocks, whose outputs are compared instead
        of the model's: hidden states. The loss is the mean over them, and over all their calls.

    Raises:
      ValueError: An attribute is out of range.

    Example:
      >>> term = Term("nmse", 0.5, layers="encoder/.*")
      >>> y, wanted = jnp.array([[1.0], [1.0]]), jnp.array([[0.0], [2.0]])
      >>> float(term(y, wanted, None))  # without the weight
      1.0
    """

    loss: str | Loss
    weight: float = 1.0
    layers: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.loss) and not (isinstance(self.loss, str) and self.loss in LOSSES):
            known = ", ".join(map(repr, LOSSES))
            raise ValueError(
                f"`loss` is {self.loss!r}; expected one of: {known}, or a function of outputs, targets and batch."
            )
        if not 0 < real(self.weight, "weight", "a positive number") < math.inf:
            raise ValueError(f"`weight` is {self.weight}; expected a positive number.")
        if self.layers is not None:
            try:
                re.compile(self.layers)
            except re.error as error:
                raise ValueError(f"`layers` {self.layers!r} is not a regular expression: {error}.") from error

    def __call__(self, outputs: Any, wanted: Any, batch: Any) -> Any:
        """Computes the loss itself, without its weight."""
        return (LOSSES[self.loss] if isinstance(self.loss, str) else self.loss)(outputs, wanted, batch)


def as_terms(loss: str | Loss | Sequence[Term]) -> tuple[Term, ...]:
    """Returns the argument `loss` of `finetune` as terms.

    Raises:
      ValueError: It is none of the accepted kinds.
    """
    if isinstance(loss, str) or callable(loss):
        return (Term(loss),)
    terms = tuple(loss) if isinstance(loss, Iterable) else (loss,)
    if not terms or not all(isinstance(term, Term) for term in terms):
        raise ValueError(f"`loss` is {loss!r}; expected the name of a loss, a function, or a list of `Term`s.")
    return terms
