"""Greedy decoding and beam search: compiled loops from the memories of a recording to the tokens of its transcript.

`tokens` has `limit` places, the first of which are the start; places after the end of the transcript hold the end.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from examples.whisper.heads import Head
from examples.whisper.model import Cache, Memory, Whisper
from examples.whisper.weights import Tokens

LIMIT = 226
"""Tokens of a transcript of 30 seconds at most, as the original has it, with two tokens of the start."""


class Beams(NamedTuple):
    """State of a search.

    Attributes:
      position: number of tokens so far.
      tokens: of each beam, [beams, limit].
      scores: logarithm of the probability of each beam, [beams].
      writers: the beam that wrote the cache's entry of each beam at each position, [beams, limit].
      caches: of all layers.
      ended: tokens of the best transcripts that have ended, [beams, limit], and their scores for each token, [beams].
      count: number of transcripts that have ended.
    """

    position: jax.Array
    tokens: jax.Array
    scores: jax.Array
    writers: jax.Array
    caches: list[Cache]
    ended: tuple[jax.Array, jax.Array]
    count: jax.Array


def greedy(model: Whisper, head: Head, memories: list[Memory], tokens: Tokens, limit: int = LIMIT) -> jax.Array:
    """Returns tokens [limit], of which each is the most probable one after those before it."""
    said, caches, _ = _begun(model, memories, tokens, 1, limit)
    first = len(tokens.start)

    def goes_on(carry: tuple[jax.Array, ...]) -> jax.Array:
        position, said, _ = carry
        return (position < limit) & (said[0, position - 1] != tokens.end)

    def body(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        position, said, caches = carry
        seen = (jnp.arange(limit) < position)[:, None, None]
        h, caches = model.step(said[:, position - 1], position - 1, caches, seen, memories)
        _, best = head.best(h, 1, jnp.where(position == first, tokens.never_first, -1))
        return position + 1, said.at[:, position].set(best[:, 0]), caches

    return lax.while_loop(goes_on, body, (jnp.int32(first), said, caches))[1][0]


def beam_search(
    model: Whisper, head: Head, memories: list[Memory], tokens: Tokens, beams: int = 5, limit: int = LIMIT
) -> jax.Array:
    """Returns tokens [limit] of the transcript with the greatest mean logarithm of probability that was found.

    The search goes on until as many transcripts have ended as there are beams.
    """
    said, caches, writers = _begun(model, memories, tokens, beams, limit)
    scores = jnp.full(beams, -jnp.inf).at[0].set(0.0)  # all beams are the same yet
    start = Beams(
        jnp.int32(len(tokens.start)), said, scores, writers, caches, (said, jnp.full(beams, -jnp.inf)), jnp.int32(0)
    )

    def body(now: Beams) -> Beams:
        writers = now.writers.at[:, now.position - 1].set(jnp.arange(beams))
        seen = _seen(writers, now.position)
        h, caches = model.step(now.tokens[:, now.position - 1], now.position - 1, now.caches, seen, memories)
        never = jnp.where(now.position == len(tokens.start), tokens.never_first, -1)
        added, following = head.log_probabilities(h, 2 * beams, never)
        return _continued(now._replace(writers=writers, caches=caches), added, following, tokens)

    last = lax.while_loop(lambda now: (now.position < limit) & (now.count < beams), body, start)
    length = jnp.maximum(last.position - len(tokens.start), 1)
    everything = jnp.concatenate([last.ended[0], last.tokens])
    # Beams that have not ended count only if none has.
    rest = jnp.where(last.count > 0, -jnp.inf, last.scores / length)
    return everything[jnp.argmax(jnp.concatenate([last.ended[1], rest]))]


def _continued(now: Beams, added: jax.Array, following: jax.Array, tokens: Tokens) -> Beams:
    """Returns the search after a step, given the best tokens after each beam and their logarithms of probability."""
    beams = len(now.scores)
    totals, at = lax.top_k((now.scores[:, None] + added).reshape(-1), 2 * beams)
    parents, chosen = at // added.shape[1], following.reshape(-1)[at]
    ends = chosen == tokens.end
    going_on = jnp.argsort(ends, stable=True)[:beams]  # each beam can end in one way, so that there are enough
    continued = now.tokens[parents].at[:, now.position].set(chosen)
    length = jnp.maximum(now.position - len(tokens.start), 1)
    # An end counts if fewer beams than there are go on with a better score.
    ending = ends & (jnp.cumsum(~ends) < beams) & (totals > -jnp.inf)
    scores = jnp.concatenate([now.ended[1], jnp.where(ending, totals / length, -jnp.inf)])
    best_scores, best = lax.top_k(scores, beams)
    return Beams(
        now.position + 1,
        continued[going_on],
        totals[going_on],
        now.writers[parents[going_on]],
        now.caches,
        (jnp.concatenate([now.ended[0], continued])[best], best_scores),
        now.count + ending.sum(),
    )


def _begun(
    model: Whisper, memories: list[Memory], tokens: Tokens, beams: int, limit: int
) -> tuple[jax.Array, list[Cache], jax.Array]:
    """Returns tokens with the start, caches with all but its last token, and who wrote them."""
    said = jnp.full((beams, limit), tokens.end, jnp.int32).at[:, : len(tokens.start)].set(jnp.array(tokens.start))
    writers = jnp.broadcast_to(jnp.arange(beams)[:, None], (beams, limit))
    caches = model.caches(beams, limit)
    for position in range(len(tokens.start) - 1):
        seen = _seen(writers, position + 1)
        _, caches = model.step(said[:, position], jnp.int32(position), caches, seen, memories)
    return said, caches, writers


def _seen(writers: jax.Array, count: jax.Array | int) -> jax.Array:
    """Returns which entries of the cache each beam sees, [positions, beams, beams], at the first `count` positions."""
    beams, limit = writers.shape
    return (writers.T[:, None, :] == jnp.arange(beams)[:, None]) & (jnp.arange(limit) < count)[:, None, None]
