"""Rows on four devices, or in two processes: the same op as from rows in memory, and they stay where they are."""

import re

import jax
import numpy as np
import pytest
from helpers import one_of_two
from helpers.ops import random_oblique_trees, random_op, random_trees
from helpers.processes import run_two
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_maddness import FitConfig, encode, evaluate, fit, load
from jax_maddness.learn import evaluate as evaluate_file
from jax_maddness.learn.data import rows as rows_file
from jax_maddness.learn.data import sharded
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.data.rows import Rows


def on_mesh(x, spec, axis_type=AxisType.Auto):
    return jax.device_put(x, NamedSharding(jax.make_mesh((2, 2), ("r", "m"), axis_types=(axis_type,) * 2), spec))


def assert_same(op, other, x, least=1.0):
    """The trees give a share `least` of the rows the same codes; tables differ by a step at most."""
    assert (encode(x, op.trees) == encode(x, other.trees)).mean() >= least
    assert np.abs(np.asarray(op.tables.values, int) - np.asarray(other.tables.values, int)).max() <= 1
    np.testing.assert_allclose(op.tables.scale, other.tables.scale, rtol=1e-4)
    np.testing.assert_allclose(op.tables.offset, other.tables.offset, rtol=1e-4, atol=1e-4)


@pytest.fixture
def x(rng):
    return np.round(8 * rng.standard_normal((60, 9))).astype(np.float32) / 8  # as in test_learn_rows: compiled once


@pytest.fixture
def w(rng):
    return rng.standard_normal((9, 5)).astype(np.float32)


@pytest.mark.parametrize("method", ["paper", "axis"])
def test_sharded_rows_give_the_same_op(x, w, method):
    config = FitConfig(method)
    expected = fit(x, w, num_codebooks=3, config=config)
    assert_same(fit(on_mesh(x, P("r")), w, num_codebooks=3, config=config), expected, x)


@pytest.mark.parametrize(
    ("shape", "spec", "axis_type", "dtype"),
    [
        ((60, 9), P("r"), AxisType.Auto, "float32"),
        ((60, 9), P(("m", "r"), None), AxisType.Explicit, "float16"),
        ((6, 10, 9), P("m", "r"), AxisType.Auto, "int32"),
        ((3, 20, 9), P(None, ("r", "m")), AxisType.Explicit, "float32"),
    ],
)
def test_what_learning_knows_of_sharded_rows(x, rng, shape, spec, axis_type, dtype):
    x = (8 * x).astype(dtype)
    expected = Rows.of(x)
    trees = random_trees(rng, 9, 3)
    y = on_mesh(x.reshape(shape), spec, axis_type)
    with modes():
        rows = Rows.of(y)
        assert_same_statistics(rows.statistics(trees, lambda: None), expected.statistics(trees, lambda: None))
    assert (rows.count, rows.exponent) == (expected.count, expected.exponent)
    np.testing.assert_array_equal(rows.sample, expected.sample)
    np.testing.assert_allclose(rows.mean, expected.mean, atol=1e-7 * np.abs(x).max())


def test_blocks_that_do_not_divide_the_rows(x, rng, monkeypatch):
    trees = random_oblique_trees(rng, 9, 3)
    expected = Rows.of(x).statistics(trees, lambda: None)
    for size in (1, 13, 29):  # of 30 rows
        monkeypatch.setattr(rows_file, "_block_rows", lambda count, features, size=size: size)
        assert_same_statistics(Rows.of(on_mesh(x, P("r"))).statistics(trees, lambda: None), expected)


def assert_same_statistics(found, expected):
    np.testing.assert_array_equal(found.gram, expected.gram)
    np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_whatever_mesh_and_modes_are_set(x, w, axis_type):
    config = FitConfig("paper")
    expected = fit(x, w, num_codebooks=3, config=config)
    y = on_mesh(x, P("r"), axis_type)
    with jax.set_mesh(y.sharding.mesh), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        op = fit(y, w, num_codebooks=3, config=config)
    assert_same(op, expected, x)
    assert op.tables.values.devices() == expected.tables.values.devices()
    with jax.enable_x64(True):
        assert_same(fit(on_mesh(x.astype(np.float64), P("r")), w, num_codebooks=3, config=config), expected, x)


def test_the_sample_is_of_distinct_rows_bit_by_bit(monkeypatch):
    monkeypatch.setattr(rows_file, "RESERVOIR", 100)
    monkeypatch.setattr(sharded, "_PIECE", 64)  # of 2 features: 32 rows a piece, the last one of 4
    x = np.arange(2000, dtype=np.float32).reshape(1000, 2)
    sample = Rows.of(on_mesh(x, P(("r", "m")))).sample
    assert sample.shape == (100, 2)
    assert len(np.unique(sample[:, 0])) == 100
    np.testing.assert_array_equal(sample, x[sample[:, 0].astype(int) // 2])
    assert 400 < sample[:, 0].mean() / 2 < 600  # that of 100 uniform numbers: 500 +- 29
    x = np.array([[-0.0, 1e-40], [np.finfo(np.float32).max, -1e-45], [1, 2], [3, 4]], np.float32)
    found = sharded.rows_at(on_mesh(x, P(("r", "m"))), np.array([3, 1, 0]))
    np.testing.assert_array_equal(found.view(np.int32), x[[3, 1, 0]].view(np.int32))


def test_a_mean_far_from_zero_is_that_of_float64(rng):
    x = (1000 + rng.standard_normal((40000, 3))).astype(np.float32)
    found = sharded.mean(on_mesh(x, P(("r", "m"))), 10)
    np.testing.assert_allclose(found, x.mean(0, dtype=np.float64), rtol=1e-9)


def test_only_sums_are_sent(rng):
    """No collective but all-reduce, and none of a size that grows with the rows."""
    rows = 4096
    x, trees = on_mesh(np.ones((rows, 8), np.float32), P(("r", "m"))), random_trees(rng, 8, 2)
    op = jax.tree.map(np.asarray, random_op(rng, 8, 2, 3))
    one, center, places = np.float32(1), np.zeros(8, np.float32), np.zeros((5, 1), np.int32)
    compiled = [
        sharded._largest.lower(x.sharding, x),
        sharded._not_finite.lower(x.sharding, x),
        sharded._sums.lower(x.sharding, x, one, center),
        sharded.statistics.lower(x.sharding, 64, x, trees, one, center),
        sharded._bits_at.lower(x.sharding, x, places),
        evaluate_file._sums.lower(
            x.sharding, x, op, np.ones((8, 3), np.float32), center, *np.ones((4, 3), np.float32), one
        ),
    ]
    for text in (lowered.compile().as_text() for lowered in compiled):
        assert "all-reduce" in text
        assert not re.search("all-gather|all-to-all|collective-permute|reduce-scatter|copy-start", text)
        for result in re.findall(r"= (.*) all-reduce(?:-start)?\(", text):
            for shape in re.findall(r"\[([0-9,]*)\]", result):
                assert np.prod([int(n) for n in shape.split(",") if n]) <= 32 * 32


def test_evaluate_of_sharded_rows_says_the_same(x, w):
    op = fit(x, w, num_codebooks=3, config=FitConfig("paper"))
    bias = np.arange(5.0)
    expected = evaluate(op, x, w, bias, x_train=x[:32])
    report = evaluate(op, on_mesh(x.reshape(6, 10, 9), P("r", "m")), w, bias, x_train=on_mesh(x[:32], P("m")))
    np.testing.assert_allclose(report.nmse_per_output, expected.nmse_per_output, rtol=1e-4)
    for name in ("nmse", "train_nmse", "quantization"):
        assert getattr(report, name) == pytest.approx(getattr(expected, name), rel=1e-4)
    np.testing.assert_allclose(report.occupancy, expected.occupancy)
    assert (report.rows, report.train_rows) == (60, 32)


def test_errors_say_what_to_do(x, w):
    for spec in (P(None, "r"), P("r", "m")):
        sharded_x = on_mesh(x[:, :8], spec)
        with pytest.raises(ValueError, match=r"`x_train` is sharded over features.* Shard its rows only: `jax.device"):
            fit(sharded_x, w[:8], num_codebooks=3)
    broken = x.copy()
    broken[[3, 50], [0, 7]] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"`x_train` has 2 NaN or infinite values"):
        fit(on_mesh(broken, P("r")), w, num_codebooks=3)
    with pytest.raises(ValueError, match=r"`x_train` has 9 features, but `w` has 7 rows"):
        fit(on_mesh(x, P("r")), w[:7], num_codebooks=3)
    with pytest.raises(ValueError, match=r"at least two dimensions"):
        fit(on_mesh(x[:, 0], P("r")), w, num_codebooks=3)
    op = fit(x, w, num_codebooks=3, config=FitConfig("paper"))
    with pytest.raises(TypeError, match=r"`x` is complex64; expected real numbers"):
        evaluate(op, on_mesh(x.astype(np.complex64), P("r")), w)


@pytest.mark.slow
def test_two_processes_that_have_half_of_the_rows_each(tmp_path, monkeypatch):
    run_two(one_of_two.__file__, tmp_path)
    x, w = one_of_two.problem()
    learned = fit(x, w, num_codebooks=one_of_two.CODEBOOKS, config=one_of_two.PAPER)
    assert_same(load(tmp_path / "all.0"), learned, x)
    assert float((tmp_path / "nmse.0").read_text()) == pytest.approx(evaluate(learned, x, w).nmse, rel=1e-3)
    monkeypatch.setattr(rows_file, "RESERVOIR", one_of_two.FEW)
    on_four = fit(on_mesh(x, P("r")), w, num_codebooks=one_of_two.CODEBOOKS, config=one_of_two.PAPER)
    assert_same(load(tmp_path / "few.0"), on_four, x)
    for name in ("all", "few", "nmse", "chosen"):
        assert (tmp_path / f"{name}.0").read_bytes() == (tmp_path / f"{name}.1").read_bytes()
