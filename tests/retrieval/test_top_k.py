"""Look up, then num_candidates: top_k, maxima over positions, exact rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import random_op, random_rows

from jax_maddness import (
    FitConfig,
    amm,
    amm_with_exact_rows,
    build_index,
    fit,
    fit_outlier_rows,
    max_over_positions,
    top_k,
)

jitted_top_k = jax.jit(top_k, static_argnames=("k", "num_candidates"))


@pytest.fixture(scope="module")
def layer():
    """Rows near a plane of five dimensions, weights, a bias, and an op that keeps the weights."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.standard_normal((600, 5)) @ rng.standard_normal((5, 16)))
    w, b = np.float32(rng.standard_normal((16, 40))), np.float32(rng.standard_normal(40))
    return x, w, b, fit(x, w, b, num_codebooks=8, config=FitConfig("paper"), keep_weights=True)


@pytest.mark.slow
def test_top_k_of_an_op(layer):
    x, w, b, op = layer
    exact = x.astype(np.float64) @ w + b
    want = np.argsort(-exact, axis=1, kind="stable")[:, :3]
    for num_candidates, least in [(40, 1.0), (100, 1.0), (20, 0.97), (3, 0.5)]:
        values, ids = jitted_top_k(x, op, k=3, bias=b, num_candidates=num_candidates)
        np.testing.assert_allclose(values, np.take_along_axis(exact, np.asarray(ids), 1), rtol=1e-4, atol=1e-4)
        assert (np.asarray(ids) == want).mean() >= least
    values, ids = jitted_top_k(x, op, k=3, num_candidates=0)
    np.testing.assert_array_equal(ids, jax.lax.top_k(amm(x, op), 3)[1])
    one = top_k(x[0], dataclasses.replace(op, weights=None), w, k=3, bias=b)
    np.testing.assert_allclose(one[0], exact[0, want[0]], rtol=1e-4, atol=1e-4)


def test_top_k_of_equal_outputs_takes_the_lower(layer):
    x, w, b, _ = layer
    twice, both = np.concatenate([w, w], 1), np.concatenate([b, b])
    op = fit(x, twice, both, num_codebooks=8, config=FitConfig("paper"), keep_weights=True)
    _, ids = jitted_top_k(x, op, k=2, bias=both, num_candidates=8)
    np.testing.assert_array_equal(ids[:, 1], ids[:, 0] + 40)


@pytest.mark.slow
def test_top_k_of_an_index(layer):
    x, w, b, _ = layer
    index = build_index(w.T, 8, bias=b, queries=x)
    want = np.argsort(-(x.astype(np.float64) @ w + b), axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(jitted_top_k(x, index, k=3, num_candidates=40)[1], want)
    assert (np.asarray(jitted_top_k(x, index, k=3, num_candidates=20)[1]) == want).mean() > 0.9
    with pytest.raises(ValueError, match="Leave out `w`"):
        top_k(x, index, w)
    with pytest.raises(ValueError, match="40 outputs"):
        top_k(x, index, k=41, num_candidates=41)


def test_top_k_says_what_is_wrong(layer):
    x, w, _, op = layer
    with pytest.raises(ValueError, match="40 outputs"):
        top_k(x, op, k=41, num_candidates=41)
    with pytest.raises(ValueError, match="less than `k`"):
        top_k(x, op, k=10, num_candidates=5)
    with pytest.raises(ValueError, match="keep_weights"):
        top_k(x, dataclasses.replace(op, weights=None))
    with pytest.raises(ValueError, match="expected"):
        top_k(x, op, w.T)
    with pytest.raises(TypeError, match="MaddnessOp or a VectorIndex"):
        top_k(x, w)


@pytest.mark.parametrize("num_candidates", [1, 3, 600])
def test_checked_max(layer, num_candidates):
    x, w, b, op = layer
    shaped = x.reshape(2, 10, 30, 16)  # [..., positions, features]
    exact = (shaped @ w + b).max(-2)
    got = jax.jit(max_over_positions, static_argnames="num_candidates")(
        shaped, op, bias=b, num_candidates=num_candidates
    )
    assert got.shape == (2, 10, 40)
    assert (np.asarray(got) <= exact + 1e-4).all()
    error = np.abs(got - exact).mean()
    assert error < (1e-5 if num_candidates == 600 else 0.5 * np.abs(amm(shaped, op).max(-2) - exact).mean())


def test_checked_max_says_what_is_wrong(layer):
    x, _, _, op = layer
    for rows, num_candidates in [(x[0], 1), (x[:0], 1), (x, 0)]:
        with pytest.raises(ValueError, match="at least one position"):
            max_over_positions(rows, op, num_candidates=num_candidates)


def test_rows_far_from_the_others_are_exact(layer):
    x, w, b, op = layer
    rule = fit_outlier_rows(x, share=0.02)
    assert rule.share(x) == pytest.approx(0.02, abs=0.005)
    rows = x[:60].copy()
    rows[[7, 20, 33]] *= [[100], [200], [300]]
    assert np.flatnonzero(rule(rows)).tolist() == np.union1d(np.flatnonzero(rule(x[:60])), [7, 20, 33]).tolist()
    y, exact = np.asarray(amm(rows, op)), rows @ w + b
    shaped = rows.reshape(3, 20, 16)
    f = jax.jit(amm_with_exact_rows, static_argnums=3)
    for max_exact, corrected in [(2, [20, 33]), (0, [])]:
        got = np.asarray(f(shaped, op, rule, max_exact, bias=b)).reshape(60, 40)
        want = y.copy()
        want[corrected] = exact[corrected]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
    normal = np.flatnonzero(~np.asarray(rule(rows)))
    got = np.asarray(f(shaped, op, rule, 60, bias=b)).reshape(60, 40)
    np.testing.assert_array_equal(got[normal], y[normal])  # room is left: others stay look-ups


def test_rows_of_a_mask_are_exact(layer):
    x, w, b, op = layer
    mask = np.zeros(600, bool)
    mask[[3, 599]] = True
    got = amm_with_exact_rows(x, dataclasses.replace(op, weights=None), mask, 5, w, b)
    np.testing.assert_allclose(got[mask], x[mask] @ w + b, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[~mask], amm(x, op)[~mask])
    assert amm_with_exact_rows(jnp.asarray(x, jnp.bfloat16), op, mask, 5).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="rows"):
        amm_with_exact_rows(x, op, mask[:5], 5)
    with pytest.raises(ValueError, match="max_exact"):
        amm_with_exact_rows(x, op, mask, -1)


def test_rows_that_are_not_finite_are_abnormal(layer):
    x = layer[0][:4].copy()
    x[1, 2], x[3, 0] = np.nan, np.inf
    rule = fit_outlier_rows(layer[0], 0.001)
    assert np.asarray(rule(x)).tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match="between 0 and 1"):
        fit_outlier_rows(layer[0], 0)


def test_the_rule_is_a_pytree_and_its_gradients_are_finite(rng):
    op = random_op(rng, 8, 3, 5, weights=True)
    x = jnp.asarray(random_rows(rng, 12, 8))
    rule = fit_outlier_rows(x, 0.3)
    gradient = jax.grad(lambda x: amm_with_exact_rows(x, op, rule, 4).sum())(x)
    np.testing.assert_allclose(gradient, jnp.broadcast_to(op.weights.sum(1), x.shape), rtol=1e-4)
    assert len(jax.tree.leaves(rule)) == 3
