"""encode: every backend and tier gives the codes of the definition, on every float and every block edge."""

import jax.numpy as jnp
import numpy as np
import pytest
import references
from conftest import SPECIAL, random_rows, random_trees
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jax_maddness import SplitTrees, encode
from jax_maddness.core import encode as encode_module
from jax_maddness.core import ffi


def expected(x, trees):
    return references.encode(x, np.asarray(trees.indices), np.asarray(trees.thresholds))


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 257])
@pytest.mark.parametrize(("features", "codebooks"), [(1, 1), (5, 3), (16, 4), (40, 5)])
def test_codes_equal_the_definition(tier, rng, rows, features, codebooks):
    x, trees = random_rows(rng, rows, features, special=0.2), random_trees(rng, features, codebooks, special=0.3)
    np.testing.assert_array_equal(encode(x, trees), expected(x, trees))


@pytest.mark.parametrize("codebooks", [1, 2, 15, 16, 17, 64, 130])
def test_codebooks_on_block_edges(tier, rng, codebooks):
    x, trees = random_rows(rng, 19, 33, special=0.1), random_trees(rng, 33, codebooks, special=0.2)
    np.testing.assert_array_equal(encode(x, trees), expected(x, trees))


def test_every_pair_of_awkward_floats_compares_as_ieee(tier):
    with np.errstate(over="ignore"):
        neighbours = np.concatenate([np.nextafter(SPECIAL, np.float32(s)) for s in (-np.inf, np.inf)])
    floats = np.concatenate([SPECIAL, neighbours]).astype(np.float32)
    thresholds = np.repeat(floats[:, None], 15, axis=1)
    trees = SplitTrees(jnp.zeros((len(floats), 4), jnp.int32), jnp.asarray(thresholds), 1)
    right = floats[:, None] > floats[None, :]
    np.testing.assert_array_equal(encode(floats[:, None], trees), np.where(right, 15, 0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_every_16_bit_float_is_widened_exactly(tier, dtype):
    x = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(-1, 64)
    thresholds = np.linspace(-2, 2, 64 * 15, dtype=np.float32).reshape(64, 15)
    thresholds[::3] *= 1e-7  # among float16's denormals
    thresholds[1::3] *= 1e-38  # among bfloat16's
    trees = SplitTrees(jnp.asarray(np.repeat(np.arange(64)[:, None], 4, 1), jnp.int32), jnp.asarray(thresholds), 64)
    np.testing.assert_array_equal(encode(x, trees), expected(x.astype(np.float32), trees))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 0, 3), (1, 2, 3, 4)])
def test_any_leading_dimensions(tier, rng, lead):
    trees = random_trees(rng, 6, 2)
    x = random_rows(rng, int(np.prod(lead, dtype=int)), 6)
    assert encode(x.reshape(*lead, 6), trees).shape == (*lead, 2)
    np.testing.assert_array_equal(encode(x.reshape(*lead, 6), trees).reshape(-1, 2), expected(x, trees))


@settings(max_examples=50, deadline=None)
@given(
    x=hnp.arrays(np.float32, (9, 5), elements=st.floats(width=32)),
    thresholds=hnp.arrays(np.float32, (3, 15), elements=st.floats(width=32)),
    indices=hnp.arrays(np.int32, (3, 4), elements=st.integers(0, 4)),
)
def test_property_any_floats(x, thresholds, indices):
    trees = SplitTrees(jnp.asarray(indices), jnp.asarray(thresholds), 5)
    codes = references.encode(x, indices, thresholds)
    np.testing.assert_array_equal(encode_module.definition(x[None], indices[None], thresholds[None])[0], codes)
    for tier in ffi.supported_tiers():
        ffi.set_tier(tier)
        np.testing.assert_array_equal(encode(x, trees), codes, err_msg=tier)
    if ffi.supported_tiers():
        ffi.set_tier(None)


def test_wrong_number_of_features_says_what_to_do(rng):
    with pytest.raises(ValueError, match="`x` has 5 features, but `op` was learned from data with 6"):
        encode(np.zeros((2, 5), np.float32), random_trees(rng, 6, 2))


@pytest.mark.parametrize("x", [np.zeros((2, 6), np.int32), np.zeros((2, 6), np.complex64), [[0.0] * 6]])
def test_wrong_dtype_says_what_to_do(rng, x):
    with pytest.raises(TypeError, match=r"`x` is .*(Cast it|asarray)"):
        encode(x, random_trees(rng, 6, 2))


def test_a_scalar_is_no_row(rng):
    with pytest.raises(ValueError, match=r"`x` has shape \(\)"):
        encode(np.float32(1), random_trees(rng, 6, 2))


def test_inconsistent_trees_are_refused():
    with pytest.raises(ValueError, match=r"trees\.thresholds"):
        encode(np.zeros((2, 6), np.float32), SplitTrees(jnp.zeros((2, 4), jnp.int32), jnp.zeros((3, 15)), 6))
