"""PP-OCRv4's recogniser of text lines as a Flax model: a convolutional trunk, two blocks of attention, a CTC head.

The weights come inside the package rapidocr-onnxruntime, as an ONNX graph; its code is not used. A picture of 48 x 320
pixels becomes 40 steps of 120 features, and the head has 6,625 outputs at each: a blank, Chinese and Latin characters,
and the space. Greedy decoding takes the largest output of each step, and drops repetitions and blanks.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

import jax_maddness
from examples.onnx_models import graph as graphs
from examples.onnx_models.module import OnnxModel, product
from examples.text_lines import folder_of

HEIGHT, WIDTH = 48, 320


class Head(nnx.Module):
    """The largest of the outputs of a dense layer."""

    def __init__(self, dense: nnx.Linear):
        self.dense = dense

    def __call__(self, features: jax.Array) -> jax.Array:
        """Returns the numbers of the largest outputs, int32 [...], for features [..., width]."""
        return jnp.argmax(self.dense(features), -1).astype(jnp.int32)


class IndexHead(nnx.Module):
    """The same by an index: look-ups propose candidates, and their exact products decide."""

    def __init__(self, index: jax_maddness.VectorIndex, num_candidates: int):
        self.index, self.num_candidates = nnx.data(index), num_candidates

    def __call__(self, features: jax.Array) -> jax.Array:
        """Returns the numbers of the largest outputs, int32 [...], for features [..., width]."""
        return jax_maddness.top_k(features, self.index, k=1, num_candidates=self.num_candidates)[1][..., 0]


class Reader(nnx.Module):
    """The model: pictures, float32 [batch, 3, height, width], to the number of a class at each step, [batch, steps]."""

    def __init__(self, trunk: OnnxModel, head: Head | IndexHead):
        self.trunk, self.head = trunk, head

    def __call__(self, pictures: jax.Array) -> jax.Array:
        """Runs the model."""
        return self.head(self.trunk(pictures))


def path() -> pathlib.Path:
    """Returns the file of the weights.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    return folder_of("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_rec_infer.onnx"


def load() -> Reader:
    """Returns the model with its trained weights."""
    graph = graphs.read(path())
    last = [node for node in graph.nodes if graph.is_product(node)][-1]
    return Reader(OnnxModel(graph.ending_at(last.inputs[0])), Head(product(last, graph.constants)))


def characters() -> list[str]:
    """Returns the character of each class; that of the blank is empty."""
    import onnx

    (listed,) = (entry.value for entry in onnx.load(path()).metadata_props if entry.key == "character")
    return ["", *listed.splitlines(), " "]


def scaled(picture: Image.Image) -> np.ndarray:
    """Returns a picture as the model expects it, float32 [3, HEIGHT, WIDTH]: in [-1, 1], with zeros on the right."""
    width = min(WIDTH, max(8, round(picture.width * HEIGHT / picture.height)))
    pixels = np.asarray(picture.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    values = pixels[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1
    return np.pad(values, ((0, 0), (0, 0), (0, WIDTH - width)))


def texts(classes: np.ndarray, names: Sequence[str]) -> list[str]:
    """Returns the text of each line, from the classes of its steps, [lines, steps]."""
    return ["".join(names[k] for k in row if k) for row in collapsed(classes)]


def collapsed(classes: Any) -> np.ndarray:
    """Returns the classes of lines, [lines, steps], without repetitions and blanks, with zeros after the end.

    Example:
      >>> collapsed(np.array([[0, 5, 5, 0, 5, 7]]))
      array([[5, 5, 7, 0, 0, 0]])
    """
    classes = np.asarray(classes)
    before = np.pad(classes, ((0, 0), (1, 0)))[:, :-1]
    kept = (classes != 0) & (classes != before)
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(np.where(kept, classes, 0), order, 1)
