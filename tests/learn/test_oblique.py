"""Oblique trees: each step against its definition, and what learning them gains over the paper's trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import put

import jax_maddness
from jax_maddness import FitConfig, encode, fit
from jax_maddness.learn.data.rounding import rounded
from jax_maddness.learn.methods import groups as grouping
from jax_maddness.learn.methods import oblique, projections, train
from jax_maddness.learn.methods.objective import SQUARED_ERROR, Objective
from jax_maddness.learn.methods.projections import STEP, FloatTrees

ROWS, FEATURES, OUTPUTS, CODEBOOKS = 600, 16, 6, 4


@pytest.fixture(scope="module")
def problem():
    """Correlated rows, those to learn from and as many others; weights."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((5, FEATURES)) * rng.uniform(0.5, 20, FEATURES)
    x = rng.standard_normal((2 * ROWS, 5)) @ factors + 0.3 * rng.standard_normal((2 * ROWS, FEATURES)) + 3
    w = rng.standard_normal((FEATURES, OUTPUTS))
    return np.float32(x[:ROWS]), np.float32(x[ROWS:]), np.float32(w)


@pytest.fixture(scope="module")
def learned(problem):
    x, _, w = problem
    return oblique.train_trees(x, w, CODEBOOKS, steps=200)


def nmse(op, problem, bias):
    x, others, w = problem
    exact, mean = others @ w + bias, (x @ w + bias).mean(0)
    return np.square(jax_maddness.amm(others, op) - exact).sum() / np.square(exact - mean).sum()


def covariance_of(z):
    return np.cov(z.T, bias=True)


# ---- Groups ----


def random_similarity(rng, features):
    z, w = rng.standard_normal((50, features)), rng.standard_normal((features, 3))
    return grouping.contributions(covariance_of(z), w @ w.T)


def test_similarity_is_that_of_what_features_add_to_the_outputs(rng):
    z, w = rng.standard_normal((50, 5)), rng.standard_normal((5, 3))
    z[:, 3] = w[3] = 0
    found = grouping.contributions(z.T @ z / 50, w @ w.T)
    for i in range(5):
        for j in range(5):
            one, other = np.outer(z[:, i], w[i]), np.outer(z[:, j], w[j])
            size = np.sqrt((one**2).sum() * (other**2).sum())
            np.testing.assert_allclose(found[i, j], abs((one * other).sum()) / size if size else 0, atol=1e-12)


@pytest.mark.parametrize(("features", "codebooks"), [(1, 1), (7, 2), (7, 7), (12, 5)])
def test_every_feature_is_in_one_group_of_near_equal_size(rng, features, codebooks):
    similar = random_similarity(rng, features)
    dealt = grouping.similar(similar, rng.random(features), codebooks)
    better = grouping.exchanged(dealt, similar)
    for groups in (dealt, better):
        assert sorted(groups[groups >= 0]) == list(range(features))
        sizes = (groups >= 0).sum(1)
        assert list(sizes) == [len(part) for part in np.array_split(np.arange(features), codebooks)]
    within = [sum(similar[np.ix_(g[g >= 0], g[g >= 0])].sum() for g in groups) for groups in (dealt, better)]
    assert within[1] >= within[0]


def test_exchange_undoes_a_bad_deal():
    similar = np.kron(np.eye(3), np.ones((4, 4)))  # three kinds of four features
    dealt = np.array([[0, 1, 2, 4], [5, 6, 3, 8], [9, 10, 11, 7]], np.int32)
    assert sorted(map(tuple, grouping.exchanged(dealt, similar))) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]


def test_wider_groups_add_the_nearest_features(rng):
    similar = random_similarity(rng, 9)
    dealt = np.array([[0, 1, 2, 3, 4], [5, 6, 7, 8, -1]], np.int32)
    wider = grouping.widened(dealt, similar, 6)
    np.testing.assert_array_equal(wider[0, :5], dealt[0])
    assert wider[0, 5] == 5 + similar[:5, 5:].sum(0).argmax()
    np.testing.assert_array_equal(wider[1, :4], dealt[1, :4])
    assert set(wider[1, 4:]) == set(np.argsort(-similar[5:, :5].sum(0))[:2])


# ---- Rounding and projections ----


def projected(*args):
    """Compiled as one program, as in training; step by step it would be dozens."""
    return np.asarray(jax.jit(train.projected)(*args))


def leaves(*args):
    return np.asarray(jax.jit(train.leaves)(*args))


def test_six_standard_deviations_reach_the_limit_and_constants_vanish(rng):
    x = np.float32(rng.standard_normal((4000, 3)) * [1e-3, 7, 0] + [5, -200, 0.1])
    center, scale = projections.rounding(x)
    np.testing.assert_allclose(center, x.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(scale[:2], 127 / (6 * x.std(0, dtype=np.float64)[:2]), rtol=1e-3)
    assert scale[2] == 0
    q = rounded(x, center, scale)
    np.testing.assert_allclose(q[:, :2] * STEP, ((x - center) / x.std(0))[:, :2], atol=0.51 * STEP)
    assert not q[:, 2].any()
    assert rounded(center + 1e9, center, scale).tolist() == [127, 127, 0]


def test_principal_outputs_keep_what_varies_most(rng):
    z, v = (
        rng.standard_normal((200, 8)),
        rng.standard_normal((8, 40)) * np.r_[np.ones(3) * 9, np.ones(5) * 0.1][:, None],
    )
    basis = projections.principal_outputs(covariance_of(z), v, most=3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-9)
    best = np.linalg.svd(z @ v, compute_uv=False)[:3]
    np.testing.assert_allclose(np.square(z @ v @ basis).sum(), np.square(best).sum(), rtol=1e-3)
    np.testing.assert_array_equal(projections.principal_outputs(covariance_of(z), v), np.eye(40))


def test_directions_are_principal_components_of_the_groups_outputs(rng):
    z, v = rng.standard_normal((200, 7)) @ rng.standard_normal((7, 7)), rng.standard_normal((7, 3))
    z -= z.mean(0)
    groups = np.array([[4, 0, 2, 6], [1, 3, 5, -1]], np.int32)
    found = projections.directions(z.T @ z / 200, v, groups, count=3)
    assert not found[1, 3].any()
    for group, directions in zip(groups, found, strict=True):
        own = group[group >= 0]
        left, size, _ = np.linalg.svd(z[:, own] @ v[own], full_matrices=False)
        scores = z[:, own] @ directions[: len(own)]
        np.testing.assert_allclose(np.abs(scores), np.abs(left * size), atol=1e-8)


def random_trees(rng, codebooks=5, width=8):
    scale = rng.uniform(0.01, 10, (codebooks, 4, 1))
    return FloatTrees(
        put(np.float32(rng.standard_normal((codebooks, 4, width)) * scale / np.sqrt(width))),
        put(np.float32(rng.standard_normal((codebooks, 15)) * scale[:, projections.NODE_LEVEL, 0])),
    )


def test_integer_form_decides_nearly_alike(rng):
    trees, features = random_trees(rng), np.arange(40).reshape(5, 8)
    q = np.clip(np.rint(rng.standard_normal((2000, 40)) / STEP), -127, 127).astype(np.int8)
    integers = projections.integers(trees)
    np.testing.assert_array_equal(np.abs(integers[0]).max(-1), 127)
    s = projected(np.float32(q * STEP), features, trees.projections)
    alike = leaves(s, trees.thresholds) == np.asarray(train.codes(trees, features, q))
    assert alike.reshape(2000, 5, 16).all(-1).mean() > 0.97


def test_projections_and_thresholds_that_cannot_be_scaled_stay_in_range():
    trees = FloatTrees(jnp.zeros((1, 4, 2)), jnp.full((1, 15), 8.0))
    whole, thresholds = projections.integers(trees)
    assert not whole.any()
    assert (thresholds > 2**30).all()


# ---- Training ----


def test_soft_decisions_are_chances_and_harden(rng):
    trees = random_trees(rng)
    s, thresholds = np.float32(rng.standard_normal((50, 5, 4))), np.asarray(trees.thresholds)
    probabilities = jax.jit(train.probabilities)
    chances = np.asarray(probabilities(s, thresholds, 0.5)).reshape(50, 5, 16)
    np.testing.assert_allclose(chances.sum(-1), 1, rtol=1e-5)
    for code in range(16):
        expected = np.ones((50, 5))
        for level in range(4):
            node = 2**level - 1 + (code >> (4 - level))
            right = 1 / (1 + np.exp(-(s[..., level] - thresholds[:, node]) / 0.5))
            expected *= right if code >> (3 - level) & 1 else 1 - right
        np.testing.assert_allclose(chances[..., code], expected, rtol=1e-4, atol=1e-6)
    hard = probabilities(s, thresholds, 1e-6)
    np.testing.assert_allclose(hard, leaves(s, thresholds), atol=1e-3)


def test_mixed_rows_keep_their_exact_outputs_and_their_covariance(rng):
    q, v = rng.integers(-127, 128, (300, 5)).astype(np.int8), np.float32(rng.standard_normal((5, 3)))
    q[:, 1] = q[:, 0]
    rows = train.Samples(jnp.asarray(q), jnp.asarray(q * STEP @ v), len(q))
    z, targets, _ = train._minibatch(rows, jnp.float32(0.7), jax.random.key(0))
    np.testing.assert_allclose(targets, z @ v, atol=1e-4)
    np.testing.assert_allclose(np.cov(z.T), np.cov((q * STEP).T), atol=3)  # variances are 12: of 512 rows, +- 0.6
    assert len(np.unique(np.asarray(z), axis=0)) > 500


def test_gradients_reach_projections_thresholds_and_tables(rng):
    trees, features = random_trees(rng), jnp.arange(40).reshape(5, 8)
    model = train.Model(trees, *put((np.float32(rng.standard_normal((80, 3))), np.zeros(3, np.float32))))
    z = put(np.float32(rng.standard_normal((64, 40))))
    hard = leaves(projected(z, features, trees.projections), trees.thresholds) @ np.asarray(model.tables)
    np.testing.assert_allclose(jax.jit(train.predict)(model, features, z, 0.3), hard, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda m: jnp.square(train.predict(m, features, z, 0.3)).mean()))(model)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


# ---- Learning ----


def test_learning_and_inference_give_the_same_codes(problem, learned):
    others, trees = problem[1], learned.trees
    q = rounded(others, np.asarray(trees.center), np.asarray(trees.scale))
    s = np.einsum("ncw,clw->ncl", np.int64(q)[:, trees.features], np.int64(trees.projections))
    one_hot = leaves(np.float32(s), np.float32(trees.thresholds)).reshape(ROWS, CODEBOOKS, 16)
    np.testing.assert_array_equal(encode(others, trees), one_hot.argmax(-1))


def test_training_improves_on_its_start(problem, learned):
    x, _, w = problem
    assert learned.error < 0.95 * oblique.train_trees(x, w, CODEBOOKS, steps=0).error


def test_training_that_may_be_luck_does_not_count(problem, monkeypatch):
    x, _, w = problem
    start = oblique.train_trees(x, w, CODEBOOKS, steps=0)
    monkeypatch.setattr(oblique, "surely_less", lambda *_: False)
    jax.tree.map(np.testing.assert_array_equal, oblique.train_trees(x, w, CODEBOOKS, steps=200).trees, start.trees)


def test_the_same_seed_gives_the_same_trees(problem, learned):
    x, _, w = problem
    again, other = (oblique.train_trees(x, w, CODEBOOKS, steps=200, seed=seed) for seed in (0, 1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, learned.trees, again.trees)))
    assert not np.array_equal(learned.trees.projections, other.trees.projections)


@pytest.mark.slow
def test_wider_codebooks_see_their_neighbors(problem):
    x, _, w = problem
    wide = oblique.train_trees(x, w, CODEBOOKS, width=8, steps=100)
    assert wide.trees.features.shape == (CODEBOOKS, 8)
    assert np.asarray(wide.trees.projections)[..., 4:].any()
    np.testing.assert_array_equal(wide.own.sum(0), 1)


def test_oblique_ops_are_far_more_accurate_than_the_papers(problem):
    x, _, w = problem
    bias = np.float32(np.arange(OUTPUTS))
    ops = [fit(x, w, bias, num_codebooks=CODEBOOKS, config=FitConfig(method=m)) for m in ("paper", "oblique")]
    paper, ours = (nmse(op, problem, bias) for op in ops)
    assert ours < 0.7 * paper


@pytest.mark.slow
def test_a_loss_of_the_users_is_what_falls(problem):
    x, w = problem[0], 0.03 * problem[2]  # logits of a few units
    labels = (x @ w + np.arange(OUTPUTS)).argmax(-1)

    def cross_entropy(y, exact, label):
        return -jnp.take_along_axis(jax.nn.log_softmax(y), label[:, None], axis=1).mean()

    bias = np.arange(OUTPUTS)
    loss = Objective(cross_entropy, 1.0, bias)
    errors = [
        oblique.train_trees(x, w, CODEBOOKS, steps=steps, objective=loss, extra=(labels,)).error for steps in (0, 200)
    ]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.slow
def test_tables_trained_on_a_loss_are_returned_in_the_outputs_units(problem):
    x, _, w = problem
    found = oblique.train_trees(x, w, CODEBOOKS, steps=100, objective=SQUARED_ERROR)
    codes = jax.nn.one_hot(encode(x, found.trees), 16).reshape(ROWS, -1)
    y, exact = codes @ found.tables + found.intercept, x @ w
    assert np.square(y - exact).sum() < 0.2 * np.square(exact - exact.mean(0)).sum()


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 5])
def test_few_rows_do_not_break_it(problem, rows):
    x, _, w = problem
    found = oblique.train_trees(x[:rows], w, CODEBOOKS, steps=50)
    assert np.isfinite(encode(x[:rows], found.trees)).all()


def test_constant_rows_do_not_break_it(problem):
    found = oblique.train_trees(np.full((20, FEATURES), 3, np.float32), problem[2], CODEBOOKS, steps=50)
    assert not np.asarray(found.trees.scale).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 3}, "`width` is 3; expected 4 "),
        ({"width": 17}, "`width` is 17; .*to 16"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(problem, arguments, message):
    x, _, w = problem
    with pytest.raises(ValueError, match=message):
        oblique.train_trees(x, w, CODEBOOKS, **arguments)
