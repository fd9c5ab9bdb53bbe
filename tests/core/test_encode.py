"""encode: every backend and tier gives the codes of the definition, on every float and every block edge."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import references
from helpers.ops import SPECIAL, put, random_oblique_trees, random_rows, random_trees
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jax_maddness import ObliqueTrees, SplitTrees, encode
from jax_maddness.core import ffi

compiled_definition = jax.jit(SplitTrees.definition)


def expected(x, trees):
    arrays = [np.asarray(a) for a in trees.arrays()]
    return (references.encode if isinstance(trees, SplitTrees) else references.encode_oblique)(x, *arrays)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 257])
@pytest.mark.parametrize(("features", "codebooks"), [(1, 1), (5, 3), (16, 4), (40, 5)])
def test_codes_equal_the_definition(tier, rng, rows, features, codebooks):
    x, trees = random_rows(rng, rows, features, special=0.2), random_trees(rng, features, codebooks, special=0.3)
    np.testing.assert_array_equal(encode(put(x), trees), expected(x, trees))


@pytest.mark.parametrize("codebooks", [1, 2, 15, 16, 17, 64, 130])
def test_codebooks_on_block_edges(tier, rng, codebooks):
    x, trees = random_rows(rng, 19, 33, special=0.1), random_trees(rng, 33, codebooks, special=0.2)
    np.testing.assert_array_equal(encode(x, trees), expected(x, trees))


@pytest.mark.parametrize("rows", [0, 1, 8, 17, 65, 257])
@pytest.mark.parametrize(("features", "codebooks"), [(1, 1), (40, 5), (33, 65)])
def test_codes_of_projections_equal_the_definition(tier, rng, rows, features, codebooks):
    x, trees = random_rows(rng, rows, features, 0.1), random_oblique_trees(rng, features, codebooks, special=0.1)
    np.testing.assert_array_equal(encode(put(x), trees), expected(x, trees))


def test_every_pair_of_awkward_floats_compares_as_ieee(tier):
    with np.errstate(over="ignore"):
        neighbours = np.concatenate([np.nextafter(SPECIAL, np.float32(s)) for s in (-np.inf, np.inf)])
    floats = np.concatenate([SPECIAL, neighbours]).astype(np.float32)
    thresholds = np.repeat(floats[:, None], 15, axis=1)
    trees = SplitTrees(jnp.zeros((len(floats), 4), jnp.int32), jnp.asarray(thresholds), 1)
    right = floats[:, None] > floats[None, :]
    np.testing.assert_array_equal(encode(floats[:, None], trees), np.where(right, 15, 0))


@pytest.mark.parametrize("width", [1, 3, 4, 5, 7, 64, 257])
def test_projections_of_any_width(tier, rng, width):
    x, trees = random_rows(rng, 37, 40, special=0.1), random_oblique_trees(rng, 40, 5, special=0.1, width=width)
    np.testing.assert_array_equal(encode(x, trees), expected(x, trees))


def test_the_largest_sums_are_exact(tier):
    """Steps of 127 times projections of 127, 100,000 of them; a threshold on either side of their sum."""
    x = np.full((3, 1), 1e9, np.float32) * np.array([[1], [-1], [np.nan]], np.float32)
    most = 127 * 127 * 100_000
    thresholds = jnp.asarray([[most - 1] * 15, [most] * 15, [-most] * 15, [-most - 1] * 15], jnp.int32)
    trees = ObliqueTrees(
        jnp.zeros((4, 100_000), jnp.int32),
        jnp.full((4, 4, 100_000), 127, jnp.int8),
        thresholds,
        jnp.zeros(1),
        jnp.ones(1),
    )
    np.testing.assert_array_equal(encode(x, trees), [[15, 0, 15, 15], [0, 0, 0, 15], [0, 0, 0, 15]])


def test_features_are_rounded_half_to_even_and_projections_tie_to_the_left(tier):
    halves = np.arange(-129, 130, dtype=np.float32) + np.float32(0.5)
    x = np.concatenate([halves, np.nextafter(halves, np.float32(-1e9)), np.nextafter(halves, np.float32(1e9))])[:, None]
    steps = np.arange(-128, 128, dtype=np.int32)
    trees = ObliqueTrees(
        jnp.zeros((256, 1), jnp.int32),
        jnp.ones((256, 4, 1), jnp.int8),
        jnp.asarray(np.repeat(steps[:, None], 15, 1)),
        jnp.zeros(1),
        jnp.ones(1),
    )
    right = np.clip(np.rint(x), -127, 127) > steps
    np.testing.assert_array_equal(encode(x, trees), np.where(right, 15, 0))


def test_rows_that_were_just_multiplied_are_rounded_first(tier, rng):
    """`a * b - center` must not become one operation, without the rounding of the product."""
    a = rng.uniform(1, 2, (500, 8)).astype(np.float32)
    b = 1 / a
    trees = random_oblique_trees(rng, 8, 16, width=8)
    trees = dataclasses.replace(trees, center=jnp.ones(8), scale=jnp.full(8, 2.0**25))
    codes = jax.jit(lambda a, b: encode(a * b, trees))(a, b)
    np.testing.assert_array_equal(codes, expected(a * b, trees))


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
    np.testing.assert_array_equal(compiled_definition(x[None], indices[None], thresholds[None])[0], codes)
    for tier in ffi.supported_tiers():
        ffi.set_tier(tier)
        np.testing.assert_array_equal(encode(x, trees), codes, err_msg=tier)
    if ffi.supported_tiers():
        ffi.set_tier(None)


def test_wrong_number_of_features_says_what_to_do(rng, make_trees):
    with pytest.raises(ValueError, match="`x` has 5 features, but `op` was learned from data with 6"):
        encode(np.zeros((2, 5), np.float32), make_trees(rng, 6, 2))


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": jnp.zeros((3, 6), jnp.int32)},
            r"trees\.projections` is int8\[2, 4, 6\]; expected int8\[3, 4, 6\]",
        ),
        ({"features": jnp.zeros(6, jnp.int32)}, r"trees\.features"),
        ({"projections": jnp.zeros((2, 4, 6), jnp.int32)}, r"trees\.projections` is int32.*expected int8"),
        ({"thresholds": jnp.zeros((2, 15))}, r"trees\.thresholds` is float32.*expected int32"),
        ({"center": jnp.zeros(7)}, r"trees\.center` is float32\[7\]; expected floating\[6\]"),
        ({"scale": jnp.zeros((), jnp.float32)}, r"trees\.scale"),
        (
            {"features": jnp.zeros((2, 0), jnp.int32), "projections": jnp.zeros((2, 4, 0), jnp.int8)},
            "projects 0 features",
        ),
        (
            {"features": jnp.zeros((2, 100_001), jnp.int32), "projections": jnp.zeros((2, 4, 100_001), jnp.int8)},
            "projects 100001 features per codebook; expected 1 to 100000",
        ),
    ],
)
def test_inconsistent_oblique_trees_are_refused(rng, change, message):
    trees = dataclasses.replace(random_oblique_trees(rng, 6, 2), **change)
    with pytest.raises(ValueError, match=message):
        encode(np.zeros((2, 6), np.float32), trees)


def test_without_a_number_of_features_that_of_the_center_counts(rng):
    trees = dataclasses.replace(random_oblique_trees(rng, 6, 2), num_features=None)
    assert encode(np.zeros((2, 6), np.float32), trees).shape == (2, 2)
    with pytest.raises(ValueError, match="`x` has 5 features"):
        encode(np.zeros((2, 5), np.float32), trees)
