"""Samples of a softmax over all outputs of a layer, by look-ups and exact products of candidates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int32, Integer

from jax_maddness.core import arguments
from jax_maddness.core.types import MaddnessOp
from jax_maddness.retrieval import validate
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.top_k import top_k


def sample(
    key: Array,
    x: Float[Array, "... features"],
    op_or_index: MaddnessOp | VectorIndex,
    w: Float[Array, "features outputs"] | None = None,
    *,
    temperature: float | Float[Array, "..."] = 1.0,
    bias: Float[Array, " outputs"] | None = None,
    num_candidates: int = 64,
    exclude: Integer[Array, "... excluded"] | Bool[Array, "... outputs"] | None = None,
    score_bias: Float[Array, "... outputs"] | None = None,
) -> Int32[Array, "..."]:
    """Draws one output for each row, with the probabilities `softmax((x @ w + bias + score_bias) / temperature)`.

    Gumbel noise is added to the outputs, and the greatest sum wins, as in `jax.random.categorical`. Codes propose
    `num_candidates` sums, and their exact values decide: the same key draws the same output as from the exact outputs
    wherever that output is among the candidates. Nothing is cut off: every output can be drawn.

    For top-p sampling or other cuts, take the candidates and the normalizing constant: `top_k(..., log_sum=True)`.

    Args:
      key: a random key, as `jax.random.key` makes it.
      x: rows of float32, bfloat16 or float16; any leading dimensions.
      op_or_index: as for `top_k`.
      w: as for `top_k`.
      temperature: a finite number, not negative; for each row, or the same for all. 0: the greatest output.
      bias: as for `top_k`.
      num_candidates: number of candidates that are rescored, at least 1.
      exclude: outputs that are not drawn, as for `top_k`.
      score_bias: numbers to add to the outputs, as for `top_k`.

    Returns:
      The indices of the outputs, int32, one for each row; -1 for a row with NaN or an infinity, and where all outputs
      are excluded.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: `temperature` is negative or not finite, or has another shape; and the errors of `top_k`.

    Example:
      >>> from jax_maddness import LookupTables, SplitTrees
      >>> trees = SplitTrees(jnp.zeros((1, 4), int), jnp.zeros((1, 15)), 1)
      >>> op = MaddnessOp(trees, LookupTables(jnp.zeros((3, 1, 16), jnp.uint8), jnp.ones(3), jnp.zeros(3)))
      >>> x, w = jnp.full((4, 1), 2.0), jnp.array([[1.0, 9.0, 1.0]])
      >>> sample(jax.random.key(0), x, op, w=w, num_candidates=3).tolist()
      [1, 1, 1, 1]
    """
    if not isinstance(op_or_index, MaddnessOp | VectorIndex):
        raise TypeError(f"`op_or_index` is {type(op_or_index).__name__}; expected a MaddnessOp or a VectorIndex.")
    if not (isinstance(key, jax.Array) and (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32)):
        raise TypeError(f"`key` is {type(key).__name__}; expected a random key: `jax.random.key(0)`.")
    if validate.integer(num_candidates, "num_candidates") < 1:
        raise ValueError(f"`num_candidates` is {num_candidates}; expected at least 1.")
    x = validate.row_array(x, "x")
    outputs = op_or_index.capacity if isinstance(op_or_index, VectorIndex) else op_or_index.num_outputs
    noise = jax.random.gumbel(key, (*x.shape[:-1], outputs), jnp.float32) * _temperature(temperature, x.shape[:-1])
    if score_bias is not None:
        noise = noise + _score_bias(score_bias, noise.shape)
    chosen = top_k(x, op_or_index, w, k=1, bias=bias, num_candidates=num_candidates, exclude=exclude, score_bias=noise)[
        1
    ]
    return chosen[..., 0]


def _temperature(temperature: ArrayLike, leading: tuple[int, ...]) -> Float[Array, "... 1"]:
    array = jnp.asarray(arguments.real_array(temperature, "temperature"))
    if array.shape not in ((), leading):
        raise ValueError(f"`temperature` has shape {array.shape}; expected a number, or {leading}: one for each row.")
    if not isinstance(array, jax.core.Tracer):
        values = np.asarray(array, np.float32)
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"`temperature` is {temperature}; expected finite numbers that are not negative.")
    return jnp.broadcast_to(array, leading).astype(jnp.float32)[..., None]


def _score_bias(score_bias: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    array = validate.row_array(score_bias, "score_bias")
    if array.shape not in (shape, shape[-1:]):
        raise ValueError(
            f"`score_bias` has shape {array.shape}; expected {shape[-1:]}, the same for all rows, or {shape}."
        )
    return jnp.broadcast_to(array, shape).astype(jnp.float32)
