"""Pictures of the page of a plan, as wide as a desktop shows it and as narrow as a phone, for the documentation.

    make plan-pictures                                    # of minilm_plan.json, which `make example-minilm` writes
    python -m benchmarks.plan_pictures plan.json [--output docs]

They are taken by Chromium, which must be installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

from PIL import Image

from jax_maddness import Plan

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
"""Names of the program."""
PICTURES = {"plan_wide.png": (1280, 2900), "plan_narrow.png": (450, 1400)}
"""By name, the width of a picture, and its greatest height: the rest of the page is left out."""
_COLORS = 128
"""Few colors make a picture small."""
_FRAME = """<!doctype html><iframe style="border:0;width:{width}px;height:200px" srcdoc="{page}"></iframe>
<script>addEventListener("load", () => {{
const root = document.querySelector("iframe").contentDocument.documentElement
document.body.dataset.measured = [root.scrollWidth, root.scrollHeight].join(" ")
}})</script>"""
"""A page in a frame, which may be narrower than the window of a browser."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A page as a browser lays it out.

    Attributes:
      width, height: of the page, in pixels; the width is at least that of the window.
      errors: what the browser's console says.
    """

    width: int
    height: int
    errors: tuple[str, ...]


def browser() -> str | None:
    """Returns the path of a browser, if one is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def rendered(page: pathlib.Path, width: int, unfold: bool = False) -> Rendered:
    """Lays a page out in a window of some width.

    Args:
      page: an HTML file.
      width: of the window.
      unfold: show what is folded.
    """
    text = page.read_text().replace("<details>", "<details open>" if unfold else "<details>")
    text = text.replace("<style>", "<style>::-webkit-scrollbar{display:none}", 1)
    with tempfile.TemporaryDirectory() as folder:
        frame = pathlib.Path(folder) / "frame.html"
        frame.write_text(_FRAME.format(width=width, page=html.escape(text)))
        dom, log = _run(folder, "--dump-dom", frame.as_uri())
    found = re.search('data-measured="([0-9]+) ([0-9]+)"', dom)
    if found is None:
        raise RuntimeError(f"The browser did not lay {page} out: {log[-500:]}")
    errors = tuple(line for line in log.splitlines() if ":CONSOLE" in line)
    return Rendered(int(found[1]), int(found[2]), errors)


def picture(page: pathlib.Path, width: int, most: int, output: pathlib.Path) -> None:
    """Writes a picture of a page, at most `most` pixels high."""
    height = min(rendered(page, width).height, most)
    with tempfile.TemporaryDirectory() as folder:
        raw = pathlib.Path(folder) / "raw.png"
        _run(folder, f"--window-size={width},{height}", "--hide-scrollbars", f"--screenshot={raw}", page.as_uri())
        with Image.open(raw) as image:
            small = image.convert("RGB").quantize(_COLORS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            small.save(output, optimize=True)


def _run(folder: str, *arguments: str) -> tuple[str, str]:
    """Runs the browser with a profile of its own; returns what it prints, and its log."""
    program = browser()
    if program is None:
        raise RuntimeError(f"Pictures need a browser, one of {', '.join(BROWSERS)}: install Chromium.")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={folder}/me"]
    done = subprocess.run([program, *options, *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def main(argv: Sequence[str] | None = None) -> None:
    """Writes both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=pathlib.Path, help="a plan that `Plan.to_json` wrote")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("docs"), help="the folder")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        page = pathlib.Path(folder) / "plan.html"
        Plan.from_json(args.plan).html(page)
        for name, (width, most) in PICTURES.items():
            picture(page, width, most, args.output / name)
            print(f"{args.output / name}: {(args.output / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
