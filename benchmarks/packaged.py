"""Matrix problems from data that comes with scikit-learn: nothing is downloaded."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Matrices:
    """A problem: approximate `x_test @ w + b` after learning from `x_train`."""

    name: str
    x_train: np.ndarray
    x_test: np.ndarray
    w: np.ndarray
    b: np.ndarray

    @classmethod
    def load(cls, path: pathlib.Path) -> Matrices:
        """Loads a problem from an `.npz` file with `x_train`, `x_test`, `w` and optionally `b`."""
        with np.load(path, allow_pickle=False) as file:
            x_train, x_test, w = (file[k].astype(np.float32) for k in ("x_train", "x_test", "w"))
            b = file["b"].astype(np.float32) if "b" in file else np.zeros(w.shape[1], np.float32)
        return cls(path.stem, x_train, x_test, w, b)


def packaged() -> Iterator[Matrices]:
    """Yields both layers of a small network on digits, and cosine transforms and Sobel filters on two photographs."""
    yield from _digits()
    yield from _photographs()


def _digits() -> Iterator[Matrices]:
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    digits = load_digits()
    x = digits.data.astype(np.float32) / 16
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1300], order[1300:]
    network = MLPClassifier((256,), max_iter=60, early_stopping=True, random_state=0).fit(
        x[train], digits.target[train]
    )
    for name, w, b in zip(("digits hidden", "digits head"), network.coefs_, network.intercepts_, strict=True):
        w, b = w.astype(np.float32), b.astype(np.float32)
        yield Matrices(name, x[train], x[test], w, b)
        x = np.maximum(x @ w + b, 0)


def _photographs() -> Iterator[Matrices]:
    """Yields problems that train on the left half of each photograph and test on the right half."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for name, size in (("photo cosines", 8), ("photo sobel", 3)):
        halves: dict[str, list[np.ndarray]] = {"train": [], "test": []}
        for image in load_sample_images().images:
            left, right = np.array_split(image.astype(np.float32) / 255, 2, axis=1)
            for half, part in (("train", left), ("test", right)):
                windows = np.lib.stride_tricks.sliding_window_view(part, (size, size), axis=(0, 1))  # [y, x, 3, s, s]
                windows = windows.reshape(-1, 3 * size * size)
                halves[half].append(windows[rng.choice(len(windows), 3000, replace=False)])
        w = np.kron(np.eye(3), _cosines(size) if size > 3 else _sobel()).astype(np.float32)
        train, test = (np.concatenate(halves[half]) for half in ("train", "test"))
        yield Matrices(name, train, test, w, np.zeros(w.shape[1], np.float32))


def _cosines(size: int) -> np.ndarray:
    """Returns the two-dimensional discrete cosine transform of a block as a matrix."""
    k, n = np.arange(size)[:, None], np.arange(size)
    basis = np.cos(np.pi * k * (2 * n + 1) / (2 * size)) * np.sqrt(np.where(k == 0, 1, 2) / size)
    return np.kron(basis, basis).T


def _sobel() -> np.ndarray:
    """Returns both Sobel filters as the columns of a matrix."""
    across = np.outer([1, 2, 1], [-1, 0, 1])
    return np.stack([across.ravel(), across.T.ravel()], axis=1)
