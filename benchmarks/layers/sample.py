"""Layers in a folder of `.npz` files, and a sample of them that every model and every width is part of."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from benchmarks.packaged import Matrices

ROWS = 4096
"""Number of rows of one inference, where a folder has no `index.json`."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of a pretrained model.

    Attributes:
      name: name of the layer, with that of its model.
      model: name of the model.
      domain: kind of its inputs.
      features, outputs: the shape of its weights, D and M.
      rows: number of rows of one inference.
      path: the file with its rows and weights.
    """

    name: str
    model: str
    domain: str
    features: int
    outputs: int
    rows: int
    path: pathlib.Path

    def load(self) -> Matrices:
        """Loads rows and weights."""
        return Matrices.load(self.path)


def layers_in(folder: pathlib.Path) -> list[Layer]:
    """Returns the layers of a folder: those in its `index.json`, or every `.npz` file if there is none.

    Raises:
      FileNotFoundError: the folder has neither.
    """
    index = folder / "index.json"
    if index.exists():
        entries = json.loads(index.read_text())
        return [
            Layer(f"{e['model']} {e['layer']}", e["model"], e["domain"], e["D"], e["M"], e["rows"], folder / e["file"])
            for e in entries
        ]
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise FileNotFoundError(f"{folder} has no layers: run `python -m benchmarks.layers.harvest` first.")
    shapes = [Matrices.load(path).w.shape for path in paths]
    return [Layer(p.stem, p.stem, "", d, m, ROWS, p) for p, (d, m) in zip(paths, shapes, strict=True)]


def stratified(layers: Sequence[Layer], number: int) -> list[Layer]:
    """Returns `number` of the layers, or all if there are no more.

    The models take turns. Each gives layers that are evenly spread over its own, in the order of their outputs.

    Example:
      >>> layers = [Layer(f"{m}{i}", m, "", 8, i, 1, pathlib.Path()) for m in "ab" for i in range(9)]
      >>> [layer.name for layer in stratified(layers, 5)]
      ['a0', 'a4', 'a8', 'b0', 'b8']
    """
    models = dict.fromkeys(layer.model for layer in layers)
    own = {m: sorted((la for la in layers if la.model == m), key=lambda la: (la.outputs, la.features)) for m in models}
    turns = [m for turn in range(len(layers)) for m in models if turn < len(own[m])][:number]
    return [layer for m in models for layer in _spread(own[m], turns.count(m))]


def _spread(layers: Sequence[Layer], number: int) -> list[Layer]:
    """Returns `number` of the layers, evenly spread; the one in the middle if it is one."""
    if number == 1:
        return [layers[len(layers) // 2]]
    return [layers[round(i * (len(layers) - 1) / (number - 1))] for i in range(number)]
