"""`fit` end to end: what it promises about the op, what it accepts, and what it says about the rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jax_maddness
from jax_maddness import FitConfig, amm, encode
from jax_maddness.learn.data import rows as rows_file
from jax_maddness.learn.methods import paper
from jax_maddness.learn.tables import solve as solve_file

fit = functools.partial(jax_maddness.fit, config=FitConfig("paper"))  # the quickest; others: test_learn_methods.py
ROWS, FEATURES, OUTPUTS = 120, 9, 5  # one shape for most tests: compiling takes longer than learning


@pytest.fixture
def data(rng):
    """x, w, bias."""
    x = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
    w = rng.standard_normal((FEATURES, OUTPUTS)).astype(np.float32)
    return x, w, rng.standard_normal(OUTPUTS).astype(np.float32)


def nmse(op, x, y):
    """Squared error of `amm` relative to that of the mean."""
    return float(((np.asarray(amm(x, op)) - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())


def assert_same(op, other):
    jax.tree.map(np.testing.assert_array_equal, op, other)


@pytest.mark.parametrize("codebooks", [1, 4, 9])
def test_shapes_and_dtypes(data, codebooks):
    x, w, bias = data
    op = fit(x, w, bias, num_codebooks=codebooks)
    assert (op.num_features, op.num_outputs, op.num_codebooks) == (FEATURES, OUTPUTS, codebooks)
    expected = {
        "indices": (op.trees.indices, jnp.int32, (codebooks, 4)),
        "thresholds": (op.trees.thresholds, jnp.float32, (codebooks, 15)),
        "values": (op.tables.values, jnp.uint8, (OUTPUTS, codebooks, 16)),
        "scale": (op.tables.scale, jnp.float32, (OUTPUTS,)),
        "offset": (op.tables.offset, jnp.float32, (OUTPUTS,)),
    }
    for name, (array, dtype, shape) in expected.items():
        assert isinstance(array, jax.Array), name
        assert (array.dtype, array.shape) == (dtype, shape), name
    assert op.weights is None
    assert amm(x, op).shape == (ROWS, OUTPUTS)


@pytest.mark.slow
def test_digits_error_falls_with_more_codebooks():
    datasets = pytest.importorskip("sklearn.datasets")
    x = datasets.load_digits().data.astype(np.float32)
    w = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    train, test = x[:1200], x[1200:]
    errors = [nmse(fit(train, w, num_codebooks=c), test, test @ w) for c in (8, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 1
    assert errors[-1] < 0.02


def test_the_mean_costs_nothing(data):
    x, w, _ = data
    op, shifted = fit(x, w, num_codebooks=4), fit(x + 1000, w, num_codebooks=4)
    np.testing.assert_allclose(nmse(shifted, x + 1000, (x + 1000) @ w), nmse(op, x, x @ w), rtol=0.02)


def test_bias_is_folded_into_the_offset(data):
    x, w, bias = data
    op, with_bias = fit(x, w, num_codebooks=4), fit(x, w, bias, num_codebooks=4)
    np.testing.assert_array_equal(op.tables.values, with_bias.tables.values)
    np.testing.assert_allclose(with_bias.tables.offset, op.tables.offset + bias, rtol=0, atol=1e-6 * ROWS)


def test_two_fits_are_bit_identical(data):
    assert_same(fit(*data, num_codebooks=4), fit(*data, num_codebooks=4))


def test_scaling_by_powers_of_two_scales_the_op(data):
    x, w, _ = data
    op, scaled = fit(x, w, num_codebooks=4), fit(x * 2.0**90, w * 2.0**-70, num_codebooks=4)
    np.testing.assert_array_equal(scaled.trees.indices, op.trees.indices)
    np.testing.assert_array_equal(scaled.tables.values, op.tables.values)
    np.testing.assert_array_equal(scaled.tables.scale, op.tables.scale * 2.0**20)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, np.float64, np.int32])
def test_real_dtypes_are_learned_as_float32(data, dtype):
    x, w, bias = data
    rows = np.asarray(4 * x).astype(dtype)
    expected = fit(rows.astype(np.float32), w, bias, num_codebooks=4)
    assert_same(fit(rows, w, bias, num_codebooks=4), expected)
    if dtype != np.float64:
        assert_same(fit(jnp.asarray(rows), jnp.asarray(w), jnp.asarray(bias), num_codebooks=4), expected)


def test_leading_dimensions_are_rows(data):
    x, w, bias = data
    assert_same(fit(x.reshape(2, 6, 10, -1), w, bias, num_codebooks=4), fit(x, w, bias, num_codebooks=4))


def test_weights_are_kept_if_asked(data):
    x, w, bias = data
    op = fit(x, w, bias, num_codebooks=4, keep_weights=True)
    np.testing.assert_array_equal(op.weights, w)


def test_constant_and_duplicate_features_and_rows(data, rng):
    x, w, bias = data
    x = x[rng.integers(0, 10, ROWS)]  # ten different rows
    x[:, :3] = 7.0
    x[:, 4] = x[:, 3]
    op = fit(x, w, bias, num_codebooks=4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(op))
    assert nmse(op, x, x @ w + bias) < 0.01


def test_constant_rows_give_their_product(data):
    x, w, bias = data
    x = np.repeat(x[:1], ROWS, axis=0)
    op = fit(x, w, bias, num_codebooks=4)
    assert not np.asarray(op.tables.scale).any()
    np.testing.assert_allclose(amm(x, op), x @ w + bias, atol=1e-4)


def test_one_row_is_enough(data):
    x, w, bias = data
    op = fit(x[:1], w, bias, num_codebooks=4)
    np.testing.assert_allclose(amm(x[:1], op), x[:1] @ w + bias, atol=1e-4)


def test_chunks_and_blocks_change_nothing(data, monkeypatch):
    x, w, bias = data
    x = np.round(8 * x) / 8  # sums are exact in any order
    op = fit(x, w, bias, num_codebooks=4)
    monkeypatch.setattr(paper, "CHUNK", 3 * 128 * (2 * 4 + 32))  # three codebooks, then one
    monkeypatch.setattr(rows_file, "BLOCK", 64)  # 64, then 56
    other = fit(x, w, bias, num_codebooks=4)
    assert_same(other.trees, op.trees)
    assert np.abs(np.asarray(other.tables.values, int) - np.asarray(op.tables.values, int)).max() <= 1
    np.testing.assert_allclose(other.tables.scale, op.tables.scale, rtol=1e-5)


def test_ridge_grows_where_float32_cannot_solve(data, monkeypatch):
    def fails_below_5(statistics, own, w, rows, ridge):
        found = solve(statistics, own, w, rows, ridge)
        return found._replace(weights=found.weights if ridge >= 5 else found.weights * np.nan)

    expected = fit(*data, num_codebooks=4, config=FitConfig("paper", ridge=10))
    solve = solve_file.fit_prototypes
    monkeypatch.setattr(solve_file, "fit_prototypes", fails_below_5)
    assert_same(fit(*data, num_codebooks=4, config=FitConfig("paper", ridge=1)), expected)


elements = st.floats(
    width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True, max_value=2.0**120, min_value=-(2.0**120)
)


@settings(deadline=None, max_examples=40)
@given(
    x=hnp.arrays(np.float32, (24, 4), elements=elements),
    w=hnp.arrays(np.float32, (4, 3), elements=st.floats(-4, 4, width=32)),
)
def test_any_finite_data_gives_a_finite_op(x, w):
    op = fit(x, w, num_codebooks=2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(op))
    assert np.isfinite(amm(x, op)).all()
    assert (np.asarray(encode(x, op.trees)) < 16).all()


def test_progress_is_silent_unless_long_or_asked_for(data, capsys):
    fit(*data, num_codebooks=4, progress=False)  # compiles
    fit(*data, num_codebooks=4)
    assert not capsys.readouterr().err
    fit(*data, num_codebooks=4, progress=True)
    assert "fit: tables: 100%" in capsys.readouterr().err


BAD = {
    "nan": ({"x_train": np.full((4, 9), np.nan)}, ValueError, r"`x_train` has 36 NaN .* first at \(0, 0\)"),
    "too large for f32": ({"x_train": np.full((4, 9), 1e300)}, ValueError, r"as float32"),
    "inf in w": ({"w": np.full((9, 5), np.inf)}, ValueError, r"`w` has 45 NaN or infinite"),
    "nan in bias": ({"bias": np.full(5, np.nan)}, ValueError, r"`bias` has 5 NaN"),
    "overflow": (
        {"x_train": np.full((4, 9), 1e38), "w": np.full((9, 5), 1e10)},
        ValueError,
        r"more than float32 holds. Scale",
    ),
    "features": ({"w": np.ones((8, 5))}, ValueError, r"9 features, but `w` has 8 rows. Pass `w` as"),
    "w rank": ({"w": np.ones(9)}, ValueError, r"`w` has shape \(9,\); expected \[features, outputs\]"),
    "no outputs": ({"w": np.ones((9, 0))}, ValueError, r"neither of them 0"),
    "x rank": ({"x_train": np.ones(9)}, ValueError, r"`x_train` has shape \(9,\); expected .* Pass many rows"),
    "no rows": ({"x_train": np.ones((0, 9))}, ValueError, r"so no rows. Pass at least one"),
    "bias shape": ({"bias": np.ones(4)}, ValueError, r"`bias` has shape \(4,\); expected \(5,\)"),
    "no codebooks": ({"num_codebooks": 0}, ValueError, r"`num_codebooks` is 0; expected at least 1"),
    "too many": ({"num_codebooks": 10}, ValueError, r"is 10, but `x_train` has 9 features.* at most 9"),
    "not an int": ({"num_codebooks": 2.0}, TypeError, r"`num_codebooks` is 2.0; expected an integer"),
    "complex": ({"x_train": np.ones((4, 9), complex)}, TypeError, r"is complex128; expected real numbers. Learn"),
    "text": ({"w": np.full((9, 5), "a")}, TypeError, r"`w` is <U1; expected real numbers. Cast"),
    "config": ({"config": "paper"}, TypeError, r"`config` is str; expected a FitConfig"),
}


@pytest.mark.parametrize("shape", [(600, 20), (5000, 64)])
@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_one_nan_among_many_numbers_is_found(shape, position):
    """XLA's maximum on CPU drops NaN from arrays of this size."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x.reshape(-1)[int(position * (x.size - 1))] = np.nan
    w = np.ones((shape[1], 3))
    with pytest.raises(ValueError, match=r"`x_train` has 1 NaN"):
        fit(x, w, num_codebooks=2)
    with pytest.raises(ValueError, match=r"`w` has 1 NaN"):
        fit(np.ones((5, shape[0])), x, num_codebooks=2)


@pytest.mark.parametrize("name", BAD)
def test_errors_say_what_to_do(data, name):
    change, error, message = BAD[name]
    x, w, bias = data
    with pytest.raises(error, match=message):
        fit(**{"x_train": x, "w": w, "bias": bias, "num_codebooks": 4, **change})


def test_config_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"`method` is 'papr'; expected one of: 'paper', 'axis'"):
        FitConfig(method="papr")
    with pytest.raises(ValueError, match="`ridge` is 0; expected a positive number"):
        FitConfig(ridge=0)
    with pytest.raises(ValueError, match="`num_split_features` is 0; expected an integer >= 1"):
        FitConfig(num_split_features=0)
    with pytest.raises(ValueError, match=r"`num_split_features` is 2.0; expected an integer"):
        FitConfig(num_split_features=2.0)
    with pytest.raises(ValueError, match="`ridge` is 'auto'; expected a positive number, or None"):
        FitConfig(ridge="auto")


def test_fit_under_jit_is_a_clear_error(data):
    x, w, _ = data
    with pytest.raises(TypeError, match=r"`x_train` is traced: .* Call it before"):
        jax.jit(lambda x: fit(x, w, num_codebooks=4))(x)
    with pytest.raises(TypeError, match="`w` is traced"):
        jax.jit(lambda w: fit(x, w, num_codebooks=4))(w)
