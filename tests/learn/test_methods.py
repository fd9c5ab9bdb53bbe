"""All methods through `fit`: what they have in common, and that "auto" takes the better one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_maddness
from jax_maddness import FitConfig, ObliqueTrees, SplitTrees
from jax_maddness.learn.config import HELD_OUT_SHARE
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.methods import auto as methods
from jax_maddness.learn.methods import axis, oblique, paper
from jax_maddness.learn.methods.learned import Learned
from jax_maddness.learn.progress import Progress

ROWS, FEATURES, OUTPUTS, CODEBOOKS = 600, 12, 5, 3  # padded to the same as in test_learn_oblique: compiled once


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


@pytest.mark.slow
def test_every_method_learns_what_it_says(ops, problem):
    kinds = {name: type(op.trees) for name, op in ops.items() if name != "auto"}
    assert kinds == {"paper": SplitTrees, "axis": SplitTrees, "oblique": ObliqueTrees}
    errors = {name: error(op, *problem[1:]) for name, op in ops.items()}
    assert errors["oblique"] < errors["axis"] < errors["paper"] < 0.5
    assert errors["auto"] == min(errors.values())


def test_auto_compares_on_the_same_rows_held_out(problem, monkeypatch):
    x, _, w = problem
    rows, config = Rows.of(x), FitConfig("auto")
    held_out = axis.Trial.of(rows, w, HELD_OUT_SHARE).held_out[: round(HELD_OUT_SHARE * ROWS), :FEATURES]
    seen = {}

    def prepare(x, *args, principal):
        seen["x"] = x
        raise StopIteration

    monkeypatch.setattr(oblique, "prepare", prepare)
    with pytest.raises(StopIteration), Progress(False) as bar:
        oblique.learn(rows, w, CODEBOOKS, config, bar)
    np.testing.assert_array_equal(seen["x"][: round(HELD_OUT_SHARE * ROWS)], held_out)


def learned_blindly(rows, *args):
    """One leaf per codebook."""
    trees = paper.learn(rows, *args).trees
    trees = dataclasses.replace(trees, thresholds=np.full_like(trees.thresholds, np.finfo(np.float32).max))
    return Learned(trees, None, 1.0)


@pytest.mark.slow
def test_few_rows_are_cross_validated(problem, monkeypatch):
    x, _, w = problem
    rows, config, kept = Rows.of(x[:90]), FitConfig("auto"), []

    def learned(part, *args):
        kept.append(part.sample)
        return paper.learn(part, *args)

    monkeypatch.setattr(methods, "CROSS_VALIDATED", {"one": learned_blindly, "two": learned, "three": paper.learn})
    with Progress(False) as bar:
        assert methods.cross_validated(rows, w, CODEBOOKS, config, bar) == "two"  # the third is as good, and no cheaper
    left_out = [[n for n in range(90) if not (x[n] == part).all(1).any()] for part in kept]
    assert sorted(np.concatenate(left_out)) == list(range(90))
    assert len(left_out) == methods.FOLDS


def test_errors_of_rows_that_were_not_learned_from(problem):
    x, others, w = problem
    rows, config = Rows.of(100 * x), FitConfig("paper")
    with Progress(False) as bar:
        learned = paper.learn(rows, w, CODEBOOKS, config, bar)
    op = jax_maddness.fit(100 * x, w, num_codebooks=CODEBOOKS, config=config)
    expected = np.square(np.asarray(jax_maddness.amm(100 * others, op)) - 100 * others @ w).sum(1)
    np.testing.assert_allclose(
        methods.errors_of(learned, rows, w, 100 * others, 0), expected, rtol=0.2, atol=0.02 * expected.max()
    )


@pytest.mark.slow
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
