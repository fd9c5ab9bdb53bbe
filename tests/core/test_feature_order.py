"""`fold_feature_order`: the same results from contiguous features, and from a layer before that computes only those."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import random_oblique_trees, random_op, random_term

from jax_maddness import amm, encode, fold_feature_order


@pytest.fixture
def layers(rng, make_trees):
    """op, h, w_before, b_before: small integers, so that products are exact in any order of summation."""
    op = random_op(rng, 24, 5, 7, weights=True, make_trees=make_trees)
    h, w, b = (jnp.asarray(rng.integers(-3, 4, shape), jnp.float32) for shape in ((50, 9), (9, 24), (24,)))
    return op, h, w, b


@pytest.mark.parametrize("activation", [lambda y: y, jax.nn.relu, jax.nn.gelu])
def test_codes_and_results_are_the_same(layers, activation):
    op, h, w, b = layers
    folded, w2, b2 = fold_feature_order(op, w, b)
    before, after = activation(h @ w + b), activation(h @ w2 + b2)
    np.testing.assert_array_equal(encode(after, folded.trees), encode(before, op.trees))
    np.testing.assert_array_equal(amm(after, folded), amm(before, op))
    assert after.shape == (50, folded.num_features)


def test_features_are_read_in_order(rng):
    op = random_op(rng, 24, 5, 7, make_trees=random_oblique_trees)
    folded, w, _ = fold_feature_order(op, jnp.zeros((3, 24)), jnp.zeros(24))
    np.testing.assert_array_equal(np.asarray(folded.trees.features).reshape(-1), np.arange(folded.trees.features.size))
    assert w.shape == (3, folded.trees.features.size)


def test_an_op_with_a_term_is_refused(rng):
    op = dataclasses.replace(random_op(rng, 8, 3, 5), term=random_term(rng, 8, 5, 2, 0))
    with pytest.raises(ValueError, match="`op` has ExactTerm beside its look-ups, which reads all features"):
        fold_feature_order(op, jnp.zeros((3, 8)), jnp.zeros(8))


def test_axis_trees_need_at_most_four_features_per_codebook(rng):
    op = random_op(rng, 500, 5, 7)
    trees = dataclasses.replace(op.trees, indices=op.trees.indices.at[2].set(jnp.array([9, 9, 400, 9])))
    folded, w, _ = fold_feature_order(dataclasses.replace(op, trees=trees), jnp.zeros((3, 500)), jnp.zeros(500))
    assert folded.trees.indices[2].tolist() == [8, 8, 9, 8]
    assert w.shape == (3, 18)
    assert folded.num_features == 18


def test_gradients_pass_through_repeated_features(layers):
    """The derivative with respect to `h` is that of the exact product of the features that are read."""
    op, h, w, b = layers
    folded, w2, b2 = fold_feature_order(op, w, b)
    read = np.isin(np.arange(24), np.asarray(op.trees.features if hasattr(op.trees, "features") else op.trees.indices))
    exact = (w * read) @ op.weights
    gradient = jax.grad(lambda h: amm(h @ w2 + b2, folded).sum())(h)
    np.testing.assert_allclose(gradient, jnp.broadcast_to(exact.sum(1), h.shape), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_an_error(rng):
    op = random_op(rng, 24, 5, 7)
    with pytest.raises(ValueError, match=r"expected \[inputs, 24\] and \(24,\)"):
        fold_feature_order(op, np.zeros((3, 23)), np.zeros(23))
    with pytest.raises(ValueError, match=r"`b_before` \(23,\)"):
        fold_feature_order(op, np.zeros((3, 24)), np.zeros(23))
    with pytest.raises(ValueError, match="a stack of ops"):
        fold_feature_order(jax.tree.map(lambda a: a[None], op), np.zeros((3, 24)), np.zeros(24))
    with pytest.raises(TypeError, match="`op` is str"):
        fold_feature_order("op", np.zeros((3, 24)), np.zeros(24))
