"""How far a replaced model is from the exact one, in its outputs or on the way: what `finetune` makes small."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
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
    _check_shapes(outputs, wanted)
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(wanted), strict=True)
    return jnp.stack([_nmse(y, z) for y, z in pairs if jnp.issubdtype(y.dtype, jnp.floating)]).mean()


def _check_shapes(outputs: Any, wanted: Any) -> None:
    shapes, others = ([a.shape for a in jax.tree.leaves(one)] for one in (outputs, wanted))
    if shapes != others:
        raise ValueError(
            f"A loss compares outputs of shapes {shapes} with the teacher's {others}. Pass a function that makes them "
            "alike: of a layer with `Rule(num_candidates=...)`, it is the teacher's maximum over positions."
        )


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


def peaks(outputs: Array, wanted: Array, batch: Any = None) -> Array:
    """`nmse` of each channel's value at the position where the teacher's is greatest: for what a global max follows.

    Both are [batch, *positions, channels]. The gradient is sparse: one position for each channel.
    """
    del batch
    _check_shapes(outputs, wanted)
    y, z = (a.reshape(len(a), -1, a.shape[-1]) for a in (outputs, wanted))
    place = jnp.argmax(z, 1, keepdims=True)
    return nmse(*(jnp.take_along_axis(a, place, 1)[:, 0] for a in (y, z)))


def ranks(temperature: float = 0.2) -> Loss:
    """Whether each channel ranks positions as the teacher does: for look-ups that propose where a maximum is checked.

    Kullback-Leibler divergence of which position comes first, with chances `softmax(value / (temperature * deviation))`
    over the positions, the mean over channels (Cao et al. 2007, "Learning to rank: from pairwise approach to listwise
    approach"). Deviation is the teacher's, over the batch. What an error has in common at all positions costs nothing.

    Both are [batch, *positions, channels]. The lower the temperature, the fewer positions count.
    """
    divergence = kl(temperature)

    def loss(outputs: Array, wanted: Array, batch: Any = None) -> Array:
        _check_shapes(outputs, wanted)
        z = wanted.astype(jnp.float32).reshape(len(wanted), -1, wanted.shape[-1])
        scale = 1 / jnp.maximum(z.std((0, 1)), jnp.finfo(jnp.float32).tiny)
        y = outputs.astype(jnp.float32).reshape(z.shape)
        said, exact = (jnp.moveaxis(a * scale, 1, -1) for a in (y, z))
        return divergence(said, exact, batch) / temperature**2

    return loss


LOSSES: dict[str, Loss] = {"nmse": nmse, "kl": kl(), "peaks": peaks, "ranks": ranks()}


@dataclasses.dataclass(frozen=True)
class Term:
    """One of several losses that are added.

        loss=[Term("kl"), Term("nmse", 0.5, layers="encoder/.*")]

    Attributes:
      loss: `"nmse"`, `"kl"`, `"peaks"`, `"ranks"`, or a function of outputs, the teacher's outputs and the batch.
      weight: what it is multiplied with.
      layers: a regular expression for the whole path of modules, layers or blocks, whose outputs it compares instead of
        the model's: hidden states. It is the mean over them, and over all their calls.
    """

    loss: str | Loss
    weight: float = 1.0
    layers: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.loss) and self.loss not in LOSSES:
            known = ", ".join(map(repr, LOSSES))
            raise ValueError(
                f"`loss` is {self.loss!r}; expected one of: {known}, or a function of outputs, targets and batch."
            )
        if not self.weight > 0:
            raise ValueError(f"`weight` is {self.weight}; expected a positive number.")
        if self.layers is not None:
            try:
                re.compile(self.layers)
            except re.error as error:
                raise ValueError(f"`layers` {self.layers!r} is not a regular expression: {error}.") from error

    def __call__(self, outputs: Any, wanted: Any, batch: Any) -> Any:
        """The loss itself, without its weight."""
        return (LOSSES[self.loss] if isinstance(self.loss, str) else self.loss)(outputs, wanted, batch)

    @property
    def name(self) -> str:
        """The same in every process."""
        loss = self.loss if isinstance(self.loss, str) else getattr(self.loss, "__qualname__", type(self.loss).__name__)
        return f"{self.weight} {loss} {self.layers}"


def as_terms(loss: str | Loss | Sequence[Term]) -> tuple[Term, ...]:
    """`loss` as several."""
    if isinstance(loss, str) or callable(loss):
        return (Term(loss),)
    terms = tuple(loss)
    if not terms or not all(isinstance(term, Term) for term in terms):
        raise ValueError(f"`loss` is {loss!r}; expected the name of a loss, a function, or a list of `Term`s.")
    return terms
