"""Photographs, pages and lines of text as inputs of models, made from what packages bring.

Photographs are those of scikit-image, scikit-learn and matplotlib; texts are WordNet's glosses, in the fonts of
matplotlib. Each photograph and each gloss is either for training or for the test.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from examples import glosses, text_lines
from examples.text_lines import folder_of

PHOTOGRAPHS = {
    "train": [
        ("skimage", "data", "astronaut.png"),
        ("skimage", "data", "camera.png"),
        ("skimage", "data", "coffee.png"),
        ("skimage", "data", "motorcycle_left.png"),
        ("skimage", "data", "page.png"),
        ("skimage", "data", "retina.jpg"),
        ("skimage", "data", "hubble_deep_field.jpg"),
        ("skimage", "data", "ihc.png"),
        ("skimage", "data", "coins.png"),
        ("sklearn", "datasets", "images", "china.jpg"),
    ],
    "test": [
        ("skimage", "data", "chelsea.png"),
        ("skimage", "data", "rocket.jpg"),
        ("skimage", "data", "text.png"),
        ("sklearn", "datasets", "images", "flower.jpg"),
        ("matplotlib", "mpl-data", "sample_data", "grace_hopper.jpg"),
    ],
}


@functools.cache
def texts(split: str) -> list[str]:
    """Returns glosses in random order; those of training and of the test are different ones."""
    found, _ = glosses.load(20_000)
    order = np.random.default_rng(1).permutation(len(found))
    chosen = order[: 3 * len(order) // 4] if split == "train" else order[3 * len(order) // 4 :]
    return [found[i] for i in chosen]


def source(split: str) -> np.random.Generator:
    """Returns a source of random numbers for a split."""
    return np.random.default_rng(["train", "test"].index(split))


def lines(split: str) -> Iterator[Image.Image]:
    """Yields single lines of text without end, as photographs of text look: tilted, blurred and noisy."""
    rng = source(split)
    for text in itertools.cycle(texts(split)):
        words = text.split()
        first = int(rng.integers(max(1, len(words) - 2)))
        yield line(" ".join(words[first : first + int(rng.integers(1, 6))]), rng)


def line(text: str, rng: np.random.Generator) -> Image.Image:
    """Returns a line of text in a random font, in random colours."""
    return text_lines.line(text, rng, text_lines.matplotlib_fonts())


def photographs(split: str, side: int) -> Iterator[Image.Image]:
    """Yields squares of this side without end: parts of each photograph in turn."""
    rng = source(split)
    for photograph in itertools.cycle([_opened(path) for path in PHOTOGRAPHS[split]]):
        yield _part(photograph, side, rng)


def scenes(split: str, side: int) -> Iterator[Image.Image]:
    """Yields squares of this side without end: parts of photographs, some with text on them, and pages of text."""
    rng = source(split)
    photographs = [_opened(path) for path in PHOTOGRAPHS[split]]
    remaining = itertools.cycle(texts(split))
    for photograph in itertools.cycle(photographs):
        yield _part(photograph, side, rng)
        picture = _part(photograph, side, rng)
        for _ in range(int(rng.integers(2, 7))):
            label = line(" ".join(next(remaining).split()[:4]), rng)
            picture.paste(label, _place(rng, -20, side - 80))
        yield picture
        yield _page(remaining, photograph, side, rng)


def _page(remaining: Iterator[str], photograph: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """Returns a page of text with a small photograph."""
    paper, ink = text_lines.colours(rng)
    page = Image.new("RGB", (side, side), paper)
    draw, font = ImageDraw.Draw(page), _font(rng, int(rng.integers(12, 30)))
    y = int(rng.integers(5, 50))
    while y < side:
        draw.text((int(rng.integers(8, 40)), y), next(remaining), ink, font)
        y += int(font.size * rng.uniform(1.2, 2.5))
    small = side // int(rng.integers(3, 6))
    page.paste(_part(photograph, small, rng), _place(rng, 0, side - small))
    return text_lines.photographed(page, paper, rng).resize((side, side))


def _opened(path: tuple[str, ...]) -> Image.Image:
    return Image.open(folder_of(path[0]).joinpath(*path[1:])).convert("RGB")


def _part(photograph: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """Returns a random square of a photograph, mirrored half of the time."""
    edge = int(min(photograph.size) * rng.uniform(0.5, 1.0))
    x, y = (int(rng.integers(0, length - edge + 1)) for length in photograph.size)
    part = photograph.resize((side, side), Image.Resampling.BICUBIC, (x, y, x + edge, y + edge))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


def _place(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    return int(rng.integers(low, high)), int(rng.integers(low, high))


def _font(rng: np.random.Generator, size: int) -> ImageFont.FreeTypeFont:
    fonts = text_lines.matplotlib_fonts()
    return ImageFont.truetype(fonts[rng.integers(len(fonts))], size)
