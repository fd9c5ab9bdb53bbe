"""The figures of the page on which a reader moves codebooks and rank, and those of restricted searches."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np

from benchmarks import explore, restrictions
from jax_maddness import build_index

STORED = pathlib.Path(__file__).parents[2] / "docs" / "_static" / "explore.json"


def test_every_position_is_measured_or_impossible():
    stored = json.loads(STORED.read_text())
    assert [layer["name"] for layer in stored["layers"]]
    for layer in stored["layers"]:
        assert set(explore.LAYERS) >= {layer["name"]}
        for codebooks in stored["codebooks"]:
            for rank in stored["ranks"]:
                possible = codebooks + rank and rank <= min(layer["features"], layer["outputs"])
                assert (f"{codebooks}, {rank}" in layer["figures"]) == bool(possible)


def test_a_layer_is_measured(tmp_path, monkeypatch, rng):
    monkeypatch.setattr(explore, "CODEBOOKS", (0, 2))
    monkeypatch.setattr(explore, "RANKS", (0, 2))
    monkeypatch.setattr(explore.os, "sched_setaffinity", lambda *_: None)
    rows = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 16))
    np.savez(tmp_path / "tiny.npz", x_train=rows[:200], x_test=rows[200:], w=rng.standard_normal((16, 8)))
    output = tmp_path / "explore.json"
    explore.main(["--layers", str(tmp_path), "--only", "tiny", "--seconds", "0.1", "--output", str(output)])
    (layer,) = json.loads(output.read_text())["layers"]
    assert set(layer["figures"]) == {"XLA f32", "XLA int8", "0, 2", "2, 0", "2, 2", "int8"}
    assert layer["figures"]["2, 2"][0] < layer["figures"]["2, 0"][0] < 1


def test_restrictions_are_timed(monkeypatch, rng):
    for name, value in {"FEATURES": 16, "OUTPUTS": 200, "CANDIDATES": 8}.items():
        monkeypatch.setattr(restrictions, name, value)
    x, w = restrictions.rows_and_weights()
    functions = restrictions.contenders(jnp.asarray(w), build_index(w.T, 4), 1)
    times = restrictions.measure(functions, x, 1, 0.1)
    assert len(times) == len(functions)
    assert all(t > 0 for t in times)
