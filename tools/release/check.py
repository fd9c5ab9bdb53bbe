"""Checks that all places that name the version agree, and that the commit is one to release.

    python tools/release/check.py

The changelog must begin with a dated section of the version, nothing may be uncommitted, and the tag of the version
must be that of this commit.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLACES = {
    "pyproject.toml": r'^version = "(.*)"$',
    "jax_maddness/__init__.py": r'^__version__ = "(.*)"$',
    "CITATION.cff": r"^version: (.*)$",
    "MODULE.bazel": r'^    version = "(.*)",$',
    "CHANGELOG.md": r"^## (.*) \(\d{4}-\d\d-\d\d\)$",
}
"""A file, and the line of it that names the version: the first that matches."""


def main() -> None:
    """Prints the version; ends with what is wrong, if something is."""
    found = {place: version_in(place) for place in PLACES}
    problems = []
    if len(set(found.values())) != 1:
        problems.append(f"the versions differ: {found}")
    if re.search(r"^## Unreleased$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE):
        problems.append("CHANGELOG.md has a section Unreleased: give it the version and the date")
    if git("status", "--porcelain"):
        problems.append("some changes are not committed")
    version = found["pyproject.toml"]
    if f"v{version}" not in git("tag", "--points-at", "HEAD").split():
        problems.append(f"this commit has no tag v{version}")
    if problems:
        sys.exit("Not to be released: " + "; ".join(problems) + ".")
    print(f"Version {version}: the files, the changelog and the tag agree.")


def version_in(place: str) -> str | None:
    """Returns the version that the file names; None if no line does."""
    match = re.search(PLACES[place], (ROOT / place).read_text(), re.MULTILINE)
    return match[1] if match else None


def git(*arguments: str) -> str:
    """Returns what git prints."""
    return subprocess.check_output(["git", "-C", ROOT, *arguments], text=True)


if __name__ == "__main__":
    main()
