"""Output layers, which choose the next token: exactly in float32, in int8, and by look-ups and exact products.

All have the tokens that may be said and no others, so that none computes outputs that are never used.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jax_maddness
from jax_maddness import VectorIndex


class Head(abc.ABC):
    """An output layer for states `h [rows, width]`; tokens of `never` are not chosen, and -1 stands for none."""

    @abc.abstractmethod
    def best(self, h: jax.Array, k: int, never: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the `k` largest outputs of each row and their tokens, both [rows, k], largest first."""

    @abc.abstractmethod
    def log_probabilities(self, h: jax.Array, k: int, never: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the same, with the logarithms of probabilities in place of the outputs."""


def _pytree(cls: Any) -> Any:
    """Makes a frozen dataclass of `cls`, which functions that are jitted may take."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class _Dense(Head):
    """A head that computes all outputs; `tokens` are their tokens, in ascending order."""

    tokens: jax.Array

    @abc.abstractmethod
    def outputs(self, h: jax.Array) -> jax.Array:
        """Returns all outputs, [rows, tokens]."""

    def _allowed(self, h: jax.Array, never: jax.Array) -> jax.Array:
        at = jnp.searchsorted(self.tokens, never)
        at = jnp.where(self.tokens[jnp.minimum(at, len(self.tokens) - 1)] == never, at, len(self.tokens))
        return self.outputs(h).at[:, at].set(-jnp.inf, mode="drop")

    def best(self, h: jax.Array, k: int, never: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = self._allowed(h, never)
        if k > 1:
            values, at = lax.top_k(outputs, k)
        else:  # faster than a selection
            at = jnp.argmax(outputs, -1, keepdims=True)
            values = jnp.take_along_axis(outputs, at, -1)
        return values, self.tokens[at]

    def log_probabilities(self, h: jax.Array, k: int, never: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = self._allowed(h, never)
        values, at = lax.top_k(outputs, k)
        return values - jax.nn.logsumexp(outputs, axis=-1, keepdims=True), self.tokens[at]


@_pytree
class Exact(_Dense):
    """The exact product in float32 with weights [width, tokens], the faster order for one row and as fast for more."""

    weights: jax.Array
    tokens: jax.Array

    def outputs(self, h: jax.Array) -> jax.Array:
        return h @ self.weights


@_pytree
class Int8(_Dense):
    """XLA's product in int8, with one scale for each token and one for each row; its outputs are not exact.

    XLA takes ten times as long for a single row as for several, so that rows of zeros make up four.
    """

    weights: jax.Array
    scales: jax.Array
    tokens: jax.Array

    def outputs(self, h: jax.Array) -> jax.Array:
        step = jnp.maximum(jnp.abs(h).max(-1, keepdims=True), 1e-12) / 127
        rows = jnp.pad(jnp.round(h / step).astype(jnp.int8), ((0, max(0, 4 - len(h))), (0, 0)))
        return jnp.matmul(rows, self.weights, preferred_element_type=jnp.int32)[: len(h)] * (step * self.scales)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Indexed(Head):
    """Look-ups propose `num_candidates` tokens, and their exact outputs decide; `end` is always among them."""

    index: VectorIndex
    end: jax.Array
    num_candidates: int = dataclasses.field(metadata={"static": True})

    def best(self, h: jax.Array, k: int, never: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax_maddness.top_k(
            h, self.index, k=k, num_candidates=self.num_candidates, exclude=never, always=self.end[None]
        )

    def log_probabilities(self, h: jax.Array, k: int, never: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Takes the estimated sum over all tokens, whose error is that of all probabilities of a row alike."""
        values, tokens, log_sum = jax_maddness.top_k(
            h,
            self.index,
            k=k,
            num_candidates=self.num_candidates,
            exclude=never,
            always=self.end[None],
            log_sum=True,
        )
        return values - log_sum.value[:, None], tokens


def exact(embedding: np.ndarray, tokens: np.ndarray) -> Exact:
    """Returns the exact head, given the embeddings of all tokens and the tokens that may be said."""
    return Exact(jnp.asarray(embedding[tokens].T.copy()), jnp.asarray(tokens))


def int8(embedding: np.ndarray, tokens: np.ndarray) -> Int8:
    """Returns the head in int8."""
    rows = embedding[tokens]
    scales = np.abs(rows).max(1) / 127
    weights = np.rint(rows / scales[:, None]).astype(np.int8)
    return Int8(jnp.asarray(weights.T.copy()), jnp.asarray(scales), jnp.asarray(tokens))


def index(embedding: np.ndarray, tokens: np.ndarray, states: np.ndarray, num_codebooks: int) -> VectorIndex:
    """Returns an index over the embeddings of the tokens that may be said, learned for states like `states`."""
    return jax_maddness.build_index(embedding[tokens], num_codebooks, ids=tokens, queries=states)
