"""What README shows, runs."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
def test_readme_example_runs(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block, str(README), "exec"), names)  # noqa: S102 -- our own README
    assert names["y"].shape == (100, 256)
    printed = capsys.readouterr().out
    assert float(printed.split(")")[-1]) < 0.05  # the error that README's reader sees
