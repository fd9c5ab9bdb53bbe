"""The benchmark of lists on few vectors."""

import json

import numpy as np
import pytest

from benchmarks import lists, measured


def test_descriptors_are_like_those_of_images():
    rows = lists.descriptors(500, 0)
    np.testing.assert_array_equal(rows, lists.descriptors(500, 0))
    np.testing.assert_array_equal(rows, np.round(np.clip(rows, 0, 255)))
    assert 480 < np.linalg.norm(rows, axis=1).mean() < 530
    assert not np.array_equal(rows, lists.descriptors(500, 1))


@pytest.mark.slow
def test_a_run_is_saved_and_shown(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    monkeypatch.setattr(lists, "PROBES", (4, 8))
    monkeypatch.setattr(lists, "CANDIDATES", (64,))
    lists.main(["--quick", "--vectors", "2000", "--lists", "8", "--codebooks", "8", "--seconds", "0", "--save"])
    contents = json.loads((tmp_path / "lists.json").read_text())
    assert lists.table(contents["records"]) in capsys.readouterr().out
    own = [r for r in contents["records"] if r["what"] == lists.LOOK_UPS]
    assert {r["batch"] for r in own} == {1, 64}
    assert all(r["recall"] > 0.9 for r in own if r["probe"] == 8)
