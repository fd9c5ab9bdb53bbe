"""Files on this machine's disk as inputs of the file-type model: bytes, without labels, split by package.

What a fresh machine has: Python's standard library and installed packages, and the system's folders. Packages, by
their names, are either for training, for validation or for the test, so that no file of the test is of a kind that
only its own package has, and was trained on.
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
"""The token where a file has no more bytes."""
HALF = 1024
"""Bytes that the model sees of each end of a file."""
BLOCK = 4096
"""Bytes that are read of each end: whitespace is stripped before the model's are taken."""
LEAST = 8
"""A file of fewer bytes is none for the model."""
SPLITS = {"training": 6, "validation": 1, "test": 5}
"""Shares of the packages."""
PER_PACKAGE, PER_KIND = 96, 16
"""At most so many files of a package, and so many of them with the same extension."""
PER_EXTENSION = 0.08
"""At most this share of a split has the same extension."""


def roots() -> list[str]:
    """Folders in which each entry is a package; those within others first."""
    system = ["/usr/lib/python3/dist-packages", "/usr/share/doc", "/usr/lib", "/usr/share", "/usr/include", "/etc"]
    platforms = sorted(
        str(path) for top in ("/usr/lib", "/usr/include") for path in pathlib.Path(top).glob("*-linux-*")
    )
    python = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]
    found = [os.path.realpath(root) for root in (*python, *platforms, *system) if os.path.isdir(root)]
    return sorted(dict.fromkeys(found), key=lambda root: (-len(root), root))


@dataclasses.dataclass(frozen=True)
class File:
    """Where a file is: its path is `root/inside`."""

    root: str
    inside: str

    @property
    def path(self) -> str:
        """Of the file."""
        return os.path.join(self.root, self.inside)

    @property
    def order(self) -> tuple[int, str]:
        """By which files are sorted: any order that does not depend on where the root is."""
        return zlib.crc32(os.fsencode(self.inside)), self.inside

    @property
    def package(self) -> str:
        """The name of the folder in its root, up to a version: the same in several roots is one package."""
        return self.inside.split(os.sep)[0].split("-")[0].split(".")[0].lower()

    @property
    def extension(self) -> str:
        """Of its name, without a version after it; "" where there is none."""
        return os.path.splitext(re.sub(r"(\.\d+)+$", "", self.inside))[1].lower()

    @property
    def split(self) -> str:
        """A key of `SPLITS`, by the package's name."""
        place = zlib.crc32(os.fsencode(self.package)) % sum(SPLITS.values())
        return next(name for name, end in zip(SPLITS, np.cumsum(list(SPLITS.values())), strict=True) if place < end)


def listed(folders: Iterable[str]) -> list[File]:
    """All files below some folders that everyone may read, in the order in which they are taken.

    Python's caches are left out, as they come and go; so is what is a link to something else.
    """
    folders = list(folders)
    found = [File(root, inside) for root in folders for inside in _walk(root, set(folders) - {root})]
    return sorted(found, key=lambda file: file.order)


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
    """What the model sees of a file, int16 [2 * HALF]: its first bytes and its last ones; None: too few are left.

    As Magika's own code has it, whitespace that the file begins or ends with is stripped, of the first and of the last
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
    found = np.full(2 * HALF, PAD, np.int16)
    found[: len(first)] = np.frombuffer(first, np.uint8)
    found[2 * HALF - len(last) :] = np.frombuffer(last, np.uint8)
    return found


def load(counts: dict[str, int], folders: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Inputs of the model by split, int16 [files, 2 * HALF]: at most `counts` of each, no two of all the same.

    Raises:
      ValueError: there are fewer than half as many files as asked for.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in counts}
    taken: collections.Counter[tuple[str, ...]] = collections.Counter()
    seen: set[bytes] = set()
    for file in listed(roots() if folders is None else folders):
        split, extension = file.split, file.extension
        limits = {
            (file.package,): PER_PACKAGE,
            (file.package, extension): PER_KIND,
            ("", split, extension): max(1, int(PER_EXTENSION * counts.get(split, 0))),
        }
        if len(found.get(split, ())) >= counts.get(split, 0) or any(taken[key] >= limits[key] for key in limits):
            continue
        row = _tokens_or_none(file.path)
        if row is not None and row.tobytes() not in seen:
            seen.add(row.tobytes())
            found[split].append(row)
            taken.update(limits.keys())
    for name, rows in found.items():
        if 2 * len(rows) < counts[name]:
            raise ValueError(f"There are only {len(rows)} files of {counts[name]} for {name}. Ask for fewer.")
    return {name: np.stack(rows) for name, rows in found.items()}


def _tokens_or_none(path: str) -> np.ndarray | None:
    try:
        return tokens(path)
    except OSError:
        return None
