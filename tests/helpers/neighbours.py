"""Small sets of vectors, their true neighbours, and comparisons of indexes."""

import jax
import numpy as np

from jax_maddness import search

FEATURES, CODEBOOKS, COUNT, NUM_LISTS = 16, 4, 600, 9
jitted = jax.jit(search, static_argnames=("k", "num_candidates", "recall", "metric"))


def clustered(seed, rows):
    """Rows near a plane of six dimensions, as real vectors have fewer dimensions than features."""
    plane = np.random.default_rng(0).standard_normal((6, FEATURES))
    return np.float32(np.random.default_rng(seed).standard_normal((rows, 6)) @ plane)


def by_hand(queries, vectors, metric, k, bias=0.0):
    """The scores of all vectors in float64, and the `k` best: of equal ones the lower position first."""
    q, v = np.float64(queries), np.float64(vectors)
    if metric == "cosine":
        q, v = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30) for a in (q, v))
    scores = q @ v.T + bias
    if metric == "l2":
        scores = np.stack([-((one - v) ** 2).sum(-1) for one in q])  # all differences at once take a gigabyte
    return scores, np.argsort(-scores, axis=1, kind="stable")[:, :k]


def found(ids, truth):
    """The share of the true neighbours that were found."""
    return np.mean([np.isin(t, i).mean() for t, i in zip(truth, np.asarray(ids), strict=True)])


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
