"""Method "axis" and its steps: what they promise, on tiny problems that share their compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import references
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jax_maddness import FitConfig, amm, encode, evaluate, fit
from jax_maddness.learn.config import HELD_OUT_SHARE
from jax_maddness.learn.data.compare import surely_less
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.methods import axis, groups, paper, regrow
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.tables.ridge import Statistics, explained

AXIS = FitConfig(method="axis")
ROWS, FEATURES, OUTPUTS = 60, 9, 5  # padded to 64 rows, as fewer are


@pytest.fixture
def data(rng):
    """x, w: nine features that four numbers make."""
    x = np.tanh(rng.standard_normal((ROWS, 4)) @ rng.standard_normal((4, FEATURES))).astype(np.float32)
    return x, rng.standard_normal((FEATURES, OUTPUTS)).astype(np.float32)


def leaves_are_finite(op):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(op))


@pytest.mark.slow
def test_it_learns_more_than_the_paper_from_an_output_that_few_features_make(rng):
    x = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
    w = np.zeros((FEATURES, OUTPUTS), np.float32)
    x[:, 4], w[4] = 0.1 * x[:, 4], 1  # the paper splits its group on the features that vary most
    paper_op, op = (fit(x, w, num_codebooks=3, config=c) for c in (FitConfig("paper"), AXIS))
    assert evaluate(op, x, w).nmse < 0.2 * evaluate(paper_op, x, w).nmse


def test_never_worse_than_the_papers_trees_on_the_rows_set_aside(data):
    x, w = data
    rows = Rows.of(x)
    trial = axis.Trial.of(rows, w, HELD_OUT_SHARE)
    learned = axis.learn(rows, w, 3, AXIS, Progress(False))
    dealt = groups.contiguous(FEATURES, 3)
    if learned.own is not None:  # the paper's trees, grown on all rows
        expected = paper.grow_on_groups(x, dealt, rows.factor, 4, Progress(False))
        jax.tree.map(np.testing.assert_array_equal, learned.trees, expected)
        return
    on_groups = paper.grow_on_groups(trial.train, dealt, rows.factor, 4, Progress(False))
    with_paper = trial.judge(on_groups, groups.owned(dealt, FEATURES))
    assert trial.judge(learned.trees, learned.own).verdict.error < with_paper.verdict.error


def test_luck_on_few_rows_is_not_taken_for_skill():
    other = np.ones(20)
    assert surely_less(np.full(20, 0.9), other)
    lucky = np.ones(20)
    lucky[0] = 0
    assert lucky.sum() < 20
    assert not surely_less(lucky + 0.01, other)
    infinite = np.full(20, np.inf)
    assert not surely_less(infinite, other)
    assert surely_less(other, infinite)


def test_two_fits_are_bit_identical(data):
    ops = [fit(*data, num_codebooks=3, config=AXIS) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *ops)


@pytest.mark.parametrize("change", ["constant feature", "duplicate features", "few rows", "one row", "constant rows"])
def test_awkward_rows_give_a_finite_op(data, change):
    x, w = data
    x = x.copy()
    if change == "constant feature":
        x[:, :3] = 7
    elif change == "duplicate features":
        x[:, 1:4] = x[:, :1]
    elif change in ("few rows", "one row"):
        x = x[: {"few rows": 9, "one row": 1}[change]]
    else:
        x[:] = x[0]
    op = fit(x, w, num_codebooks=3, config=AXIS)
    assert leaves_are_finite(op)
    exact = x @ w
    spread = ((exact - exact.mean(0)) ** 2).sum()
    assert ((np.asarray(amm(x, op)) - exact) ** 2).sum() <= spread + 1e-6 * (exact**2).sum()


@pytest.mark.slow
def test_one_output_and_a_codebook_per_feature(data):
    x, w = data
    for codebooks in (1, 4):
        op = fit(x[:, :4], w[:4, :1], num_codebooks=codebooks, config=AXIS)
        assert (op.num_outputs, op.num_codebooks) == (1, codebooks)
        assert evaluate(op, x[:, :4], w[:4, :1]).nmse < 1


@pytest.mark.parametrize("scale", [2.0**100, 2.0**-100])
def test_scaling_by_powers_of_two_scales_the_op(data, scale):
    x, w = data
    op, scaled = (fit(a, w, num_codebooks=3, config=AXIS) for a in (x, x * np.float32(scale)))
    np.testing.assert_array_equal(scaled.trees.indices, op.trees.indices)
    np.testing.assert_array_equal(scaled.tables.values, op.tables.values)
    np.testing.assert_array_equal(scaled.tables.scale, op.tables.scale * np.float32(scale))


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(
    x=hnp.arrays(np.float32, (24, 4), elements=st.floats(-(2.0**120), 2.0**120, width=32, allow_subnormal=True)),
    w=hnp.arrays(np.float32, (4, 3), elements=st.floats(-4, 4, width=32)),
)
def test_any_finite_data_gives_a_finite_op(x, w):
    op = fit(x, w, num_codebooks=2, config=AXIS)
    assert leaves_are_finite(op)
    assert np.isfinite(amm(x, op)).all()


def sample(x, y):
    return regrow.sample_of(x.astype(np.float32), (y - y.mean(0)).astype(np.float32), 64)


@pytest.mark.slow
def test_a_tree_of_one_feature_is_the_exhaustive_search(rng):
    x = rng.standard_normal((60, 1))
    y = np.stack([x[:, 0], np.sin(3 * x[:, 0])], axis=1) + 0.1 * rng.standard_normal((60, 2))
    own = sample(x, y)
    _, _, leaves = jax.jit(regrow.grow_tree)(own, own.y)
    leaves = np.asarray(leaves)
    assert (leaves[60:] == -1).all()
    _, expected = exhaustive(x, y)
    np.testing.assert_allclose(
        references.squared_error(y, leaves[:60]), references.squared_error(y, expected), rtol=1e-5
    )


def exhaustive(x, y):
    """The greedy tree on the one feature x that leaves least of y."""
    buckets = np.zeros(len(x), int)
    for _ in range(4):
        split = 2 * buckets
        for b in np.unique(buckets):
            rows = np.flatnonzero(buckets == b)
            sides = [x[rows, 0] > v for v in np.unique(x[rows, 0])[:-1]]
            if sides:
                split[rows] += sides[int(np.argmin([references.squared_error(y[rows], s) for s in sides]))]
        buckets = split
    return None, buckets


def test_the_forest_is_what_encode_and_its_tables_say(data):
    x, w = data
    own = sample(x, x @ w)
    forest = regrow.regrow(own, regrow.empty(own, 4), 3)
    forest = regrow.regrow(own, forest, 3)
    codes = np.asarray(encode(x, forest.trees(3, FEATURES)))
    one_hot = np.asarray(forest.one_hot).reshape(-1, 4, 16)
    np.testing.assert_array_equal(one_hot[:ROWS, :3], codes[:, :, None] == np.arange(16))
    assert not one_hot[ROWS:].any()
    assert not one_hot[:, 3].any()
    flat = one_hot.reshape(len(one_hot), -1)
    np.testing.assert_array_equal(forest.gram, flat.T @ flat)
    left = np.asarray(own.y) - flat @ np.asarray(forest.tables)
    left = (left - left[:ROWS].mean(0))[:ROWS]
    np.testing.assert_allclose(np.asarray(forest.residual)[:ROWS], left, atol=1e-4)


def test_each_pass_explains_most_of_the_target(data):
    x, w = data
    own = sample(x, x @ w)
    forest, errors = regrow.empty(own, 4), []
    for _ in range(3):
        forest = regrow.regrow(own, forest, 3)
        errors.append(float((forest.residual**2).sum()))
    assert max(errors) < 0.3 * float((own.y**2).sum())


def test_compression_keeps_the_energy(rng):
    x = rng.standard_normal((200, 12)).astype(np.float32) @ np.diag(0.5 ** np.arange(12)).astype(np.float32)
    w = rng.standard_normal((12, 40)).astype(np.float32)
    energies = np.linalg.svd(x @ w, compute_uv=False) ** 2
    for dims in (3, 12, 100):
        y = x @ axis.compress(x, w, dims)
        assert y.shape[1] == min(dims, 12)
        np.testing.assert_allclose((y**2).sum(0), energies[: y.shape[1]], rtol=1e-2, atol=1e-5 * energies[0])


def test_features_go_to_the_codebook_that_explains_them(rng):
    codes = rng.integers(0, 16, (500, 3), np.uint8)
    x = np.stack([codes[:, 2], codes[:, 0], codes[:, 0] + 0.1 * codes[:, 1]], axis=1).astype(np.float32)
    statistics = Statistics.zeros(3, 3).add(jnp.asarray(x - x.mean(0)), codes, np.ones(500, bool))
    np.testing.assert_array_equal(explained(statistics), [[0, 1, 1], [0, 0, 0], [1, 0, 0]])
