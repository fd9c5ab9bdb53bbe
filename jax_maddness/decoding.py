"""Decoding loops around a head that finds its greatest outputs by look-ups: greedy, beam search and CTC.

A model is a function `step(state, tokens) -> (state, Choices)`: it reads one token for each sequence and proposes the
next ones. `state` is any pytree, such as the key/value caches; each loop is a `jax.lax.while_loop`, so that it can be
jitted with a donated state::

    def step(caches, tokens):
        caches, hidden = decoder(caches, tokens)
        return caches, decoding.Choices(*jax_maddness.top_k(hidden, index, k=8, log_sum=True))

    decode = jax.jit(functools.partial(decoding.beam_search, step, width=4, max_tokens=100, end=END), donate_argnums=0)
    decoded = decode(caches, first_tokens)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, Integer

from jax_maddness.core import arguments
from jax_maddness.retrieval.log_sum import LogSum


class Choices(NamedTuple):
    """The next tokens that a model proposes for each sequence: the results of `top_k`.

    Attributes:
      values: their outputs, greatest first.
      tokens: the tokens, int32; -1 where there are fewer.
      log_sum: the logarithm of the sum of the exponentials of all outputs; None: `values` are log-probabilities.
    """

    values: Float[Array, "sequences k"]
    tokens: Int32[Array, "sequences k"]
    log_sum: LogSum | None = None

    @property
    def log_probabilities(self) -> Float[Array, "sequences k"]:
        """The logarithms of the tokens' probabilities; -inf where there is no token."""
        values = self.values.astype(jnp.float32)
        values = values if self.log_sum is None else values - self.log_sum.value[:, None]
        return jnp.where(self.tokens < 0, -jnp.inf, values)


class Decoded(NamedTuple):
    """Decoded sequences.

    Attributes:
      tokens: the tokens after the first one, without the end; -1 after the last one.
      lengths: number of tokens.
      scores: for `beam_search`, the sum of the log-probabilities, that of the end included, divided by
        `length ** length_penalty`; otherwise None.
      state: the state after the last step.
    """

    tokens: Int32[Array, "... max_tokens"]
    lengths: Int32[Array, "..."]
    scores: Float[Array, "..."] | None
    state: Any


Step = Callable[[Any, Int32[Array, " sequences"]], tuple[Any, Choices]]


def greedy(step: Step, state: Any, first: Integer[Array, " sequences"], *, max_tokens: int, end: int) -> Decoded:
    """Decodes each sequence by its most likely next token, until all have ended.

    A sequence also ends where there is no next token, as `top_k` has none for a state with NaN: the token -1.

    Args:
      step: the model, see above. Its log-sum is not used.
      state: its state before the first token.
      first: the first token of each sequence.
      max_tokens: the most tokens that are decoded, at least 1.
      end: the token at which a sequence ends.

    Returns:
      The sequences.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: `first` is not `[sequences]`, or `max_tokens` is less than 1.

    Example:
      >>> def count_down(state, tokens):  # 3, 2, 1, 0, where 0 is the end
      ...     return state, Choices(jnp.zeros((len(tokens), 1)), tokens[:, None] - 1)
      >>> greedy(count_down, None, jnp.array([3, 1]), max_tokens=4, end=0).tokens.tolist()
      [[2, 1, -1, -1], [-1, -1, -1, -1]]
    """
    first, max_tokens, end = _validated(step, first, max_tokens, end)

    def goes_on(carry: tuple[Any, ...]) -> Array:
        i, _, _, _, is_done = carry
        return (i < max_tokens) & ~is_done.all()

    def next_token(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        i, state, last, tokens, is_done = carry
        state, choices = step(state, last)
        chosen = choices.tokens[:, 0].astype(jnp.int32)
        is_done = is_done | (chosen == end) | (chosen < 0)
        return (
            i + 1,
            state,
            jnp.where(is_done, end, chosen),
            tokens.at[:, i].set(jnp.where(is_done, -1, chosen)),
            is_done,
        )

    tokens = jnp.full((len(first), max_tokens), -1, jnp.int32)
    none_done = jnp.zeros(len(first), bool)
    _, state, _, tokens, _ = lax.while_loop(goes_on, next_token, (jnp.int32(0), state, first, tokens, none_done))
    return Decoded(tokens, (tokens >= 0).sum(-1, dtype=jnp.int32), None, state)


class _Beam(NamedTuple):
    """The state of a beam search; `[sequences, width]`, and `[sequences * width]` in `state`."""

    i: Array
    state: Any
    last: Int32[Array, "sequences width"]
    tokens: Int32[Array, "sequences width max_tokens"]
    sums: Float[Array, "sequences width"]
    is_done: Array


def beam_search(
    step: Step,
    state: Any,
    first: Integer[Array, " sequences"],
    *,
    width: int,
    max_tokens: int,
    end: int,
    length_penalty: float = 0.0,
) -> Decoded:
    """Finds the `width` most likely continuations of each sequence that a beam of this width meets.

    After each token, the `width` best of all continuations stay, whether they have ended or not. The search is over
    when all of them have ended.

    Args:
      step: the model, see above; it is called with `sequences * width` tokens, and should propose at least `width`
        of the next ones.
      state: its state before the first token, for each sequence: the leading dimension of each array is `sequences`.
        Arrays of no dimensions are shared. What does not change, as what a decoder attends to, may be closed over.
      first: the first token of each sequence.
      width: number of continuations, at least 1.
      max_tokens: the most tokens that are decoded, at least 1.
      end: the token at which a sequence ends.
      length_penalty: continuations are ranked by their log-probability divided by `length ** length_penalty`, where
        the end counts as a token; 0: by the log-probability alone.

    Returns:
      For each sequence `width` continuations, best first: `tokens` is `[sequences, width, max_tokens]`. A continuation
      that does not exist has the score -inf and no tokens.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of range, or an array of `state` has another leading dimension.
    """
    first, max_tokens, end = _validated(step, first, max_tokens, end)
    width = arguments.integer(width, "width", 1)
    length_penalty = arguments.real(length_penalty, "length_penalty", "a number")
    sequences = len(first)
    for leaf in jax.tree.leaves(state):
        if jnp.ndim(leaf) and len(leaf) != sequences:
            raise ValueError(
                f"An array of `state` has shape {jnp.shape(leaf)}, but there are {sequences} sequences. Begin its "
                "shape with them, or let `step` close over it."
            )
    beam = _Beam(
        jnp.int32(0),
        jax.tree.map(lambda a: jnp.repeat(a, width, axis=0) if jnp.ndim(a) else a, state),
        jnp.repeat(first[:, None], width, 1),
        jnp.full((sequences, width, max_tokens), -1, jnp.int32),
        jnp.where(jnp.arange(width)[None, :] == 0, jnp.zeros((sequences, 1)), -jnp.inf),  # all begin with one
        jnp.zeros((sequences, width), bool),
    )
    beam = lax.while_loop(
        lambda beam: (beam.i < max_tokens) & ~(beam.is_done | (beam.sums == -jnp.inf)).all(),
        lambda beam: _longer(beam, step, end),
        beam,
    )
    lengths = (beam.tokens >= 0).sum(-1, dtype=jnp.int32)
    counted = jnp.maximum(lengths + beam.is_done, 1).astype(jnp.float32)
    scores, order = lax.top_k(beam.sums / counted**length_penalty, width)
    tokens = jnp.take_along_axis(beam.tokens, order[:, :, None], 1)
    tokens = jnp.where(scores[:, :, None] == -jnp.inf, -1, tokens)
    rows = (jnp.arange(sequences)[:, None] * width + order).reshape(-1)
    state = jax.tree.map(lambda a: a[rows] if jnp.ndim(a) else a, beam.state)
    return Decoded(tokens, (tokens >= 0).sum(-1, dtype=jnp.int32), scores, state)


def _longer(beam: _Beam, step: Step, end: int) -> _Beam:
    """Returns the beam after one more token."""
    sequences, width = beam.sums.shape
    state, choices = step(beam.state, beam.last.reshape(-1))
    k = choices.tokens.shape[1]
    if k < 1 or choices.tokens.shape[0] != sequences * width:
        raise ValueError(
            f"`step` returned tokens of shape {choices.tokens.shape} for {sequences * width} tokens; expected "
            f"[{sequences * width}, k]."
        )
    tokens = choices.tokens.astype(jnp.int32).reshape(sequences, width, k)
    gains = choices.log_probabilities.reshape(sequences, width, k)
    # A continuation that has ended goes on in one way, which costs nothing.
    is_first = jnp.arange(k)[None, None, :] == 0
    gains = jnp.where(beam.is_done[:, :, None], jnp.where(is_first, 0.0, -jnp.inf), gains)
    tokens = jnp.where(beam.is_done[:, :, None], end, tokens)
    sums, chosen = lax.top_k((beam.sums[:, :, None] + gains).reshape(sequences, width * k), width)
    parents, last = chosen // k, jnp.take_along_axis(tokens.reshape(sequences, width * k), chosen, 1)
    is_done = jnp.take_along_axis(beam.is_done, parents, 1) | (last == end)
    written = jnp.take_along_axis(beam.tokens, parents[:, :, None], 1)
    written = written.at[:, :, beam.i].set(jnp.where(is_done | (sums == -jnp.inf), -1, last))
    rows = (jnp.arange(sequences)[:, None] * width + parents).reshape(-1)
    state = jax.tree.map(lambda a: a[rows] if jnp.ndim(a) else a, state)
    last = jnp.where(sums == -jnp.inf, end, last)
    return _Beam(beam.i + 1, state, last, written, sums, is_done)


def collapse_ctc(
    tokens: Integer[Array, "... frames"], *, blank: int = 0, lengths: Integer[Array, "..."] | None = None
) -> tuple[Int32[Array, "... frames"], Int32[Array, "..."]]:
    """Removes repetitions and then blanks from the most likely token of each frame: greedy decoding of CTC outputs.

    Args:
      tokens: a token for each frame, such as `top_k(hidden, index, k=1)[1][..., 0]`.
      blank: the token that stands for none.
      lengths: number of frames of each sequence; None: all.

    Returns:
      The tokens that remain, -1 after the last one, and their number.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: shapes do not match.

    Example:
      >>> tokens, lengths = collapse_ctc(jnp.array([0, 3, 3, 0, 3, 5, 5, 0]))
      >>> tokens.tolist(), lengths.item()
      ([3, 3, 5, -1, -1, -1, -1, -1], 3)
    """
    tokens, blank = _tokens(tokens, "tokens"), arguments.integer(blank, "blank", 0)
    if not tokens.ndim:
        raise ValueError("`tokens` has no dimension; expected [..., frames].")
    frames = tokens.shape[-1]
    before = jnp.concatenate([jnp.full((*tokens.shape[:-1], 1), -1, jnp.int32), tokens[..., :-1]], -1)
    stays = (tokens != blank) & (tokens != before) & (tokens >= 0)
    if lengths is not None:
        lengths = _tokens(lengths, "lengths")
        if lengths.shape != tokens.shape[:-1]:
            raise ValueError(
                f"`lengths` has shape {lengths.shape}; expected {tokens.shape[:-1]}, one for each sequence."
            )
        stays &= jnp.arange(frames) < lengths[..., None]
    order = jnp.argsort(~stays, axis=-1, stable=True)
    left = jnp.take_along_axis(jnp.where(stays, tokens, -1), order, -1)
    return left, stays.sum(-1, dtype=jnp.int32)


def _validated(step: Any, first: Any, max_tokens: Any, end: Any) -> tuple[Int32[Array, " sequences"], int, int]:
    if not callable(step):
        raise TypeError(f"`step` is {step!r:.100}; expected a function, `step(state, tokens)`.")
    first = _tokens(first, "first")
    if first.ndim != 1:
        raise ValueError(f"`first` has shape {first.shape}; expected [sequences], the first token of each.")
    return first, arguments.integer(max_tokens, "max_tokens", 1), arguments.integer(end, "end", 0)


def _tokens(values: Any, name: str) -> Int32[Array, "..."]:
    array = jnp.asarray(arguments.real_array(values, name))
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"`{name}` is {array.dtype}; expected integers.")
    return array.astype(jnp.int32)
