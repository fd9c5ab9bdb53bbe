"""Builds the source distribution and the wheels of a release, for Linux, and compares a second build with the first.

    python tools/release/wheels.py --output dist PYTHON...

PYTHONs are interpreters: of CPython 3.11, which has a wheel of its own, and of 3.12 or later, which builds the one that
all later versions install. Each builds for both architectures and the oldest glibc in `PLATFORM`, whatever machine this
is (linux.cmake). The second build starts from the source distribution, in another folder: so it shows that this has all
that a wheel needs, too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
RELEASE = ROOT / "tools" / "release"
ARCHITECTURES = ("x86_64", "aarch64")
PLATFORM = "manylinux_2_28"
BUILD = ("-m", "build", "--no-isolation", "--skip-dependency-check")
GLIBC = PLATFORM.removeprefix("manylinux_").replace("_", ".")


def main() -> None:
    """Fills `--output`, and fails where the second build differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("dist"))
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("build/release"))
    parser.add_argument("pythons", nargs="+")
    arguments = parser.parse_args()
    output, scratch = arguments.output.resolve(), arguments.scratch.resolve()
    for folder in (output, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    environments = [environment(python, scratch / f"env-{i}") for i, python in enumerate(arguments.pythons)]
    run([*pip(environments[0]), "--requirement", RELEASE / "audit.txt"])
    run([environments[0], *BUILD, "--sdist", "--outdir", output, ROOT], **clock())
    build(environments, ROOT, scratch / "first", output)
    (archive,) = output.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(scratch / "sources", filter="data")
    (again,) = (scratch / "sources").iterdir()
    build(environments, again, scratch / "second", scratch / "again")
    compare(output, scratch / "again")


def environment(python: str, folder: pathlib.Path) -> pathlib.Path:
    """Makes a virtual environment with what builds and the headers of the oldest jaxlib; returns its interpreter."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        requirements = tomllib.load(file)["build-system"]["requires"]
    (jaxlib,) = [requirement for requirement in requirements if requirement.startswith("jaxlib")]
    run([python, "-m", "venv", folder])
    own = folder / "bin" / "python"
    run([*pip(own), "--requirement", RELEASE / "build.txt"])
    run([*pip(own), "--no-deps", jaxlib])  # only its headers are used
    return own


def pip(python: pathlib.Path) -> list[str | pathlib.Path]:
    """Returns the command that installs what follows."""
    return [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def build(environments: list[pathlib.Path], source: pathlib.Path, scratch: pathlib.Path, output: pathlib.Path) -> None:
    """Builds one wheel for each interpreter and architecture, and gives it the tag of its platform."""
    output.mkdir(parents=True, exist_ok=True)
    for python in environments:
        for architecture in ARCHITECTURES:
            folder = scratch / f"{python.parts[-3]}-{architecture}"
            command = [*BUILD, "--wheel", f"-Cbuild-dir={folder}", "--outdir", folder / "dist", source]
            run([python, *command], **compiler(python, architecture), **clock())
            (wheel,) = (folder / "dist").glob("*.whl")
            # Not auditwheel, which does this for its own architecture only, and has no library to add here.
            tag = f"{PLATFORM}_{architecture}"  # audit.py compares it with the symbols
            run([python, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, wheel], **clock())
            (wheel,) = (folder / "dist").glob("*.whl")
            shutil.move(wheel, output)


def compiler(python: pathlib.Path, architecture: str) -> dict[str, str]:
    """Returns the environment variables with which scikit-build-core compiles for `architecture`."""
    code = "import sysconfig, pathlib, ziglang; print(sysconfig.get_config_var('SOABI').rsplit('-', 3)[0]); "
    code += "print(pathlib.Path(ziglang.__file__).parent / 'zig')"
    abi, zig = subprocess.check_output([python, "-c", code], text=True).split()
    return {
        "CMAKE_TOOLCHAIN_FILE": str(RELEASE / "linux.cmake"),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",  # cmake and ninja
        "SETUPTOOLS_EXT_SUFFIX": f".{abi}-{architecture}-linux-gnu.so",
        "ZIG": zig,
        "ZIG_TARGET": f"{architecture}-linux-gnu.{GLIBC}",
        "_PYTHON_HOST_PLATFORM": f"linux-{architecture}",
    }


def clock() -> dict[str, str]:
    """Returns the time that archives give for all of their files: that of the last commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    return {"SOURCE_DATE_EPOCH": given or subprocess.check_output(command, text=True).strip()}


def compare(first: pathlib.Path, second: pathlib.Path) -> None:
    """Fails if the wheels in the folders do not have the same names and bytes; prints their digests and sizes."""
    for wheel in sorted(first.glob("*.whl")):
        digests = [hashlib.sha256((folder / wheel.name).read_bytes()).hexdigest() for folder in (first, second)]
        print(f"{digests[0][:16]}  {wheel.stat().st_size / 1e6:.2f} MB  {wheel.name}")
        if digests[0] != digests[1]:
            sys.exit(f"{wheel.name}: built twice, the bytes differ; compare {first} with {second}.")


def run(command: list[str | pathlib.Path], **variables: str) -> None:
    """Runs `command` with `variables` in its environment, and shows it; ends this program if it fails."""
    print("+", *command, flush=True)
    if subprocess.run(command, env={**os.environ, **variables}, check=False).returncode != 0:
        sys.exit(f"Failed: {command[0]} {' '.join(map(str, command[1:]))}")


if __name__ == "__main__":
    main()
