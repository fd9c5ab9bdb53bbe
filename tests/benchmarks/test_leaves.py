"""benchmarks/leaves.py: its table, and that trees of another depth are learned."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import leaves


@pytest.fixture
def folder(rng, tmp_path):
    """A folder with one problem of 20 features and 5 outputs."""
    x = (rng.standard_normal((400, 3)) @ rng.standard_normal((3, 20)) + rng.standard_normal((400, 20))).astype(
        np.float16
    )
    np.savez(tmp_path / "tiny.npz", x_train=x[:300], x_test=x[300:], w=rng.standard_normal((20, 5)).astype(np.float32))
    return tmp_path


@pytest.mark.slow
def test_deeper_trees_are_learned_in_a_process_of_their_own(folder):
    command = [sys.executable, "-m", "benchmarks.leaves", "--problems", str(folder), "--methods", "paper"]
    out = subprocess.run([*command, "--levels", "5"], check=True, stdout=subprocess.PIPE, text=True).stdout
    (record,) = map(json.loads, out.splitlines())
    assert (record["leaves"], record["codebooks"]) == (32, 16)
    assert 0 < record["nmse"] < 0.5


def test_the_table_compares_with_16_codebooks_of_16():
    sizes = {(16, 16): 0.2, (16, 32): 0.1, (64, 16): 0.05}
    records = [
        {"problem": "p", "method": "paper", "leaves": k, "codebooks": c, "rows": 9, "nmse": error}
        for (k, c), error in sizes.items()
    ]
    lines = leaves.markdown(records).splitlines()
    assert lines[0].startswith("| method | problem | rows | 16 x 16 | 16 x 32 |")
    assert lines[2] == "| paper | p | 9 | 0.2000 | 0.1000 |  |  |  |  | 0.0500 |"
    assert lines[3] == "| paper | ratio to 16 x 16 | | 1.00 | 0.50 |  |  |  |  | 0.25 |"
