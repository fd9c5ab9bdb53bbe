"""What README and the tutorials show, runs."""

import pathlib
import re

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def blocks(path):
    """The Python that a page shows, in order; later blocks go on from earlier ones."""
    found = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    return [compile(block, f"{path.name}, block {i}", "exec") for i, block in enumerate(found)]


@pytest.mark.large
@pytest.mark.slow
def test_readme_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, *others = blocks(ROOT / "README.md")
    names = {}
    exec(first, names)  # noqa: S102 -- our own README
    assert names["y"].shape == (100, 128)
    printed = capsys.readouterr().out
    assert float(printed.split(")")[-1]) < 0.05  # the error that README's reader sees
    for block in others:
        exec(block, names)  # noqa: S102
    assert "NMSE 0.0" in capsys.readouterr().out


@pytest.mark.large
@pytest.mark.slow
@pytest.mark.parametrize("page", ["tutorial_nnx.md", "tutorial_linen.md"])
def test_tutorials_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(ROOT / "docs" / page):
        exec(block, names)  # noqa: S102
    printed = capsys.readouterr().out
    assert "| layer | D -> M (rows) | share |" in printed
    assert "held-out loss" in printed
    compiled, x_test = names["compiled"], names["x_test"]
    np.testing.assert_array_equal(compiled(names["loaded"], x_test)(), compiled(names["tuned"], x_test)())
    scores = names["scores"]
    assert scores["exact"] > 0.9
    assert scores["tuned, loaded"] > scores["exact"] - 0.05
