"""The logarithm of the sum of the exponentials of all outputs, of which few are computed exactly.

Codes approximate every output. Candidates are known exactly; the sum over all others is estimated by importance
sampling: some of them are drawn with probabilities that are proportional to the exponentials of their approximate
outputs `a`, and their exact outputs `s` correct the sum,

    sum = sum over candidates of exp(s)  +  sum over all others of exp(a)  *  mean over those drawn of exp(s - a)

which is right in the mean whatever the errors of the codes are. The spread of the mean gives the standard error. The
draws are evenly spaced in the cumulative probabilities, so that no random key is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

_DRAWN = 64
"""Number of outputs that are drawn beside the candidates, of each shard."""
_BLOCK = 64
"""Outputs are drawn in two steps: a block of so many, then one of the block."""


class LogSum(NamedTuple):
    """An estimate of `log(sum(exp(outputs)))` over all outputs.

    Attributes:
      value: the estimate.
      error: its standard error; 0 where all outputs are computed exactly.
    """

    value: Float[Array, "..."]
    error: Float[Array, "..."]


class Terms(NamedTuple):
    """The terms of the sum that one device has, all as logarithms.

    Attributes:
      checked: the sum over the candidates.
      others: the estimate of the sum over all others.
      spread: the standard error of `others`.
    """

    checked: Float[Array, " rows"]
    others: Float[Array, " rows"]
    spread: Float[Array, " rows"]


def terms_of(
    approximate: Float[Array, "rows outputs"],
    positions: Int32[Array, "rows candidates"],
    exact: Float[Array, "rows candidates"],
    exact_at: Callable[[Int32[Array, "rows drawn"]], Float[Array, "rows drawn"]],
) -> Terms:
    """Returns the terms of the sum.

    Args:
      approximate: all outputs; -inf for those that do not count.
      positions: the candidates, each once; -1 where there is none.
      exact: the exact outputs of the candidates.
      exact_at: returns the exact outputs at positions; -inf at -1.
    """
    rows = jnp.arange(positions.shape[0], dtype=jnp.int32)[:, None]
    at = jnp.where(positions < 0, approximate.shape[1], positions)  # out of bounds: dropped
    others = lax.stop_gradient(approximate).at[rows, at].set(-jnp.inf, mode="drop")
    total = _log_sum(others)
    drawn = _drawn(others - jnp.where(total == -jnp.inf, 0.0, total)[:, None])
    estimates = jnp.take_along_axis(others, jnp.maximum(drawn, 0), 1)
    errors = jnp.where(drawn < 0, -jnp.inf, lax.stop_gradient(exact_at(drawn)) - estimates)
    number = (drawn >= 0).sum(-1).astype(jnp.float32)
    mean = jnp.where(number > 0, _log_sum(errors) - jnp.log(number), 0.0)
    # The variance of the mean of exp(errors), in units of the square of the mean.
    variance = jnp.expm1(jnp.maximum(_log_sum(2 * errors) - jnp.log(number) - 2 * mean, 0.0)) / (number - 1)
    spread = 0.5 * jnp.log(jnp.where((number > 1) & ~jnp.isnan(variance), variance, jnp.inf))
    none = total == -jnp.inf
    return Terms(_log_sum(exact), *(jnp.where(none, -jnp.inf, total + mean + a) for a in (0.0, spread)))


def _drawn(log_probabilities: Float[Array, "rows outputs"]) -> Int32[Array, "rows drawn"]:
    """Draws positions with probabilities that sum to 1, the same one several times if it is likely; -1: none."""
    probabilities = jnp.exp(log_probabilities)
    rows, outputs = probabilities.shape
    blocks = jnp.pad(probabilities, ((0, 0), (0, -outputs % _BLOCK))).reshape(rows, -1, _BLOCK)
    sums = blocks.sum(-1)
    ends = jnp.cumsum(sums, -1)
    wanted = (jnp.arange(_DRAWN, dtype=jnp.float32) + 0.5)[None, :] / _DRAWN * ends[:, -1:]
    block = jnp.minimum((ends[:, None, :] <= wanted[:, :, None]).sum(-1, dtype=jnp.int32), sums.shape[1] - 1)
    left = wanted - jnp.take_along_axis(ends - sums, block, 1)
    within = jnp.take_along_axis(blocks, block[:, :, None], 1)  # [rows, drawn, _BLOCK]
    at = (jnp.cumsum(within, -1) <= left[:, :, None]).sum(-1, dtype=jnp.int32)
    at = jnp.minimum(at, _BLOCK - 1)
    is_one = jnp.take_along_axis(within, at[:, :, None], -1)[:, :, 0] > 0  # rounding may lead past the last one
    return jnp.where(is_one, block * _BLOCK + at, -1)


def exact_terms(outputs: Float[Array, "rows outputs"]) -> Terms:
    """Returns the terms of the sum where all outputs are exact; those of -inf do not count."""
    nothing = jnp.full(outputs.shape[:1], -jnp.inf, jnp.float32)
    return Terms(_log_sum(outputs), nothing, nothing)


def gathered(terms: Terms, axis: str) -> Terms:
    """Returns the terms of all devices of a mesh axis, inside of `jax.shard_map`."""
    checked, others, spread = (lax.all_gather(a, axis, axis=1) for a in terms)
    return Terms(_log_sum(checked), _log_sum(others), 0.5 * _log_sum(2 * spread))


def combined(terms: Terms) -> LogSum:
    """Returns the estimate of the sum, and its standard error."""
    value = jnp.logaddexp(terms.checked, terms.others)
    error = jnp.where(terms.spread == -jnp.inf, 0.0, jnp.exp(terms.spread - value))
    return LogSum(value, lax.stop_gradient(error))


def _log_sum(values: Float[Array, "rows values"]) -> Float[Array, " rows"]:
    return jax.nn.logsumexp(values, axis=-1)
