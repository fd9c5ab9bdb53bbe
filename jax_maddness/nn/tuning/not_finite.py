"""Finds out why a loss is no number, and says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def count(tree: Any) -> Any:
    """Returns the number of entries of floating arrays in a pytree that are NaN or infinite."""
    floats = [a for a in jax.tree.leaves(tree) if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.floating)]
    return sum((jnp.sum(~jnp.isfinite(a)) for a in floats), jnp.int32(0))


def validate_held_out(batches: Sequence[Any], losses: Sequence[float], own_loss: Callable[[Any], Any]) -> None:
    """Raises if a loss is no finite number for a reason that no training removes.

    Args:
      batches: the held-out batches.
      losses: of the model as it was given, one for each batch.
      own_loss: returns the loss of the teacher's outputs for a batch, compared with themselves.

    Raises:
      ValueError: A batch with such a loss is not finite itself, or the teacher has such a loss, too.
    """
    for number, (batch, loss) in enumerate(zip(batches, losses, strict=True)):
        if jnp.isfinite(loss):
            continue
        if bad := int(count(batch)):
            raise ValueError(
                f"Held-out batch {number} has {bad} entries that are NaN or infinite, and the loss on it is {loss}. "
                "Pass `batches` without it, or mend the entries."
            )
        if not jnp.isfinite(own := own_loss(batch)):
            raise ValueError(
                f"The loss of `teacher` itself on held-out batch {number} is {own}: its outputs there, or what `loss` "
                "makes of them, are NaN or infinite. Pass a `loss` that leaves such numbers out, or other `batches`."
            )


def validate_step(first_bad: tuple[int, int]) -> None:
    """Raises if the first training batch with a loss that is no finite number is not finite itself.

    Args:
      first_bad: the step of that batch, -1 for none, and how many of its entries are not finite.

    Raises:
      ValueError: There is such a batch, and it has such entries.
    """
    step, bad = first_bad
    if step >= 0 and bad:
        raise ValueError(
            f"The training batch of step {step} has {bad} entries that are NaN or infinite, and the loss on it is no "
            "number. Pass `batches` without it, or mend the entries; with `checkpoint`, what was trained is kept."
        )
