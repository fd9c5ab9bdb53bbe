"""All methods through `fit`: what they have in common, and that "auto" takes the better one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_maddness
from jax_maddness import FitConfig, ObliqueTrees, SplitTrees
from jax_maddness.learn import axis, methods
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.rows import Rows

ROWS, FEATURES, OUTPUTS, CODEBOOKS = 700, 12, 5, 3


@pytest.fixture(scope="module")
def problem():
    """Rows of four hidden factors, and weights."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.standard_normal((2 * ROWS, 4)) @ rng.standard_normal((4, FEATURES)))
    return x[:ROWS], x[ROWS:], np.float32(rng.standard_normal((FEATURES, OUTPUTS)))


@pytest.fixture(scope="module")
def ops(problem):
    """An op of every method."""
    x, _, w = problem
    bias = np.arange(OUTPUTS)
    return {m: jax_maddness.fit(x, w, bias, num_codebooks=CODEBOOKS, config=FitConfig(m)) for m in methods.METHODS}


def error(op, x, w):
    """NMSE on new rows."""
    exact = x @ w + np.arange(OUTPUTS)
    return float(((jax_maddness.amm(jnp.asarray(x), op) - exact) ** 2).mean() / exact.var(0).mean())


def test_every_method_learns_what_it_says(ops, problem):
    kinds = {name: type(op.trees) for name, op in ops.items() if name != "auto"}
    assert kinds == {"paper": SplitTrees, "axis": SplitTrees, "oblique": ObliqueTrees}
    errors = {name: error(op, *problem[1:]) for name, op in ops.items()}
    assert errors["oblique"] < errors["axis"] < errors["paper"] < 0.5
    assert errors["auto"] == min(errors.values())


def test_auto_compares_on_the_same_rows_held_out(problem, monkeypatch):
    x, _, w = problem
    rows, config = Rows.of(x), FitConfig("auto")
    held_out = axis.Trial.of(rows, w, axis.ASIDE).aside[: round(axis.ASIDE * ROWS), :FEATURES]
    seen = {}

    def prepare(x, *args, principal):
        seen["x"] = x
        raise StopIteration

    monkeypatch.setattr(methods.oblique, "prepare", prepare)
    with pytest.raises(StopIteration), Progress(False) as bar:
        methods.learn_oblique(rows, w, CODEBOOKS, config, bar)
    np.testing.assert_array_equal(seen["x"][: round(methods.oblique.HELD_OUT * ROWS)], held_out)


def test_whatever_the_modes(problem, ops):
    x, _, w = problem
    modes = jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")
    with modes[0], modes[1], modes[2], jax.debug_nans(True):
        op = jax_maddness.fit(x, w, np.arange(OUTPUTS), num_codebooks=CODEBOOKS)
    assert all(a.dtype.itemsize <= 4 for a in jax.tree.leaves(op))
    assert error(op, *problem[1:]) == pytest.approx(error(ops["auto"], *problem[1:]), rel=0.1)


def test_rows_may_come_in_batches(problem, ops):
    x, _, w = problem
    op = jax_maddness.fit(
        lambda: iter(np.array_split(x, 3)), w, np.arange(OUTPUTS), num_codebooks=CODEBOOKS, config=FitConfig("oblique")
    )
    assert error(op, *problem[1:]) == pytest.approx(error(ops["oblique"], *problem[1:]), rel=0.3)


@pytest.mark.parametrize("width", [3, 13, 2.5])
def test_a_width_that_does_not_fit_is_an_error(problem, width):
    x, _, w = problem
    with pytest.raises(ValueError, match="`width` is"):
        jax_maddness.fit(x, w, num_codebooks=CODEBOOKS, config=FitConfig("oblique", width=width))
