"""Whisper as a Flax nnx model: the encoder of a window of 30 seconds, and the decoder one token at a time.

The decoder's state after a token is what the output layer multiplies with the embeddings of all tokens; that layer is
in `heads.py`. A step has one row for each hypothesis ("beam") of a search, and greedy decoding has one beam.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the model; the defaults are those of tiny.en."""

    mels: int = 80
    frames: int = 1500
    positions: int = 448
    vocabulary: int = 51864
    width: int = 384
    heads: int = 6
    layers: int = 4


class Cache(NamedTuple):
    """Keys [heads, positions, beams, size] and values [heads, size, positions, beams] of one layer, so far.

    A beam of a search goes on from another one of the step before. The cache stays in place then, and `seen` of
    `Whisper.step` says which entries belong to which beam. The orders are as those of `Memory`, for the same reason.
    """

    keys: jax.Array
    values: jax.Array


class Memory(NamedTuple):
    """Keys [heads, frames, size] and values [heads, size, frames] of one layer's attention to a recording.

    They are computed once for a recording. In these orders both products of a step have the memory on their left, and
    read it row by row.
    """

    keys: jax.Array
    values: jax.Array


class Dense(nnx.Module):
    """A dense layer with weights [outputs, features].

    The weights are the left operand: XLA multiplies few rows faster that way.
    """

    def __init__(self, features: int, outputs: int):
        self.weight = nnx.Param(jnp.zeros((outputs, features)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `x [rows, features]` to [rows, outputs]."""
        return (self.weight[...] @ x.T).T + self.bias[...]


def norm(config: Config) -> nnx.LayerNorm:
    """Returns a layer norm of the model's width."""
    return nnx.LayerNorm(config.width, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))


class Mlp(nnx.Module):
    """Two dense layers, added to their input."""

    def __init__(self, config: Config):
        self.norm = norm(config)
        self.up, self.down = Dense(config.width, 4 * config.width), Dense(4 * config.width, config.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `x [rows, width]` to the same shape."""
        return x + self.down(jax.nn.gelu(self.up(self.norm(x)), approximate=False))


class SelfAttention(nnx.Module):
    """Attention of rows to each other, added to its input."""

    def __init__(self, config: Config):
        self.heads = config.heads
        self.norm = norm(config)
        self.qkv, self.out = Dense(config.width, 3 * config.width), Dense(config.width, config.width)

    def _split(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Returns queries, scaled, keys and values, each [heads, rows, size]."""
        q, k, v = self.qkv(self.norm(x)).reshape(len(x), 3, self.heads, -1).transpose(1, 2, 0, 3)
        return q / np.sqrt(q.shape[-1]), k, v

    def __call__(self, x: jax.Array, causal: bool = False) -> jax.Array:
        """Maps `x [rows, width]` to the same shape; with `causal`, no row attends to later ones."""
        q, k, v = self._split(x)
        scores = jnp.einsum("hqd,hkd->hqk", q, k)
        weights = jax.nn.softmax(scores, where=np.tri(len(x), dtype=bool) if causal else None)
        return x + self.out(jnp.einsum("hqk,hkd->qhd", weights, v).reshape(x.shape))

    def step(self, x: jax.Array, cache: Cache, position: jax.Array, seen: jax.Array) -> tuple[jax.Array, Cache]:
        """Maps `x [beams, width]`, all at one position, to the same shape; returns the cache with their keys, too.

        `seen [positions, beams, beams]` says of each entry of the cache which beams, the last axis, attend to it.
        """
        q, k, v = self._split(x)
        keys, values = cache.keys.at[:, position].set(k), cache.values.at[:, :, position].set(v.swapaxes(1, 2))
        scores = jnp.einsum("hpsd,hbd->hpsb", keys, q)
        weights = jax.nn.softmax(scores, axis=(1, 2), where=seen)
        return x + self.out(jnp.einsum("hdps,hpsb->bhd", values, weights).reshape(x.shape)), Cache(keys, values)


class CrossAttention(nnx.Module):
    """Attention of rows to a recording, added to its input."""

    def __init__(self, config: Config):
        self.heads = config.heads
        self.norm = norm(config)
        self.query, self.out = Dense(config.width, config.width), Dense(config.width, config.width)
        self.key_value = Dense(config.width, 2 * config.width)

    def memory(self, encoded: jax.Array) -> Memory:
        """Returns keys and values of a recording, which is `encoded [frames, width]`."""
        keys, values = self.key_value(encoded).reshape(len(encoded), 2, self.heads, -1).transpose(1, 2, 0, 3)
        return Memory(keys, values.swapaxes(1, 2))

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        """Maps `x [rows, width]` to the same shape."""
        q = self.query(self.norm(x)).reshape(len(x), self.heads, -1)
        scores = jnp.einsum("hfd,bhd->hfb", memory.keys, q / np.sqrt(q.shape[-1]))
        weights = jax.nn.softmax(scores, axis=1)
        return x + self.out(jnp.einsum("hdf,hfb->bhd", memory.values, weights).reshape(x.shape))


class EncoderLayer(nnx.Module):
    """A layer of the encoder."""

    def __init__(self, config: Config):
        self.attention, self.mlp = SelfAttention(config), Mlp(config)


class DecoderLayer(nnx.Module):
    """A layer of the decoder."""

    def __init__(self, config: Config):
        self.attention, self.cross, self.mlp = SelfAttention(config), CrossAttention(config), Mlp(config)


class Whisper(nnx.Module):
    """The model without its output layer; one recording at a time."""

    def __init__(self, config: Config):
        width, rngs = config.width, nnx.Rngs(0)
        self.config = config
        self.conv1 = nnx.Conv(config.mels, width, (3,), padding=((1, 1),), rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3,), strides=2, padding=((1, 1),), rngs=rngs)
        self.frame_positions = nnx.Param(jnp.zeros((config.frames, width)))
        self.encoder = nnx.List([EncoderLayer(config) for _ in range(config.layers)])
        self.encoder_norm = norm(config)
        self.embedding = nnx.Param(jnp.zeros((config.vocabulary, width)))
        self.positions = nnx.Param(jnp.zeros((config.positions, width)))
        self.decoder = nnx.List([DecoderLayer(config) for _ in range(config.layers)])
        self.decoder_norm = norm(config)

    def encode(self, mel: jax.Array) -> list[Memory]:
        """Maps a spectrogram `mel [mels, 2 * frames]` to the memories of all layers of the decoder."""
        x = jax.nn.gelu(self.conv1(mel.T), approximate=False)
        x = jax.nn.gelu(self.conv2(x), approximate=False) + self.frame_positions[...]
        for layer in self.encoder:
            x = layer.mlp(layer.attention(x))
        x = self.encoder_norm(x)
        return [layer.cross.memory(x) for layer in self.decoder]

    def states(self, tokens: jax.Array, memories: list[Memory]) -> jax.Array:
        """Returns the states after each of `tokens [tokens]`, [tokens, width], all in one pass."""
        x = self.embedding[...][tokens] + self.positions[...][: len(tokens)]
        for layer, memory in zip(self.decoder, memories, strict=True):
            x = layer.mlp(layer.cross(layer.attention(x, causal=True), memory))
        return self.decoder_norm(x)

    def caches(self, beams: int, positions: int) -> list[Cache]:
        """Returns empty caches, one for each layer, of so many positions."""
        heads, size = self.config.heads, self.config.width // self.config.heads
        keys, values = (heads, positions, beams, size), (heads, size, positions, beams)
        return [Cache(jnp.zeros(keys), jnp.zeros(values)) for _ in self.decoder]

    def step(
        self, tokens: jax.Array, position: jax.Array, caches: list[Cache], seen: jax.Array, memories: list[Memory]
    ) -> tuple[jax.Array, list[Cache]]:
        """Returns the states after `tokens [beams]` at one position, [beams, width], and the caches with that position.

        `seen` is that of `SelfAttention.step`.
        """
        x, later = self.embedding[...][tokens] + self.positions[...][position], []
        for layer, cache, memory in zip(self.decoder, caches, memories, strict=True):
            x, cache = layer.attention.step(x, cache, position, seen)
            x = layer.mlp(layer.cross(x, memory))
            later.append(cache)
        return self.decoder_norm(x), later
