"""`CostModel`: measured, kept in a file, and measured anew where the file is of no use."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jax_maddness import CostModel, FitConfig, measure_costs, testing
from jax_maddness.__main__ import main
from jax_maddness.core import ffi
from jax_maddness.learn import costs

KNOWN = CostModel(
    "known", row=3e-8, feature=6e-11, output=2e-10, tree=4e-10, projection=1e-12, look_up=1e-11, rounding=1e-10,
    factor=9e-12, int8=1e-11, exact=2e-11,
)  # fmt: skip


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The file that is used in place of the user's own."""
    monkeypatch.setenv("JAX_MADDNESS_COSTS", str(tmp_path / "folder" / "costs.json"))
    return tmp_path / "folder" / "costs.json"


@pytest.fixture
def timed(monkeypatch):
    """Times that are those of `KNOWN`, and the number of calls."""
    calls = []

    def seconds_of(op, x):
        calls.append(op)
        config = FitConfig("int8") if op.term is not None and op.term.name.startswith("int8") else FitConfig("paper")
        if op.num_codebooks and type(op.trees).__name__ == "ObliqueTrees":
            config = FitConfig("oblique")
        if op.term is not None and config.method != "int8":
            config = dataclasses.replace(config, rank=op.term.rank)
        return KNOWN.seconds(len(x), op.num_features, op.num_outputs, op.num_codebooks, config)

    monkeypatch.setattr(costs, "seconds_of", seconds_of)
    monkeypatch.setattr(costs, "least_seconds", lambda call, x, w: KNOWN.exact_seconds(len(x), *w.shape))
    return calls


def test_the_parts_are_found_from_the_sums(timed):
    found = measure_costs(progress=False)
    for name in costs.PARTS:
        assert getattr(found, name) == pytest.approx(getattr(KNOWN, name), rel=1e-3), name


def test_the_seconds_are_the_sum_of_the_parts():
    expected = 5 * (3e-8 + 64 * 6e-11 + 32 * 2e-10 + 8 * 4e-10 + 4 * 8 * 8 * 1e-12 + 8 * 32 * 1e-11 + 64 * 1e-10)
    assert KNOWN.seconds(5, 64, 32, 8, FitConfig("oblique")) == pytest.approx(expected)
    expected = 5 * (3e-8 + 64 * 6e-11 + 32 * 2e-10 + 64 * 1e-10 + 8 * (64 + 32) * 9e-12)
    assert KNOWN.seconds(5, 64, 32, 0, FitConfig(rank=8)) == pytest.approx(expected)
    assert KNOWN.exact_seconds(5, 64, 32) == pytest.approx(5 * (3e-8 + 64 * 6e-11 + 32 * 2e-10 + 64 * 32 * 2e-11))


def test_a_machine_is_measured_once(file, timed):
    first = costs.costs()
    count = len(timed)
    assert file.is_file()
    assert first.machine == costs.this_machine()
    assert costs.costs() == first
    assert len(timed) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 10_000,
        '{"format": 0}',
        '{"format": 1, "machine": "mine"}',
        lambda model: json.dumps({"format": 1, **dataclasses.asdict(model), "machine": "another"}),
        lambda model: json.dumps({"format": 1, **dataclasses.asdict(model), "row": -1.0}),
        lambda model: json.dumps({"format": 1, **dataclasses.asdict(model), "row": float("nan")}),
        lambda model: json.dumps({"format": 1, **dataclasses.asdict(model), "row": "1"}),
        lambda model: json.dumps({"format": 1, **dataclasses.asdict(model), "unknown": 1}),
        lambda model: json.dumps({"format": 1, **dataclasses.asdict(model), "row": 10**400}),
    ],
)
def test_a_file_of_no_use_is_replaced(text, file, timed):
    file.parent.mkdir()
    model = dataclasses.replace(KNOWN, machine=costs.this_machine())
    file.write_text(text if isinstance(text, str) else text(model))
    found = costs.costs()
    assert len(timed) > 0
    assert costs.read(file) == found


def test_a_file_that_cannot_be_written_is_done_without(file, timed):
    file.parent.write_text("a file where a folder should be")
    assert costs.costs().machine == costs.this_machine()


def test_a_user_without_a_home_is_measured_every_time(monkeypatch, timed):
    for name in ("JAX_MADDNESS_COSTS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(costs.pathlib.Path, "home", no_home)
    assert costs.file() is None
    assert costs.costs().machine == costs.this_machine()
    with pytest.raises(OSError, match="JAX_MADDNESS_COSTS"):
        costs.keep(KNOWN)
    assert main(["tune"]) == 1


def test_the_backend_is_a_part_of_the_machine():
    with testing.force_backend("jax"):
        assert "pure JAX" in costs.this_machine()
    assert ("pure JAX" in costs.this_machine()) == (not ffi.enabled())


def test_it_is_measured_whatever_the_callers_settings_are(monkeypatch):
    dtypes = []

    def least_seconds(call, *args):
        dtypes.extend(leaf.dtype for leaf in jax.tree.leaves(args))
        return 1e-3

    monkeypatch.setattr(costs, "least_seconds", least_seconds)
    monkeypatch.setattr(costs, "seconds_of", lambda op, x: 1e-3)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        measure_costs()
    assert set(dtypes) == {np.dtype(np.float32)}


def test_tune_measures_and_keeps(file, timed, capsys):
    assert main(["tune"]) == 0
    assert str(file) in capsys.readouterr().out
    assert costs.read(file) is not None


def test_parts_are_numbers_of_seconds():
    for wrong in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="`row` is"):
            dataclasses.replace(KNOWN, row=wrong)
    with pytest.raises(TypeError, match="`machine` is 3"):
        dataclasses.replace(KNOWN, machine=3)
