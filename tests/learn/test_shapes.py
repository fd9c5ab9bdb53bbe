"""Padded shapes: layers of a model share their compilations, and padding changes nothing."""

import numpy as np
import pytest
from helpers.ops import random_oblique_trees, random_rows
from helpers.programs import count_compilations

from jax_maddness import FitConfig, SplitTrees, encode, fit
from jax_maddness.learn.data import shapes


@pytest.mark.parametrize("size", [*range(1, 40), 1151, 1152, 5000, 100_000])
def test_rounded_sizes_are_few_and_close(size):
    rounded = shapes.rounded(size, 8)
    assert rounded >= max(size, 8)
    assert rounded == 8 or rounded < 1.25 * size
    assert shapes.rounded(rounded, 8) == rounded


def test_there_are_four_sizes_to_an_octave():
    assert len({shapes.rounded(n, 8) for n in range(513, 1025)}) == 4


def test_padded_trees_give_the_same_codes_and_then_zeros(op, x):
    padded = op.trees.padded(7, 8, 4)
    wide = np.pad(np.asarray(x), ((0, 0), (0, 5)))
    codes = np.asarray(encode(wide, padded))
    np.testing.assert_array_equal(codes[:, :3], encode(x, op.trees))
    assert not codes[:, 3:].any()
    assert isinstance(padded, SplitTrees)


def test_padded_oblique_trees_give_the_same_codes_and_then_zeros(rng):
    x, trees = random_rows(rng, 50, 10), random_oblique_trees(rng, 10, 3)
    padded = trees.padded(5, 16, 8)
    codes = np.asarray(encode(np.pad(x, ((0, 0), (0, 6))), padded))
    np.testing.assert_array_equal(codes[:, :3], encode(x, trees))
    assert not codes[:, 3:].any()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["paper", "axis", "oblique"])
def test_layers_of_a_model_share_compilations(rng, method):
    """The first of three similar layers compiles, the others do not."""
    config = FitConfig(method=method)
    compiled = []
    for rows, features, outputs, codebooks in ((120, 12, 30, 4), (117, 16, 31, 4), (121, 14, 32, 4)):
        x = rng.standard_normal((rows, features)).astype(np.float32)
        w = rng.standard_normal((features, outputs)).astype(np.float32)
        with count_compilations() as names:
            fit(x, w, num_codebooks=codebooks, config=config)
        compiled.append(names)
    assert compiled[1] == []
    assert compiled[2] == []
