"""benchmarks/layers/measure.py and int8_libraries.py: every product is measured, and tables say what was reached."""

import json
import os
import re

import numpy as np
import pytest

from benchmarks import int8_libraries
from benchmarks.layers import measure, report


@pytest.fixture
def folder(rng, tmp_path):
    """A folder with two layers of one model, of 20 features and 40 outputs."""
    entries = []
    for name in "ab":
        x = rng.standard_normal((400, 3)) @ rng.standard_normal((3, 20)) + 0.3 * rng.standard_normal((400, 20))
        x = x.astype(np.float16)
        np.savez(tmp_path / f"{name}.npz", x_train=x[:300], x_test=x[300:], w=rng.standard_normal((20, 40)))
        entry = {"model": "m", "domain": "d", "layer": name, "D": 20, "M": 40, "rows": 64, "file": f"{name}.npz"}
        entries.append(entry)
    (tmp_path / "index.json").write_text(json.dumps(entries))
    return tmp_path


@pytest.mark.slow
def test_products_are_measured_once(folder, capsys):
    options = ["--layers", str(folder), "--seconds", "0.1", "--output", str(folder / "out")]
    options += ["--threads", str(os.cpu_count())]  # other tests of this process may have all of them
    measure.main([*options, "--only", "m a"])
    measure.main(options)
    assert "[1/1" in capsys.readouterr().err.split("m a")[-1]  # the second run measures only what is missing
    records = json.loads((folder / "out" / "layers.json").read_text())["records"]
    own = {r["name"]: r for r in records if r["layer"] == "m a"}
    assert {"XLA f32", "XLA int8", "XLA low rank 8", "C = 1", "C = 2", "rank 8", "C = 1, rank 8", "our int8"} <= set(
        own
    )
    assert own["XLA f32"]["time"] == 1
    assert own["XLA f32"]["nmse"] < 1e-6
    assert 0.9 < own["rank 8"]["nmse"] / own["XLA low rank 8"]["nmse"] < 1.1
    assert max(own[name]["nmse"] for name in ("our int8", "XLA int8")) < 1e-3
    assert (folder / "out" / "layers.png").stat().st_size > 10_000
    assert report.markdown(records) in (folder / "out" / "layers.md").read_text()


def test_the_summary_counts_layers():
    def record(layer, name, family, nmse, time, ours):
        shape = {"rows": 9, "features": 32, "outputs": 64, "ms": 1.0}
        return {
            "layer": layer,
            "model": "m",
            "name": name,
            "family": family,
            "nmse": nmse,
            "time": time,
            "ours": ours,
        } | shape

    records = [record(layer, "XLA f32", "XLA f32", 0.0, 1.0, False) for layer in "ab"]
    records += [
        record("a", "C = 2", "codes", 0.5, 0.1, True),
        record("a", "rank 8", "factors", 0.05, 0.1, True),
        record("a", "our int8", "our int8", 1e-4, 0.5, True),
        record("b", "C = 2", "codes", 0.4, 0.1, True),
        record("b", "rank 8", "factors", 0.05, 0.3, True),
    ]
    text = report.summary(records)
    assert text.startswith("2 layers of 1 models; median NMSE of ours in the time of codes with C = D/16: 0.225;")
    assert "NMSE <= 0.1 at 4x XLA's f32 or faster: 1 of 2 layers (0 by others)" in text
    assert "NMSE <= 0.001 at 2.5x XLA's f32 or faster: 0 of 2 layers with M >= 48" in text


def test_a_folder_without_layers_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="harvest"):
        measure.main(["--layers", str(tmp_path)])


@pytest.mark.slow
def test_int8_products_are_timed(capsys):
    int8_libraries.main(["--shapes", "64x32x16", "--seconds", "0.1"])
    printed = capsys.readouterr().out
    assert "| rows x D x M | ours | XLA f32 | XLA int8 |" in printed
    assert re.search(r"\| 64 x 32 x 16 \| [\d.]+ \| [\d.]+ \([\d.]+\) \|", printed)
