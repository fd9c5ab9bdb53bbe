"""The criteria by which codes are chosen: they are what they say, hold for all vectors, and find more than before."""

import numpy as np
import pytest
from helpers.neighbours import CODEBOOKS, assert_same, by_hand, clustered, found

from jax_maddness import add_vectors, build_index, load_index, remove_vectors, save_index, search
from jax_maddness.retrieval import criterion, lengths, quantizer, scan
from jax_maddness.retrieval.index import METRICS
from jax_maddness.retrieval.second_term import SecondTerm

FEATURES, ROWS = 8, 300
TERM = SecondTerm(0.7, 0.3, 0.2)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return np.float32(rng.standard_normal((ROWS, FEATURES + 1)) @ rng.standard_normal((FEATURES + 1, FEATURES + 1)) + 1)


@pytest.fixture(scope="module")
def moment():
    queries = np.random.default_rng(1).standard_normal((100, FEATURES + 1)) * np.linspace(2, 0.5, FEATURES + 1)
    return queries.T @ queries / 100


@pytest.fixture(scope="module")
def learned(rows, moment):
    return quantizer.learn(rows, moment, CODEBOOKS, 0, lambda: None)


def in_clusters(seed, rows, features=64):
    """Rows of 200 clusters, away from the origin; within a cluster they vary in some directions more than in others."""
    shared = np.random.default_rng(0)
    means, spread = shared.standard_normal((200, features)), shared.standard_normal((features, features))
    rng = np.random.default_rng(seed)
    within = rng.standard_normal((rows, features)) @ (spread * np.geomspace(1, 0.05, features)) / 8
    return np.float32(0.3 + 0.7 * means[rng.integers(0, 200, rows)] + within)


def double(learned):
    """Prototypes with their constants as the last feature, and the center, in float64."""
    parts = np.asarray(learned.prototypes), np.asarray(learned.constants)[..., None]
    return np.concatenate(parts, -1).astype(np.float64), np.asarray(learned.center, np.float64)


# ---- Inner products: the second term ----


def error(e, v, moment, term):
    """`e^T M e + (u . e - mean)^2` for the residual `e` of one vector `v`, by the formula."""
    u = np.append(term.along * v[:-1] / np.linalg.norm(v[:-1]), term.beside)
    return e @ moment @ e + (u @ e - term.mean) ** 2


def by_trying_all(learned, v, code, moment, term, sweeps):
    """Tries all codes of each codebook in turn, and keeps the one of least error."""
    prototypes, center = double(learned)
    code = code.copy()
    for c in list(range(len(prototypes))) * sweeps:
        errors = []
        for k in range(16):
            code[c] = k
            errors.append(error(v - center - prototypes[np.arange(len(code)), code].sum(0), v, moment, term))
        code[c] = np.argmin(errors)
    return code


def test_codes_are_those_of_trying_all(learned, rows, moment):
    start = np.random.default_rng(2).integers(0, 16, (ROWS, CODEBOOKS)).astype(np.uint8)
    got = quantizer.encode(learned, rows, start, 2, term=TERM)
    want = [by_trying_all(learned, v, s, moment, TERM, 2) for v, s in zip(rows.astype(np.float64), start, strict=True)]
    assert np.mean((got == want).all(1)) > 0.98  # in float32, a few of the choices are ties
    assert np.mean((got == quantizer.encode(learned, rows, start, 2)).all(1)) < 0.9


def test_a_term_without_weight_changes_no_code(learned, rows):
    with_none = quantizer.encode(learned, rows, term=SecondTerm(0.0, 0.0, 0.0))
    np.testing.assert_array_equal(with_none, quantizer.encode(learned, rows))


def test_errors_along_vectors_are_nearer_to_their_mean():
    rows = np.pad(in_clusters(1, 1000), ((0, 0), (0, 1)))
    learned, numbers = criterion.learn(rows, rows.T @ rows / len(rows), "ip", 8, 0, lambda: None)
    v = rows.astype(np.float64)
    u = np.concatenate([numbers[0] * v[:, :-1] / np.linalg.norm(v[:, :-1], axis=1, keepdims=True),
                        np.full((len(v), 1), numbers[1])], 1)  # fmt: skip
    plain, chosen = (
        (u * quantizer.residuals(learned, rows, codes)).sum(1)
        for codes in (quantizer.encode(learned, rows), criterion.encode(learned, rows, numbers))
    )
    np.testing.assert_allclose(numbers[2], plain.mean(), rtol=1e-5)
    assert ((chosen - numbers[2]) ** 2).mean() < 0.97 * ((plain - numbers[2]) ** 2).mean()


def test_residuals_are_what_codes_leave(learned, rows):
    codes = quantizer.encode(learned, rows)
    prototypes, center = double(learned)
    want = rows - center - prototypes[np.arange(CODEBOOKS), codes].sum(1)
    np.testing.assert_allclose(quantizer.residuals(learned, rows, codes), want, atol=1e-5)


# ---- Distances: a codebook of lengths ----


@pytest.mark.parametrize("codebooks", [1, 2, 5])
def test_constants_are_those_nearest_to_the_numbers(codebooks, rows, moment):
    learned = lengths.learn(rows, criterion.rooted(moment), codebooks, 0, lambda: None)
    codes = lengths.encode(learned, rows, 0.5)
    prototypes, center = double(learned)
    assert len(prototypes) == codebooks
    for v, code in zip(rows[:50].astype(np.float64), codes, strict=False):
        p = center[:-1] + prototypes[np.arange(codebooks), code, :-1].sum(0)
        e = v[:-1] - p
        number = -(p @ p + 0.5 * (e @ e)) / 2
        numbers = center[-1] + prototypes[np.arange(codebooks), code, -1].sum()
        if codebooks > 1:
            assert not prototypes[-1, :, :-1].any()
            others = numbers - prototypes[-1, code[-1], -1] + prototypes[-1, :, -1]
            assert abs(number - numbers) <= np.abs(number - others).min() + 1e-4


def test_codes_of_vectors_do_not_depend_on_the_last_feature(rows, moment):
    learned = lengths.learn(rows, moment, CODEBOOKS, 0, lambda: None)
    other = rows.copy()
    other[:, -1] = -7
    np.testing.assert_array_equal(lengths.encode(learned, rows, 0.5), lengths.encode(learned, other, 0.5))


def test_sixteen_levels_represent_sixteen_values():
    values = np.float32(np.arange(16) * 3 - 10)
    left = np.random.default_rng(0).permutation(np.repeat(values, 50))
    np.testing.assert_allclose(np.sort(lengths.levels(left, 0)), values, atol=1e-5)


def test_roots_keep_the_trace_and_the_last_feature(moment):
    roots = criterion.rooted(moment)
    np.testing.assert_allclose(np.trace(roots), np.trace(moment))
    squared = roots[:-1, :-1] @ roots[:-1, :-1]
    np.testing.assert_allclose(squared / np.trace(squared), moment[:-1, :-1] / np.trace(moment[:-1, :-1]), atol=1e-12)
    assert np.isfinite(criterion.rooted(np.zeros((3, 3)))).all()


# ---- Indexes ----


def before(vectors, metric, num_codebooks, monkeypatch):
    """The index that was built before there were criteria."""
    with monkeypatch.context() as old:
        old.setattr(criterion, "learn", lambda s, m, _, c, seed, step, __: (quantizer.learn(s, m, c, seed, step), ()))
        return build_index(vectors, num_codebooks, metric=metric)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_more_is_found_than_before(metric, monkeypatch):
    vectors, queries = in_clusters(1, 8000), in_clusters(2, 200)
    truth = by_hand(queries, vectors, metric, 10)[1]
    now, then = build_index(vectors, 8, metric=metric), before(vectors, metric, 8, monkeypatch)
    assert now.criterion
    assert not then.criterion
    for num_candidates in (10, 32, 128):
        shares = [found(search(queries, i, 10, num_candidates=num_candidates)[1], truth) for i in (now, then)]
        assert shares[0] >= shares[1] - 0.002
        assert shares[0] > shares[1] + 0.01 or num_candidates != 32


KINDS = {
    "small": lambda rng: 1e-15 * rng.standard_normal((100, 6)),
    "large": lambda rng: 1e15 * rng.standard_normal((100, 6)),
    "both": lambda rng: rng.standard_normal((100, 6)) * np.where(np.arange(100) % 2, 1e-15, 1.0)[:, None],
    "duplicates": lambda rng: np.repeat(rng.standard_normal((4, 6)), 25, axis=0),
    "all the same": lambda rng: np.ones((100, 6)),
    "zero": lambda rng: np.zeros((100, 6)),
    "some zero": lambda rng: rng.standard_normal((100, 6)) * (np.arange(100) % 3 > 0)[:, None],
    "few": lambda rng: rng.standard_normal((5, 6)),
    "one": lambda rng: rng.standard_normal((1, 6)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_all_kinds_of_vectors(kind, metric, tmp_path, rng):
    vectors = np.float32(KINDS[kind](rng))
    for num_codebooks in (1, 3):
        index = build_index(vectors, num_codebooks, metric=metric)
        assert np.isfinite(index.criterion).all()
        assert all(np.isfinite(np.asarray(a)).all() for a in index.quantizer)
        scores = search(vectors[:3], index, 2, num_candidates=0)[0]
        assert not np.isnan(scores).any()
        more = add_vectors(index, vectors[:1])
        codes = np.asarray(scan.unpack(more.codes))[: more.count]
        np.testing.assert_array_equal(codes[-1], codes[0])
        save_index(tmp_path / "index", more)
        assert_same(load_index(tmp_path / "index"), more)


@pytest.mark.parametrize("scale", [1e-15, 1e-12, 1e15])
@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_queries_of_another_scale(metric, scale, rng):
    vectors = np.float32(rng.standard_normal((200, 6)))
    queries = np.float32(scale * rng.standard_normal((40, 6)))
    here = build_index(vectors, 3, metric=metric, queries=queries / np.float32(scale))
    there = build_index(vectors, 3, metric=metric, queries=queries)
    assert np.isfinite(there.criterion).all()
    assert all(np.isfinite(np.asarray(a)).all() for a in there.quantizer)
    codes = [np.asarray(scan.unpack(i.codes))[:200, :3] for i in (here, there)]
    # The least multiple of the identity that is added to the second moment, 1e-30, outweighs queries near 1e-15.
    assert np.mean(codes[0] == codes[1]) > 0.9 or (metric, scale) == ("ip", 1e-15)


def test_biases_are_part_of_the_second_term(rng):
    vectors, queries = (np.float32(rng.standard_normal((n, 6))) for n in (500, 100))
    bias = np.float32(rng.standard_normal(500))
    index = build_index(vectors, 3, bias=bias, queries=queries)
    assert index.criterion[1] > 0
    truth = by_hand(queries, vectors, "ip", 5, bias)[1]
    assert found(search(queries, index, 5, num_candidates=64)[1], truth) > 0.8
    again = add_vectors(remove_vectors(index, [7, 499]), vectors[[7, 499]], [7, 499], bias=bias[[7, 499]])
    np.testing.assert_array_equal(again.codes, index.codes)


def test_an_index_without_a_criterion_is_added_to_as_before(monkeypatch):
    vectors = clustered(1, 300)
    for metric in METRICS:
        index = before(vectors, metric, CODEBOOKS, monkeypatch)
        again = add_vectors(remove_vectors(index, np.arange(9)), vectors[:9], np.arange(9))
        np.testing.assert_array_equal(again.codes, index.codes)
        assert again.criterion == ()


def test_trees_have_no_criterion():
    assert build_index(clustered(1, 300), CODEBOOKS, method="trees").criterion == ()
