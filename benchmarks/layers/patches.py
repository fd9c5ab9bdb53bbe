"""Rows of a convolution: patches of its input at some positions, such that patches times a matrix are its outputs.

Arrays are `[batch, channels, *spatial]`. A position is a number in `[0, batch * product of the output's sizes)`, which
counts the outputs of one channel in row-major order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Window:
    """The taps of a convolution; `pads` are zeros before and after each dimension, `auto_pad` is that of ONNX."""

    taps: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    auto_pad: str = "NOTSET"

    def padding(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """Returns the numbers of zeros before and after each dimension of an input of this size."""
        if self.auto_pad == "VALID":
            return [(0, 0)] * len(self.taps)
        if not self.auto_pad.startswith("SAME"):
            return list(self.pads)
        pads = []
        for n, extent, stride in zip(size, self._extents(), self.strides, strict=True):
            total = max(0, (math.ceil(n / stride) - 1) * stride + extent - n)
            less, more = total // 2, total - total // 2
            pads.append((more, less) if self.auto_pad == "SAME_LOWER" else (less, more))
        return pads

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Returns the size of the output for an input of this size."""
        dimensions = zip(size, self.padding(size), self._extents(), self.strides, strict=True)
        return tuple((n + before + after - extent) // stride + 1 for n, (before, after), extent, stride in dimensions)

    def _extents(self) -> list[int]:
        return [(taps - 1) * dilation + 1 for taps, dilation in zip(self.taps, self.dilations, strict=True)]


def patches(x: np.ndarray, window: Window, positions: np.ndarray) -> np.ndarray:
    """Returns `[len(positions), channels * taps]`: features are in the order of a kernel `[channels, *taps]`."""
    size = x.shape[2:]
    batch, *outputs = np.unravel_index(positions, (x.shape[0], *window.output_size(size)))
    dims = len(size)
    places, inside = [], np.ones((len(positions),) + (1,) * dims, bool)
    for i, (before, _) in enumerate(window.padding(size)):
        shape = [-1 if axis == i else 1 for axis in range(dims)]
        taps = np.arange(window.taps[i]).reshape(shape) * window.dilations[i]
        place = outputs[i].reshape(-1, *(1,) * dims) * window.strides[i] - before + taps
        inside = inside & (place >= 0) & (place < size[i])
        places.append(np.clip(place, 0, size[i] - 1))
    gathered = np.moveaxis(x, 1, -1)[(batch.reshape(-1, *(1,) * dims), *places)] * inside[..., None]
    return np.moveaxis(gathered, -1, 1).reshape(len(positions), -1)


def outputs_at(y: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns the outputs `[len(positions), channels]` of all channels of `y [batch, channels, *spatial]`."""
    return np.moveaxis(y, 1, -1)[np.unravel_index(positions, (y.shape[0], *y.shape[2:]))]


def matrix(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel `[outputs, channels, *taps]` as a matrix `[channels * taps, outputs]`."""
    return kernel.reshape(len(kernel), -1).T
