"""Answers are those of float64, whatever the scale and the offset of vectors and queries; biases may mask vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_maddness import add_vectors, build_index, remove_vectors, search
from jax_maddness.retrieval import powers
from jax_maddness.retrieval.bias import shielded
from jax_maddness.retrieval.index import METRICS
from jax_maddness.retrieval.truth import true_neighbors

COUNT, FEATURES, CODEBOOKS, K = 150, 12, 3, 5
SUBNORMAL = np.float32(1e-40)


@pytest.fixture(scope="module")
def vectors():
    return np.float32(np.random.default_rng(0).standard_normal((COUNT, FEATURES)))


@pytest.fixture(scope="module")
def queries():
    return np.float32(np.random.default_rng(1).standard_normal((8, FEATURES)))


def in_double(queries, vectors, metric, bias=0.0):
    """The `K` best scores in float64, and their positions: of equal ones the first."""
    q, v = np.float64(queries), np.float64(vectors)
    if metric == "cosine":
        q, v = (a / np.where(a.any(1, keepdims=True), np.linalg.norm(a, axis=1, keepdims=True), 1) for a in (q, v))
    scores = -((q[:, None] - v[None]) ** 2).sum(-1) if metric == "l2" else q @ v.T + bias
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(scores, order, 1), order


def assert_right(got, want, sizes=0.0):
    """Scores are rounded to float32, whose range ends at 3e38 and whose subnormal numbers XLA takes for zero.

    `sizes` are those of the terms of each score, if these may be far larger than their sum.
    """
    scores, ids = (np.asarray(a) for a in got)
    np.testing.assert_array_equal(ids, want[1])
    with np.errstate(over="ignore"):
        desired, rounding = np.float32(want[0]), np.float32(1e-7 * sizes)
    np.testing.assert_array_equal(np.isfinite(scores), np.isfinite(desired))
    close = np.isclose(scores, desired, rtol=2e-6, atol=2.4e-38) | (np.abs(scores - desired) <= rounding)
    assert close.all(), (scores[~close], desired[~close])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e18])
def test_every_scale_has_the_answers_of_float64(metric, scale, vectors, queries):
    scaled = vectors * np.float32(scale)
    index = build_index(scaled, CODEBOOKS, metric=metric)
    assert index.recall[-1] == (COUNT, 1.0, 1.0, 1.0)
    if scale != 1:
        unscaled = build_index(vectors, CODEBOOKS, metric=metric)
        assert np.mean(np.asarray(index.codes) == np.asarray(unscaled.codes)) > 0.9
    factors = 1, scale, 1e3 * scale, 1e9 * scale, min(1e18 * scale, 1e37), SUBNORMAL
    for asked in (queries * np.float32(factor) for factor in factors):
        assert_right(search(asked, index, K, num_candidates=COUNT), in_double(asked, scaled, metric))
        _, ids = search(asked, index, K, num_candidates=32)
        assert np.isin(np.asarray(ids), np.arange(COUNT)).all()


@pytest.mark.parametrize("scale", [1e-45, 1e-35, 1e25, 3e37])
def test_cosine_has_no_scale(scale, vectors, queries):
    scaled = vectors * np.float32(scale)
    index = build_index(scaled, CODEBOOKS, metric="cosine")
    for num_candidates in (0, 32, COUNT):
        for factor in (1, 1e19, 1e-21, 1e-40):
            scores, ids = search(queries * np.float32(factor), index, K, num_candidates=num_candidates)
            assert (np.abs(scores) <= 1).all()
            if num_candidates == COUNT and factor > 1e-30:
                want = in_double(queries, scaled, "cosine")
                np.testing.assert_array_equal(ids, want[1])
                np.testing.assert_allclose(scores, want[0], atol=1e-6)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("scale", [1e-35, 1e25])
def test_what_float32_cannot_hold_is_refused(metric, scale, vectors):
    with pytest.raises(ValueError, match=r"Scale it (up|down)"):
        build_index(vectors * np.float32(scale), CODEBOOKS, metric=metric)


def clusters(rng, far, spread):
    """Two groups of vectors `2 * far` apart, each as wide as `spread`."""
    signs = np.where(np.arange(COUNT) % 2, 1.0, -1.0)[:, None]
    return np.float32(signs * far + spread * rng.standard_normal((COUNT, FEATURES)))


@pytest.mark.parametrize(("offset", "far"), [(0.0, 0.0), (1e5, 0.0), (4e6, 0.0), (0.0, 1e6), (4e6, 1e6)])
def test_distances_do_not_cancel(offset, far):
    """Neighbors are near each other, and far from the origin and from the center of all vectors."""
    vectors = np.float32(clusters(np.random.default_rng(2), far, 300.0) + offset)
    index = build_index(vectors, CODEBOOKS, metric="l2")
    assert index.recall[-1] == (COUNT, 1.0, 1.0, 1.0)
    queries = np.float32(vectors[:8] + 5)
    assert_right(search(queries, index, K, num_candidates=COUNT), in_double(queries, vectors, "l2"))
    scores, ids = search(queries, index, K, num_candidates=100)
    distances = ((np.float64(queries)[:, None] - np.float64(vectors)[np.asarray(ids)]) ** 2).sum(-1)
    np.testing.assert_allclose(scores, -distances, rtol=1e-6)
    approximate, ids = search(queries, index, K, num_candidates=0)
    assert np.isfinite(approximate).all()
    assert (np.asarray(ids) % 2 == np.arange(8)[:, None] % 2).all() or not far


def test_codes_do_not_depend_on_the_offset():
    rows = np.float32(np.random.default_rng(2).integers(-40, 40, (COUNT, FEATURES)))
    here, there = (build_index(rows + offset, CODEBOOKS, metric="l2") for offset in (0, 2**22))
    for a, b in zip(here.recall, there.recall, strict=True):
        assert a[0] == b[0]
        np.testing.assert_allclose(a, b, atol=0.05)
    np.testing.assert_array_equal(search(rows[:8], here, K)[0], search(rows[:8] + 2**22, there, K)[0])


def test_recall_is_measured_with_the_vectors_that_are_kept():
    """bfloat16 has 8 bits: it cannot tell vectors apart that share an offset of 1000, so recall must not be 1."""
    rows = np.float32(1000 + np.random.default_rng(3).standard_normal((COUNT, FEATURES)))
    kept, rounded = (build_index(rows, CODEBOOKS, metric="l2", keep_vectors=d).recall for d in (True, jnp.bfloat16))
    assert kept[-1] == (COUNT, 1.0, 1.0, 1.0)
    assert max(row[2] for row in rounded) < 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_true_neighbors_are_those_of_loops(metric, queries):
    rows = np.float32(np.random.default_rng(4).integers(-2, 3, (5000, FEATURES)))  # ties, and more than one block
    asked = np.float32(np.round(queries))
    bias = np.float32(np.arange(5000) % 3) if metric == "ip" else None
    want = in_double(asked, rows, metric, 0.0 if bias is None else bias)[1]
    got = true_neighbors(asked, rows, bias, metric, K)
    if metric == "cosine":  # of equal cosines, rounding may put either first
        unit = rows / np.linalg.norm(np.float64(rows), axis=1, keepdims=True)
        got, want = (np.einsum("qd,qkd->qk", asked, unit[p]) for p in (got, want))
        np.testing.assert_allclose(got, want, atol=1e-9)
    else:
        np.testing.assert_array_equal(got, want)


def test_half_precision_holds_or_refuses(vectors):
    for scale in (1e5, 1e-9):
        with pytest.raises(ValueError, match="float16 cannot hold"):
            build_index(vectors * np.float32(scale), CODEBOOKS, keep_vectors="float16")
    index = build_index(np.float16(vectors), CODEBOOKS)
    assert index.vectors.dtype == jnp.float16
    with pytest.raises(ValueError, match="`vectors` has 2 vectors that float16 cannot hold"):
        add_vectors(index, vectors[:2] * np.float32(1e5))


def test_vectors_far_from_all_others_can_be_added(vectors, queries):
    for metric in METRICS:
        index = build_index(vectors, CODEBOOKS, metric=metric)
        far = vectors[:2] * np.float32(1e12)
        more = add_vectors(index, far)
        want = in_double(queries, np.concatenate([vectors, far]), metric)
        if metric != "cosine":  # equal up to rounding to vectors that are there
            lengths = np.linalg.norm(np.concatenate([vectors, far])[want[1]].astype(np.float64), axis=-1)
            sizes = lengths * np.linalg.norm(queries, axis=-1)[:, None]
            assert_right(search(queries, more, K, num_candidates=COUNT + 2), want, sizes)


# ---- Biases ----


def recall_with(bias, vectors, queries, num_candidates=32):
    index = build_index(vectors, CODEBOOKS, bias=bias, queries=queries)
    _, ids = search(queries, index, K, num_candidates=num_candidates)
    want = in_double(queries, vectors, "ip", np.float64(bias))[1]
    return np.mean([np.isin(t, i).mean() for t, i in zip(want, np.asarray(ids), strict=True)])


@pytest.mark.parametrize("mask", [-1e9, -3e38, "different"])
def test_a_bias_that_masks_costs_no_recall(mask, rng):
    vectors, queries = (np.float32(rng.standard_normal((n, FEATURES))) for n in (COUNT, 64))
    bias = np.float32(rng.standard_normal(COUNT))
    plain = recall_with(bias, vectors, queries)
    bias[::3] = -1e9 * (1 + rng.random(COUNT // 3)) if mask == "different" else mask
    assert recall_with(bias, vectors, queries) > plain - 0.05
    assert recall_with(bias, vectors, queries, COUNT) == 1
    bias[::3] = 0
    bias[1] = 1e9
    assert recall_with(bias, vectors, queries) > plain - 0.1


def test_masked_vectors_can_be_added(vectors, queries):
    bias = np.zeros(COUNT, np.float32)
    index = build_index(vectors, CODEBOOKS, bias=bias, queries=queries)
    bias[::3] = -3e38
    gone = np.arange(0, COUNT, 3)
    masked = add_vectors(remove_vectors(index, gone), vectors[gone], gone, bias=bias[gone])
    assert_right(search(queries, masked, K, num_candidates=COUNT), in_double(queries, vectors, "ip", np.float64(bias)))
    assert not np.isin(np.asarray(search(queries, masked, K, num_candidates=32)[1]), gone).any()


@pytest.mark.parametrize("outliers", [[-1e9], [-1e9, -2e9, -3e9], [1e9], [1e9, -1e9], []])
def test_shielded_biases_have_the_same_best_vectors(outliers, vectors, queries):
    bias = np.float32(np.random.default_rng(5).standard_normal(COUNT))
    bias[: 20 * len(outliers)] = np.repeat(outliers, 20)
    safe = shielded(bias, queries, vectors)
    assert np.ptp(safe) < 1e4
    want = in_double(queries, vectors, "ip", np.float64(bias))[1]
    np.testing.assert_array_equal(in_double(queries, vectors, "ip", np.float64(safe))[1], want)
    if not outliers:
        assert safe is bias


@pytest.mark.parametrize(
    "bias", [np.zeros(3), np.zeros((COUNT, 1)), np.full(COUNT, -np.inf), np.full(COUNT, np.nan), np.zeros(COUNT, bool)]
)
def test_a_bias_that_does_not_fit_is_refused(bias, vectors):
    with pytest.raises((TypeError, ValueError), match="`bias`"):
        build_index(vectors, CODEBOOKS, bias=bias)


# ---- Powers of two ----


def test_powers_of_two_are_exact():
    rows = np.float32([[1.5, -0.75], [3e38, 1], [1e-40, -3e-39], [0, 0], [1e-45, 0], [-np.inf, 2]])
    exponents = np.asarray(powers.exponents(jnp.asarray(rows[:5])))
    np.testing.assert_array_equal(exponents, [0, 127, -128, 0, -149])
    shifts = np.int32([3, -100, 129, 40, 149, 5])
    scaled = jax.jit(powers.times_power)(rows, shifts)
    np.testing.assert_array_equal(scaled, np.ldexp(rows, shifts[:, None]))
    assert [powers.exponent_of(row) for row in rows[:5]] == exponents.tolist()
    gradient = jax.grad(lambda x: powers.times_power(x, jnp.asarray(shifts[:5])).sum())(jnp.asarray(rows[:5]))
    np.testing.assert_array_equal(np.asarray(gradient)[[0, 3]], [[8, 8], [2.0**40] * 2])


def test_the_gradient_of_a_distance(vectors, queries):
    index = build_index(vectors, CODEBOOKS, metric="l2")
    ids = np.asarray(search(queries, index, 1)[1])[:, 0]
    gradient = jax.grad(lambda q: search(q, index, 1)[0].sum())(queries)
    np.testing.assert_allclose(gradient, -2 * (queries - vectors[ids]), rtol=1e-5, atol=1e-5)
