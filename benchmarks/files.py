"""Text files that are written whole or not at all."""

from __future__ import annotations

import pathlib
from typing import BinaryIO

from jax_maddness.core.atomic import replace_file


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` in the place of the file `path`, which stays as it is if that fails."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    replace_file(path, write)
