"""The benchmark of indexes that grow, on few vectors."""

import json

import pytest

from benchmarks import growth, measured


@pytest.mark.slow
def test_a_run_is_saved_and_shown(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    monkeypatch.setattr(growth, "CODEBOOKS", 4)
    growth.main(["--vectors", "500", "--rounds", "2", "--save"])
    records = json.loads((tmp_path / "growth.json").read_text())["records"]
    assert growth.table(records) in capsys.readouterr().out
    assert {r["change"] for r in records} == {"add 1", "add 100", "remove 1"}
    assert len(records) == 9
    assert all(r["ms"] > 0 and r["search_ms"] > 0 for r in records)
