"""What README shows, runs."""

import pathlib
import re

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_readme_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, *others = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(first, str(README), "exec"), names)  # noqa: S102 -- our own README
    assert names["y"].shape == (100, 256)
    printed = capsys.readouterr().out
    assert float(printed.split(")")[-1]) < 0.05  # the error that README's reader sees
    for block in others:  # they go on from the first
        exec(compile(block, str(README), "exec"), names)  # noqa: S102
    assert "NMSE 0.0" in capsys.readouterr().out
