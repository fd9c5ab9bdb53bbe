"""Loads the extension of an aarch64 wheel in an emulated Python, which shows that all of its symbols are found.

    python tools/release/emulate.py dist qemu-aarch64 -L ROOT ROOT/usr/bin/python3.11

The command that follows the folder is a CPython 3.11 for aarch64; docs/releasing.md says how to get one.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import zipfile

LOAD = """
import _ffi
print("aarch64:", len(_ffi.registrations()), "handlers, tiers", *_ffi.supported_tiers())
try:
    _ffi.set_tier("avx3")
    raise SystemExit("set_tier accepts a tier that does not exist")
except ValueError:
    pass
"""


def main() -> None:
    """Runs the command on the extension of the wheel for CPython 3.11."""
    folder, *python = sys.argv[1:]
    (wheel,) = pathlib.Path(folder).glob("*-cp311-*_aarch64.whl")
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".so")]
        (pathlib.Path(place) / pathlib.Path(name).name).write_bytes(archive.read(name))
        subprocess.run([*python, "-c", LOAD], cwd=place, check=True)


if __name__ == "__main__":
    main()
