"""All outputs of a wide layer, the greatest of them exact: what a model's output layer returns once it is replaced."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_maddness.retrieval.explicit import by_rows
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.local import (
    all_exact,
    approximate_scores,
    candidates_of,
    exact_scores,
    scaled_queries,
    unscaled,
)


def with_exact_top(
    x: Float[Array, "... features"], index: VectorIndex, k: int, num_candidates: int
) -> Float[Array, "... outputs"]:
    """Computes all outputs, of which the `k` greatest are those that `top_k` finds, with their exact values.

    The other candidates are exact, too. All others are the approximations of the codes, or the next number below the
    `k`-th greatest output, in the dtype of `x`, if they exceed it: none of them ties with it once it is rounded.
    Derivatives are those of the candidates.

    Args:
      x: rows of float32, bfloat16 or float16.
      index: an index for "ip" that is not sharded.
      k: number of outputs that are found, at most `num_candidates`.
      num_candidates: number of candidates.

    Returns:
      The outputs in the dtype of `x`; NaN for a row with NaN or an infinity.
    """

    def on_rows(x: Array, index: VectorIndex) -> Array:
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        finite = jnp.isfinite(rows).all(-1, keepdims=True)
        scaled, count = scaled_queries(jnp.where(finite, rows, 0.0), index), jnp.int32(index.capacity)
        if num_candidates >= index.capacity:
            y = unscaled(all_exact(scaled, index, count, None), scaled, index, True)
        else:
            positions = candidates_of(scaled, index, num_candidates, count)
            exact = unscaled(exact_scores(scaled, index, positions, None), scaled, index, True)
            least = lax.top_k(lax.stop_gradient(exact), k)[0][:, -1:]
            y = unscaled(approximate_scores(scaled, index, count, None), scaled, index, False)
            y = jnp.minimum(lax.stop_gradient(y), _next_below(least.astype(x.dtype)).astype(jnp.float32))
            y = y.at[jnp.arange(y.shape[0], dtype=jnp.int32)[:, None], positions].set(exact)
        return jnp.where(finite, y, jnp.nan).reshape(*x.shape[:-1], index.capacity).astype(x.dtype)

    return by_rows(on_rows, x, x.ndim - 1, index)


def _next_below(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the next lower normal number: XLA's threads on CPUs compare subnormal numbers as if they were zero."""
    tiny = jnp.finfo(values.dtype).tiny
    return jnp.where(jnp.abs(values) < tiny, -tiny, jnp.nextafter(values, jnp.asarray(-jnp.inf, values.dtype)))
