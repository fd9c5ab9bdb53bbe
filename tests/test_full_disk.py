"""Everything that writes a file: on a full disk, or without memory, the old file stays, and nothing else is left."""

import os
import subprocess
import sys

import pytest
from fuzz import files
from helpers.failing import ERRORS, check_failures

from jax_maddness import save, save_index
from jax_maddness.learn.budget import BudgetReport, Tried
from jax_maddness.nn import save_model

TRIED = Tried("codes", 2, 0, 0.1, 100, None)
WRITERS = {
    "save": ("op", lambda op: lambda path: save(path, op)),
    "save_index": ("index", lambda index: lambda path: save_index(path, index)),
    "save_model": ("model", lambda model: lambda path: save_model(path, model)),
    "Captured.save": ("captured", lambda captured: captured.save),
    "Plan.to_json": ("plan", lambda plan: plan.to_json),
    "Plan.html": ("plan", lambda plan: plan.html),
    "BudgetReport.picture": ("op", lambda op: BudgetReport(op, (TRIED,), TRIED).picture),
}
"""For each writer a reader of `fuzz.files`, and contents -> function that writes them to a path."""


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", WRITERS)
def test_a_failure_at_any_write_leaves_the_old_file(name, error, tmp_path, monkeypatch):
    kind, writer = WRITERS[name]
    path = tmp_path / "seed"
    path.write_bytes(files.seeds(kind)[0])
    write = writer(files.readers()[kind].read(path))
    assert check_failures(path, write, monkeypatch, error, "write") >= 1


CHECKPOINTS = """
import os, resource, signal, sys
import numpy as np
from jax_maddness.nn.tuning.checkpoints import Checkpoints

folder, old, new = sys.argv[1], np.random.default_rng(0).random(5000), np.zeros(5000)
new[::7] = old[::7]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then what exceeds the limit is an error
Checkpoints(folder, {"a": "b"}).save(1, [old])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (0, 100, 1000):
    checkpoints = Checkpoints(folder, {"a": "b"})
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        checkpoints.save(2, [new])
    except OSError as error:
        assert repr(folder) in str(error) and "could not be written" in str(error), error
    else:
        raise AssertionError(f"{limit} bytes were enough")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    # With space again, a thread of orbax may still finish the state that it was late with: whole, not in part.
    restored = Checkpoints(folder, {"a": "b"}).restored([old])[0]
    assert (restored == old).all() or (restored == new).all()
checkpoints.save(2, [new])
assert set(os.listdir(folder)) <= {"1", "2"}, os.listdir(folder)  # orbax removes what it could not finish
assert (Checkpoints(folder, {"a": "b"}).restored([old])[0] == new).all()
"""


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_it(tmp_path):
    """Files may not exceed a size: orbax writes them in C++, where nothing can be made to fail otherwise."""
    done = subprocess.run(
        [sys.executable, "-c", CHECKPOINTS, str(tmp_path / "run")],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
