"""The benchmark of depthwise convolutions on tiny shapes: a row for each layer."""

from benchmarks import depthwise


def test_a_run_prints_a_row_for_each_layer(monkeypatch, capsys):
    monkeypatch.setattr(depthwise, "LAYERS", (((1, 6, 5, 3), (3, 3), 2), ((2, 9, 4), (5,), 1)))
    depthwise.main(["--seconds", "0"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 1 x 6") or "| 2 x 9" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| 1 x 6 x 5 x 3", "| 2 x 9 x 4"]
    assert all(row.endswith("x |") for row in rows)
