"""A replaced Flax model, exported in one process and served by another, which has no Flax and no code of the model."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SERVE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(["flax", "examples", "jax_maddness.nn"]))  # importing them is an error
sys.argv[0] = {str(ROOT / "examples" / "serving" / "serve.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command):
    """Runs Python in a fresh process, in the root of the repository."""
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    done = run("-m", "examples.serving.export", folder, "--steps=20")
    assert done.returncode == 0, done.stderr
    assert "classifier.jax" in done.stdout
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", ["module", "executable"])
def test_outputs_are_exactly_those_of_the_exporting_process(folder, way):
    done = run("-c", SERVE, folder, "--way", way)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{way}: imports")


@pytest.mark.slow
def test_the_second_start_finds_what_the_first_compiled(folder):
    first, second = (run("-c", SERVE, folder, "--way", "cache") for _ in range(2))
    assert first.stdout.startswith("cache (0 found, 1 compiled)"), first.stderr
    assert second.stdout.startswith("cache (1 found, 0 compiled)"), second.stderr


@pytest.mark.slow
def test_other_outputs_are_an_error(folder, tmp_path):
    for path in folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    outputs = np.load(folder / "outputs.npy")
    outputs[-1, -1] = np.nextafter(outputs[-1, -1], np.inf)
    np.save(tmp_path / "outputs.npy", outputs)
    done = run("-c", SERVE, tmp_path)
    assert done.returncode == 1
    assert "not those of the process" in done.stderr
