"""Dense layers of MiniLM, the sentence encoder of the examples, with rows of WordNet's glosses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.layers.pictures import texts
from benchmarks.layers.sampled import Layer
from examples import minilm

LENGTHS = (8, 16, 24)
"""Numbers of tokens of the sentences that are used, so that few shapes are compiled and none is padded."""
BATCH = 8


class _Recorded:
    """A layer that keeps its last input and output."""

    def __init__(self, inner: nnx.Linear) -> None:
        self.inner = inner
        self.x = self.y = np.zeros((0, 0), np.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.inner(x)
        self.x, self.y = (np.asarray(a).reshape(-1, a.shape[-1]) for a in (x, y))
        return y


class TappedMiniLM:
    """The model, whose dense layers are read while it runs, operation by operation."""

    def __init__(self) -> None:
        """Loads the model."""
        self._model = minilm.load()
        self._recorded: list[tuple[_Recorded, Layer]] = []
        for i, layer in enumerate(self._model.layers):
            for owner, part in ((layer.attention, "qkv"), (layer.attention, "out"), (layer, "up"), (layer, "down")):
                inner = getattr(owner, part)
                recorded = _Recorded(inner)
                setattr(owner, part, recorded)
                w, b = np.asarray(inner.kernel[...]), np.asarray(inner.bias[...])
                self._recorded.append((recorded, Layer(f"layers.{i}.{part}", w, b, is_patches=False)))

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order in which they run."""
        return [layer for _, layer in self._recorded]

    def run(self, feed: Any, split: str, wanted: int) -> None:
        """Runs the model on tokens [batch, tokens] and samples `wanted` rows of every layer."""
        self._model.hidden(jnp.asarray(feed))
        for recorded, layer in self._recorded:
            x, y = recorded.x, recorded.y
            layer.sample(split, len(x), len(feed), wanted, lambda at, x=x, y=y: (x[at], y[at]))  # type: ignore[misc]


def tokens(split: str) -> Iterator[np.ndarray]:
    """Yields batches of sentences of the same length, each of `LENGTHS` in turn, until one of them is used up."""
    tokenized = minilm.tokenize(texts(split), minilm.load_tokenizer())
    groups = [[row for row in tokenized if len(row) == length] for length in LENGTHS]
    for batch in itertools.count():
        group = groups[batch % len(groups)]
        first = batch // len(groups) * BATCH
        if first + BATCH > len(group):
            return
        yield np.array(group[first : first + BATCH], np.int32)
