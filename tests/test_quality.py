"""benchmarks/quality.py: its problems, its ratios, its files."""

import json

import numpy as np
import pytest

from benchmarks import quality
from benchmarks.packaged import Matrices, packaged


@pytest.fixture
def folder(rng, tmp_path):
    """A folder with one problem, and what a reference reaches on it."""
    x = rng.standard_normal((60, 9)).astype(np.float16)
    np.savez(tmp_path / "tiny.npz", x_train=x[:40], x_test=x[40:], w=rng.standard_normal((9, 5)).astype(np.float32))
    (tmp_path / "reference_nmse.json").write_text(json.dumps({"tiny": {"by_codebooks": {"2": {"nmse_floatlut": 0.5}}}}))
    return tmp_path


def test_a_run_writes_everything(folder, capsys):
    out = folder / "out"
    arguments = ["--problems", str(folder), "--methods", "paper", "--codebooks", "2,3,64", "--output", str(out)]
    quality.main(arguments)
    records = json.loads((out / "quality.json").read_text())
    assert [(r["problem"], r["method"], r["codebooks"]) for r in records] == [
        ("tiny", "paper", 2),
        ("tiny", "paper", 3),
    ]
    assert records[0]["ratio"] == pytest.approx(records[0]["nmse"] / 0.5)
    assert "ratio" not in records[1]
    assert "1 ratios: geometric mean" in (out / "quality.md").read_text()
    assert (out / "quality.png").stat().st_size > 1000
    assert "| tiny | 40 x 9 x 5 |" in capsys.readouterr().out


def test_without_a_reference_the_papers_method_is_one():
    records = [{"problem": "p", "codebooks": 4, "method": m, "nmse": e} for m, e in (("paper", 0.2), ("axis", 0.1))]
    assert [r["ratio"] for r in quality.with_ratios(records, None)] == [1, 0.5]


def test_packaged_problems_are_matrix_products_of_two_kinds_of_rows():
    problems = list(packaged())
    assert [p.name for p in problems] == ["digits hidden", "digits head", "photo cosines", "photo sobel"]
    for p in problems:
        assert p.x_train.shape[1] == p.x_test.shape[1] == p.w.shape[0]
        assert p.b.shape == p.w.shape[1:]
        assert all(a.dtype == np.float32 for a in (p.x_train, p.x_test, p.w, p.b))
        assert not (p.x_train[:, None, :8] == p.x_test[None, :50, :8]).all(-1).all()
    cosines = problems[2].w
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(192), atol=1e-5)


def test_a_problem_without_a_bias_has_none(folder):
    assert not Matrices.load(folder / "tiny.npz").b.any()
