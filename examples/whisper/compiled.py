"""The model's functions, compiled, with weights as arguments."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from examples.whisper import decode
from examples.whisper.heads import Head
from examples.whisper.log_mel import log_mel
from examples.whisper.model import Memory, Whisper
from examples.whisper.weights import Tokens

BEAMS = 5


class Compiled:
    """Functions of a model, which `nnx.split` has split into `graph` and `state`."""

    def __init__(self, graph: nnx.GraphDef[Whisper], state: nnx.State, tokens: Tokens, limit: int = decode.LIMIT):
        self.graph, self.state, self.tokens = graph, state, tokens
        self._encode = jax.jit(lambda state, mel: nnx.merge(graph, state).encode(mel))
        self._states = jax.jit(lambda state, said, memories: nnx.merge(graph, state).states(said, memories))
        self._greedy = jax.jit(
            lambda state, head, memories: decode.greedy(nnx.merge(graph, state), head, memories, tokens, limit=limit)
        )
        self._beam_search = jax.jit(
            lambda state, head, memories: decode.beam_search(
                nnx.merge(graph, state), head, memories, tokens, BEAMS, limit
            )
        )

    def encode(self, samples: np.ndarray) -> list[Memory]:
        """Returns the memories of a window of samples."""
        return self._encode(self.state, log_mel(samples))

    def greedy(self, head: Head, memories: list[Memory]) -> jax.Array:
        """Returns what `decode.greedy` does."""
        return self._greedy(self.state, head, memories)

    def beam_search(self, head: Head, memories: list[Memory]) -> jax.Array:
        """Returns what `decode.beam_search` does, with `BEAMS` beams."""
        return self._beam_search(self.state, head, memories)

    def states(self, said: np.ndarray, memories: list[Memory]) -> np.ndarray:
        """Returns the states from which the tokens of a transcript were chosen, its end among them."""
        after_start = np.asarray(self._states(self.state, said, memories))[len(self.tokens.start) - 1 :]
        return after_start[: min(len(after_start), int((said != self.tokens.end).sum()) - len(self.tokens.start) + 1)]
