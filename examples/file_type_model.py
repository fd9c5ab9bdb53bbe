"""Magika, Google's model of file types, as a plain Flax nnx model from the bytes of a file to logits of 214 types.

More than 99.9 % of its work is one convolution over groups of four bytes. The weights, of version standard_v3_3, come
inside the package magika, as an ONNX graph: nothing is downloaded at run time.

The model differs from the graph in two places. The graph applies an activation to the vector of every byte; here it is
applied once to each of the 257 tokens. The graph applies another activation before max pooling; here it is applied to
the maxima only. That is equal if the maximum is not negative, as GELU increases from there on; otherwise GELU is within
0.17 of zero.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx

FOLDER = "models/standard_v3_3"
_FLAX = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/"
PLACES = {
    "bytes": "jax2tf_get_logits_/Const:0",
    "bytes bias": f"{_FLAX}Dense_0/Reshape:0",
    "norm scale": f"{_FLAX}LayerNorm_0/Reshape_2:0",
    "norm bias": f"{_FLAX}LayerNorm_0/Reshape_3:0",
    "conv": f"{_FLAX}Conv_0/transpose_3:0",
    "conv bias": "const_fold_opt__209",
    "pooled norm scale": f"{_FLAX}LayerNorm_1/Reshape_2:0",
    "pooled norm bias": f"{_FLAX}LayerNorm_1/Reshape_3:0",
    "head": "jax2tf_get_logits_/Const_24:0",
    "head bias": f"{_FLAX}Dense_1/Reshape:0",
}
"""The name of each weight in the graph, which was exported from a Flax model."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the model; the defaults are those of standard_v3_3."""

    tokens: int = 257
    length: int = 2048
    width: int = 64
    group: int = 4
    taps: int = 5
    features: int = 512
    types: int = 214
    epsilon: float = 1e-6

    @property
    def positions(self) -> int:
        """Number of groups of bytes that the convolution reads."""
        return self.length // self.group


class Norm(nnx.Module):
    """Normalizes every channel over positions; each position has a gain and a shift of its own."""

    def __init__(self, config: Config):
        self.epsilon = config.epsilon
        self.scale = nnx.Param(jnp.ones((config.positions, 1)))
        self.bias = nnx.Param(jnp.zeros((config.positions, 1)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes `x [batch, positions, channels]`."""
        mean = x.mean(1, keepdims=True)
        variance = jnp.maximum((x * x).mean(1, keepdims=True) - mean * mean, 0)
        return (x - mean) * (jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]) + self.bias[...]


class FileTypes(nnx.Module):
    """The model, which maps tokens [batch, length] to logits [batch, types]."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.config = config
        self.bytes = nnx.Embed(config.tokens, config.width, rngs=rngs)
        self.norm = Norm(config)
        channels = config.group * config.width
        self.conv = nnx.Conv(channels, config.features, config.taps, padding="VALID", rngs=rngs)
        self.pooled_norm = nnx.LayerNorm(config.features, epsilon=config.epsilon, rngs=rngs)
        self.head = nnx.Linear(config.features, config.types, rngs=rngs)

    def groups(self, tokens: jax.Array) -> jax.Array:
        """Returns the input of the convolution, [batch, positions, channels]."""
        x = self.bytes(tokens.astype(jnp.int32))
        return self.norm(x.reshape(len(tokens), self.config.positions, -1))

    def features(self, tokens: jax.Array) -> jax.Array:
        """Returns the input of the head, the normalized maxima of the convolution over positions, [batch, features]."""
        pooled = self.conv(self.groups(tokens)).max(1)
        return self.pooled_norm(jax.nn.gelu(pooled, approximate=True))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the logits."""
        return self.head(self.features(tokens))


def folder() -> pathlib.Path:
    """Returns the folder of the weights in the package, whose code is not run.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec("magika")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("The package magika is not installed: `make example-magika` installs it.")
    return pathlib.Path(spec.submodule_search_locations[0]) / FOLDER


def types() -> list[str]:
    """Returns the names of the types, in the order of the logits."""
    return json.loads((folder() / "config.min.json").read_text())["target_labels_space"]


def load() -> FileTypes:
    """Returns the model with its trained weights."""
    import onnx

    graph = onnx.load(folder() / "model.onnx").graph
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in graph.initializer}
    weights = {name: jnp.asarray(arrays[place]) for name, place in PLACES.items()}
    model = FileTypes(Config(), nnx.Rngs(0))
    model.bytes.embedding[...] = jax.nn.gelu(weights["bytes"] + weights["bytes bias"][0], approximate=True)
    model.norm.scale[...], model.norm.bias[...] = weights["norm scale"][0], weights["norm bias"][0]
    model.conv.kernel[...] = weights["conv"][..., 0].transpose(2, 1, 0)
    model.conv.bias[...] = weights["conv bias"].ravel()
    model.pooled_norm.scale[...] = weights["pooled norm scale"].ravel()
    model.pooled_norm.bias[...] = weights["pooled norm bias"].ravel()
    model.head.kernel[...], model.head.bias[...] = weights["head"], weights["head bias"].ravel()
    return model
