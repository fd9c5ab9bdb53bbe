"""Files of the machine as inputs of the file-type model: bytes without labels, split by package.

The files are those that a fresh machine has: Python's standard library, installed packages, and the folders of the
system. Each package, by its name, is either for training, for validation or for the test, so that the test has no files
of a kind that only its own package has and that was trained on.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
import stat
import sysconfig
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

PAD = 256
"""The token for bytes beyond the end of a file."""
HALF = 1024
"""Number of bytes of each end of a file that the model reads."""
BLOCK = 4096
"""Number of bytes of each end that whitespace is stripped from before `HALF` of them are taken."""
LEAST = 8
"""Least number of bytes of a file for the model."""
SPLITS = {"training": 6, "validation": 1, "test": 5}
"""Shares of the packages in each split."""
PER_PACKAGE, PER_KIND = 96, 16
"""Greatest numbers of files of a package, and of those with the same extension."""
PER_EXTENSION = 0.08
"""Greatest share of files with the same extension in a split."""


def roots() -> list[str]:
    """Returns folders in which each entry is a package; a folder inside of another one comes first."""
    system = ["/usr/lib/python3/dist-packages", "/usr/share/doc", "/usr/lib", "/usr/share", "/usr/include", "/etc"]
    platforms = sorted(
        str(path) for top in ("/usr/lib", "/usr/include") for path in pathlib.Path(top).glob("*-linux-*")
    )
    python = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]
    folders = [os.path.realpath(root) for root in (*python, *platforms, *system) if os.path.isdir(root)]
    return sorted(dict.fromkeys(folders), key=lambda root: (-len(root), root))


@dataclasses.dataclass(frozen=True)
class File:
    """A file, at the path `root/inside`."""

    root: str
    inside: str

    @property
    def path(self) -> str:
        """The path of the file."""
        return os.path.join(self.root, self.inside)

    @property
    def order(self) -> tuple[int, str]:
        """Key by which files are sorted, which does not depend on the root."""
        return zlib.crc32(os.fsencode(self.inside)), self.inside

    @property
    def package(self) -> str:
        """Name of the folder in the root, without a version; the same name in several roots is one package."""
        return self.inside.split(os.sep)[0].split("-")[0].split(".")[0].lower()

    @property
    def extension(self) -> str:
        """Extension of the name, without a version after it; "" if there is none."""
        return os.path.splitext(re.sub(r"(\.\d+)+$", "", self.inside))[1].lower()

    @property
    def split(self) -> str:
        """Key of `SPLITS`, which the name of the package determines."""
        place = zlib.crc32(os.fsencode(self.package)) % sum(SPLITS.values())
        return next(name for name, end in zip(SPLITS, np.cumsum(list(SPLITS.values())), strict=True) if place < end)


def listed(folders: Iterable[str]) -> list[File]:
    """Returns all files in some folders that everyone may read, in the order in which they are taken.

    Python's caches are left out, because they change, and so are links.
    """
    folders = list(folders)
    files = [File(root, inside) for root in folders for inside in _walk(root, set(folders) - {root})]
    return sorted(files, key=lambda file: file.order)


def _walk(root: str, others: set[str]) -> Iterator[str]:
    for place, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name != "__pycache__" and os.path.join(place, name) not in others]
        for name in names:
            path = os.path.join(place, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH and status.st_size >= LEAST:
                yield os.path.relpath(path, root)


def tokens(path: str) -> np.ndarray | None:
    """Returns the input of the model for a file, int16 [2 * HALF]: its first and last bytes; None if there are too few.

    As in Magika's own code, whitespace at the beginning and the end of the file is stripped from the first and the last
    `BLOCK` bytes.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(BLOCK)
        file.seek(max(0, size - BLOCK))
        end = file.read(BLOCK)
    first, last = start.lstrip()[:HALF], end.rstrip()[-HALF:]
    if len(first) < LEAST:
        return None
    filled = np.full(2 * HALF, PAD, np.int16)
    filled[: len(first)] = np.frombuffer(first, np.uint8)
    filled[2 * HALF - len(last) :] = np.frombuffer(last, np.uint8)
    return filled


def load(counts: dict[str, int], folders: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Returns inputs of the model by split, int16 [files, 2 * HALF]: at most `counts` of each, all of them distinct.

    Raises:
      ValueError: there are fewer than half as many files as requested.
    """
    inputs: dict[str, list[np.ndarray]] = {name: [] for name in counts}
    taken: collections.Counter[tuple[str, ...]] = collections.Counter()
    known: set[bytes] = set()
    for file in listed(roots() if folders is None else folders):
        split, extension = file.split, file.extension
        limits = {
            (file.package,): PER_PACKAGE,
            (file.package, extension): PER_KIND,
            ("", split, extension): max(1, int(PER_EXTENSION * counts.get(split, 0))),
        }
        if len(inputs.get(split, ())) >= counts.get(split, 0) or any(taken[key] >= limits[key] for key in limits):
            continue
        row = _tokens_or_none(file.path)
        if row is not None and row.tobytes() not in known:
            known.add(row.tobytes())
            inputs[split].append(row)
            taken.update(limits.keys())
    for name, rows in inputs.items():
        if 2 * len(rows) < counts[name]:
            raise ValueError(f"There are only {len(rows)} files of {counts[name]} for {name}. Ask for fewer.")
    return {name: np.stack(rows) for name, rows in inputs.items()}


def _tokens_or_none(path: str) -> np.ndarray | None:
    try:
        return tokens(path)
    except OSError:
        return None
