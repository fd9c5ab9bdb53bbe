"""Additive codes: each step makes the error less, and it is the error of products."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_maddness.retrieval import product_quantization, quantizer
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.products import tables_of
from jax_maddness.retrieval.scan import MAX_ENTRY, pack

FEATURES, CODEBOOKS, ROWS = 12, 6, 1000


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return np.float32(rng.standard_normal((ROWS, FEATURES)) @ rng.standard_normal((FEATURES, FEATURES)) + 3)


@pytest.fixture(scope="module")
def moment():
    """Queries look mostly in four directions."""
    queries = np.random.default_rng(1).standard_normal((100, FEATURES)) * ([2.0] * 4 + [0.5] * (FEATURES - 4))
    return queries.T @ queries / 100


@pytest.fixture(scope="module")
def learned(rows, moment):
    return quantizer.learn(rows, moment, CODEBOOKS, 0, lambda: None)


def left(found, rows, codes):
    prototypes = np.concatenate([found.prototypes, np.asarray(found.constants)[..., None]], -1)
    return np.float64(rows) - np.asarray(found.center) - prototypes[np.arange(CODEBOOKS), codes].sum(1)


def error(found, rows, codes, moment):
    e = left(found, rows, codes)
    return np.einsum("nd,de,ne->n", e, moment, e)


@pytest.mark.slow
def test_no_other_code_of_a_single_codebook_is_better(learned, rows, moment):
    codes = quantizer.encode(learned, rows, sweeps=20)
    least = error(learned, rows, codes, moment)
    for c in range(CODEBOOKS):
        for code in range(16):
            other = codes.copy()
            other[:, c] = code
            assert (error(learned, rows, other, moment) >= least - 1e-3 * least.mean()).all()


def test_every_sweep_makes_the_error_less(learned, rows, moment):
    start = np.random.default_rng(2).integers(0, 16, (ROWS, CODEBOOKS)).astype(np.uint8)
    errors = [error(learned, rows, quantizer.encode(learned, rows, start, sweeps), moment) for sweeps in range(4)]
    assert all((b <= a + 1e-3 * a.mean()).all() for a, b in itertools.pairwise(errors))
    np.testing.assert_array_equal(quantizer.encode(learned, rows, start, 0), start)


def test_learning_beats_its_start_and_weighting_serves_the_queries(learned, rows, moment):
    center = rows.mean(0)
    first = product_quantization.first_codes(rows - center, moment, CODEBOOKS, 0)
    start = error(quantizer.regress(rows, first, center, moment), rows, first, moment).mean()
    final = error(learned, rows, quantizer.encode(learned, rows), moment).mean()
    assert final < 0.95 * start
    plain = quantizer.learn(rows, np.eye(FEATURES), CODEBOOKS, 0, lambda: None)
    assert final < 0.9 * error(plain, rows, quantizer.encode(plain, rows), moment).mean()


def test_prototypes_solve_the_regression(rows, moment):
    center = rows.mean(0)
    codes = product_quantization.first_codes(rows - center, moment, CODEBOOKS, 0)
    found = quantizer.regress(rows, codes, center, moment)
    one_hot = (codes[:, :, None] == np.arange(16)).reshape(len(rows), -1).astype(np.float64)
    best = one_hot @ np.linalg.lstsq(one_hot, np.float64(rows - center), rcond=None)[0]
    least = ((rows - center - best) ** 2).sum()
    assert least <= (left(found, rows, codes) ** 2).sum() < 1.02 * least  # ridge costs a little


def test_k_means_finds_clusters_and_rows_that_do_not_count_play_no_part():
    rng = np.random.default_rng(0)
    means = 100 * rng.standard_normal((16, 2, 3))
    labels = rng.integers(0, 16, 320)
    z = np.float32(means[labels] + rng.standard_normal((320, 2, 3)))
    z[300:] = 1e6
    codes = np.asarray(product_quantization.k_means(z, np.arange(320) < 300, jax.random.key(0)))[:300]
    for c in range(2):
        pairs = {(int(a), int(b)) for a, b in zip(labels[:300], codes[:, c], strict=True)}
        assert len(pairs) == 16  # each cluster a code of its own


@pytest.mark.parametrize(("features", "codebooks"), [(1, 1), (7, 3), (8, 4), (9, 4), (13, 12)])
def test_deal_gives_every_component_to_one_group(features, codebooks):
    groups = product_quantization.deal(np.geomspace(100, 1e-12, features), codebooks)
    assert sorted(groups[groups >= 0]) == list(range(features))
    assert groups.shape == (codebooks, -(-features // codebooks))


def test_tables_are_within_half_a_step(learned, rows):
    codes = quantizer.encode(learned, rows)
    index = VectorIndex(pack(jnp.asarray(codes)), learned, jnp.arange(ROWS), None, None, None, "ip", ROWS)
    queries = np.float32(np.random.default_rng(3).standard_normal((4, FEATURES - 1)))
    entries, scale, offset = (np.asarray(a, np.float64) for a in tables_of(queries, index))
    assert entries.min() == 0
    assert (entries.max((1, 2)) == MAX_ENTRY).all()
    approximate = scale[:, None] * entries[:, np.arange(CODEBOOKS), codes].sum(-1) + offset[:, None]
    vectors = rows - left(learned, rows, codes)  # what the codes stand for
    want = queries @ vectors[:, :-1].T + vectors[:, -1]
    assert (np.abs(approximate - want) <= scale[:, None] * (CODEBOOKS / 2 + 0.01)).all()


def test_tables_of_zero_queries_are_zero(learned):
    index = VectorIndex(jnp.zeros((0, 2, 64), jnp.uint8), learned, jnp.arange(0), None, None, None, "ip", 0)
    flat = learned._replace(constants=jnp.zeros_like(learned.constants))
    entries, scale, _ = tables_of(jnp.zeros((1, FEATURES - 1)), VectorIndex(**(vars(index) | {"quantizer": flat})))
    assert not entries.any()
    assert not scale.any()
