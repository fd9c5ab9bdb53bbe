"""Sampled rows of one layer, checked against the layer's own outputs, and the file that they become."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable

import numpy as np

SPLITS = ("train", "test")
LEAST_FEATURES, LEAST_OUTPUTS = 16, 8
LEAST_ROWS = {"train": 200, "test": 60}
"""Least numbers of rows of a layer: fewer teach nothing, or say little."""
TOLERANCE = 1e-3
"""Greatest error of the rows' product, relative to the layer's own outputs."""

Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Rows and outputs of a layer at some positions."""


class UnusableError(ValueError):
    """A layer is left out, for the reason that the message gives."""


@dataclasses.dataclass
class Layer:
    """A layer of which rows are sampled, some of each inference."""

    name: str
    w: np.ndarray
    b: np.ndarray | None
    is_patches: bool
    rows: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=lambda: {split: [] for split in SPLITS})
    rows_of_inference: list[int] = dataclasses.field(default_factory=list)
    error: float = 0.0

    def sample(self, split: str, available: int, inferences: int, wanted: int, read: Read) -> None:
        """Keeps `wanted` of the `available` rows of some inferences, or all where there are fewer.

        Args:
          split: the set that the rows belong to.
          available: the number of rows of all these inferences together.
          inferences: the number of inferences, which is that of a batch.
          wanted: the number of rows to keep.
          read: returns rows and outputs at given positions.
        """
        self.rows_of_inference.append(available // inferences)
        kept = sum(map(len, self.rows[split]))
        rng = np.random.default_rng([kept, available])
        positions = np.sort(rng.choice(available, min(available, wanted), replace=False))
        x, y = read(positions)
        product = x.astype(np.float32) @ self.w + (0.0 if self.b is None else self.b)
        error = float(np.linalg.norm(product - y)) / max(float(np.linalg.norm(y)), 1e-20)
        self.error = max(self.error, error)
        self.rows[split].append(x)

    def arrays(self, limits: dict[str, int]) -> dict[str, np.ndarray]:
        """Returns the contents of the file of the layer.

        Raises:
          UnusableError: there are too few rows, or their product isn't what the layer computes.
        """
        parts = {split: np.concatenate(self.rows[split])[: limits[split]] for split in SPLITS}
        for split, rows in parts.items():
            if len(rows) < min(LEAST_ROWS[split], limits[split]):
                raise UnusableError(f"only {len(rows)} rows to {split} with")
            if not np.ptp(rows, axis=0).any():
                raise UnusableError("all rows are the same")
        if not self.error <= TOLERANCE:
            raise UnusableError(f"the product of rows and weights differs from its outputs by {self.error:.2g}")
        if np.all(np.count_nonzero(parts["train"], axis=1) <= 1):
            raise UnusableError("rows select a row of the weights, so it is no product")
        return _halves(parts["train"], parts["test"], self.w, self.b)


def why_not(w: np.ndarray, known: set[str]) -> str | None:
    """Returns why a layer with weights `w` isn't wanted, None if it is; adds its weights to those `known`."""
    if w.shape[0] < LEAST_FEATURES or w.shape[1] < LEAST_OUTPUTS:
        return f"it is too small, {w.shape[0]} x {w.shape[1]}"
    key = hashlib.sha256(repr(w.shape).encode() + np.ascontiguousarray(w).tobytes()).hexdigest()
    if key in known:
        return "its weights are those of an earlier layer"
    known.add(key)
    return None


def _halves(x_train: np.ndarray, x_test: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> dict[str, np.ndarray]:
    """Returns the problem as float16, with rows and weights scaled by powers of two where their range needs that.

    Only the unit of the outputs changes: relative errors stay what they are.
    """
    scale_x, scale_w = _scale(x_train), _scale(w)
    arrays = {"x_train": x_train * scale_x, "x_test": x_test * scale_x, "w": w * scale_w}
    if b is not None:
        arrays["b"] = b * (scale_x * scale_w)
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    if not all(np.isfinite(array).all() for array in halves.values()):
        raise UnusableError("its range is wider than that of float16")
    return halves


def _scale(x: np.ndarray) -> float:
    """Returns a power of two that brings the greatest magnitude near one; 1 if it is between 0.05 and 1,000."""
    greatest = float(np.abs(x).max())
    return 1.0 if greatest == 0.0 or 0.05 < greatest < 1e3 else float(2.0 ** -np.round(np.log2(greatest)))


def file_name(model: str, layer: str, taken: set[str]) -> str:
    """Returns a name for the file of a layer that isn't taken yet, and takes it.

    Example:
      >>> file_name("detector", "/head/Conv:0", set())
      'detector__head-Conv-0.npz'
    """
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", layer).strip("-_")
    name, number = f"{model}__{plain}.npz", 1
    while name in taken:
        number += 1
        name = f"{model}__{plain}-{number}.npz"
    taken.add(name)
    return name


def save(folder: pathlib.Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes the file of a layer."""
    np.savez_compressed(folder / name, allow_pickle=False, **arrays)
