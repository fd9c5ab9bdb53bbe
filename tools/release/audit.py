"""Audits the files of a release with the tools of the index, of manylinux, of the stable ABI and of CycloneDX.

build/release/env-0/bin/python tools/release/audit.py dist
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def main() -> None:
    """Fails at the first finding."""
    folder = pathlib.Path(sys.argv[1])
    wheels = sorted(folder.glob("*.whl"))
    run("twine", "check", "--strict", *folder.iterdir())
    run("check_wheel_contents", *wheels)
    for wheel in wheels:
        audit_platform(wheel)
        if "abi3" in wheel.name:
            run("abi3audit", "--strict", "--summary", wheel)
        with zipfile.ZipFile(wheel) as archive:
            audit_contents(wheel, archive)


def audit_platform(wheel: pathlib.Path) -> None:
    """Fails if the wheel needs a newer glibc than its name says, or libraries that the platform lacks."""
    text = subprocess.check_output([sys.executable, "-m", "auditwheel", "show", wheel], text=True)
    found, named = re.search(r'tag: "manylinux_2_(\d+)', " ".join(text.split())), re.search(r"_2_(\d+)_", wheel.name)
    if found is None or named is None or int(found[1]) > int(named[1]):
        sys.exit(f"{wheel.name}: {text}")
    print(f"{wheel.name}: glibc 2.{found[1]} is enough")


def audit_contents(wheel: pathlib.Path, archive: zipfile.ZipFile) -> None:
    """Fails if the SBOM is missing or not valid, or if the extension needs or exports unknown symbols."""
    (sbom,) = [name for name in archive.namelist() if name.endswith(".dist-info/sboms/jax_maddness.cdx.json")]
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(archive.read(sbom).decode()):
        sys.exit(f"{wheel.name}: the SBOM is not valid: {error}")
    (extension,) = [name for name in archive.namelist() if name.endswith(".so")]
    with tempfile.NamedTemporaryFile() as file:
        file.write(archive.read(extension))
        file.flush()
        symbols = subprocess.check_output(["nm", "--dynamic", file.name], text=True)
    # Symbols of glibc have a version, which auditwheel judges. One without a version may be newer than the platform,
    # unless it is weak: then it may be missing.
    unknown = re.findall(r" U (?!_?Py)([^@\s]+)$", symbols, re.MULTILINE)
    exported = re.findall(r" [A-TV-Z] (\S+)$", symbols, re.MULTILINE)
    if unknown or exported != ["PyInit__ffi"]:
        sys.exit(f"{wheel.name}: needs {unknown}; exports {exported}, not only PyInit__ffi")


def run(tool: str, *arguments: str | pathlib.Path) -> None:
    """Runs a tool of this interpreter's environment; ends this program if it fails."""
    print("+", tool, *arguments, flush=True)
    if subprocess.run([sys.executable, "-m", tool, *arguments], check=False).returncode != 0:
        sys.exit(f"{tool} found something.")


if __name__ == "__main__":
    main()
