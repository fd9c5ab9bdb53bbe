"""Lines of text as pictures, for examples and a benchmark: rendered, then slanted, blurred and noisy.

No package brings photographs of text with their words, so these lines are drawn. The texts are parts of WordNet's
glosses, some with numbers; the fonts come inside matplotlib and three packages of fonts.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

MATPLOTLIB = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold",
              "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic")  # fmt: skip
"""Names of fonts in matplotlib's folder."""
OTHERS = {
    "font_caladea": ("Caladea-Regular", "Caladea-Bold", "Caladea-Italic"),
    "font_lato": ("Lato-Regular", "Lato-Bold", "Lato-Italic"),
    "font_source_serif_pro": ("SourceSerifPro-Regular", "SourceSerifPro-Semibold"),
}
"""Names of fonts in packages of fonts, none of which is in matplotlib."""

LONGEST = 20
"""Characters of a line, so that it is not much wider than the picture that readers take."""


def folder_of(package: str) -> pathlib.Path:
    """Returns the folder of a package, which isn't imported.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"The package {package} is not installed: `make` installs it with what needs it.")
    return pathlib.Path(spec.submodule_search_locations[0])


def matplotlib_fonts() -> list[pathlib.Path]:
    """Returns the files of matplotlib's fonts."""
    return [folder_of("matplotlib") / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf" for name in MATPLOTLIB]


def other_fonts() -> list[pathlib.Path]:
    """Returns the files of the fonts of other packages."""
    found = [next(folder_of(package).rglob(f"{name}.ttf")) for package, names in OTHERS.items() for name in names]
    return sorted(found)


def lines(texts: Sequence[str], fonts: Sequence[pathlib.Path], seed: int) -> Iterator[tuple[str, Image.Image]]:
    """Yields some words of each text, of `LONGEST` characters at most, one in four with a number; and their picture."""
    rng = np.random.default_rng(seed)
    for text in texts:
        words = [word for word in text.split() if len(word) <= LONGEST]
        if not words:
            continue
        first = int(rng.integers(len(words)))
        part = words[first : first + int(rng.integers(1, 5))]
        if rng.random() < 0.25:
            part[int(rng.integers(len(part)))] = str(int(10 ** rng.uniform(0, 6)))
        while len(" ".join(part)) > LONGEST:
            part.pop()
        yield " ".join(part), line(" ".join(part), rng, fonts)


def line(text: str, rng: np.random.Generator, fonts: Sequence[pathlib.Path]) -> Image.Image:
    """Returns a line of text in one of these fonts, in random colours, as a camera might see it."""
    size = int(rng.integers(20, 56))
    font = ImageFont.truetype(fonts[rng.integers(len(fonts))], size)
    left, top, right, bottom = font.getbbox(text)
    margins = rng.integers(2, 3 + size // 3, 4)
    width, height = int(right - left + margins[:2].sum()), int(bottom - top + margins[2:].sum())
    paper, ink = colours(rng)
    picture = Image.new("RGB", (width, height), paper)
    ImageDraw.Draw(picture).text((margins[0] - left, margins[2] - top), text, ink, font)
    return photographed(picture, paper, rng)


def colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns colours of paper and ink; one time in five the ink is the brighter one."""
    bright, dark = rng.integers(170, 256, 3).tolist(), rng.integers(0, 90, 3).tolist()
    return (tuple(bright), tuple(dark)) if rng.random() < 0.8 else (tuple(dark), tuple(bright))


def photographed(picture: Image.Image, paper: tuple[int, ...], rng: np.random.Generator) -> Image.Image:
    """Returns the picture as a camera sees it: corners moved a little, out of focus, with noise."""
    width, height = picture.size
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)], float)
    corners += rng.uniform(-0.08, 0.08, (4, 2)) * height
    quad = tuple(float(v) for v in corners.ravel())
    moved = picture.transform(picture.size, Image.Transform.QUAD, quad, Image.Resampling.BILINEAR, fillcolor=paper)
    moved = moved.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.2))))
    noisy = np.asarray(moved) + rng.normal(0, rng.uniform(0, 12), (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
