"""Small random rows, trees, tables and ops, and the mark of tests that need the kernels."""

import dataclasses

import jax
import numpy as np
import pytest

from jax_maddness import ExactTerm, Factors, LookupTables, MaddnessOp, ObliqueTrees, SplitTrees
from jax_maddness.core import ffi, int8

put = jax.device_put
"""NumPy to JAX: jnp.asarray would compile a program for every shape."""

SPECIAL = np.array(
    [0.0, -0.0, 1.0, np.nan, -np.nan, np.inf, -np.inf, 1e-40, -1e-40, 1.1754944e-38, 3.4028235e38], np.float32
)

needs_kernels = pytest.mark.skipif(not ffi.supported_tiers(), reason="the extension is not installed")
"""For pure-JAX installations only: CI runs `make doctor` first, which fails where the kernels are missing."""


def random_rows(rng, rows, features, special=0.0):
    """Normal rows, a share `special` of them NaN, infinities, zeros of both signs, denormals."""
    x = rng.standard_normal((rows, features)).astype(np.float32)
    return np.where(rng.random(x.shape) < special, rng.choice(SPECIAL, x.shape), x)


def random_trees(rng, features, codebooks, special=0.0):
    """Trees over any features; a share `special` of the thresholds is taken from the awkward ones."""
    indices = rng.integers(0, features, (codebooks, 4), np.int32)
    thresholds = random_rows(rng, codebooks, 15, special)
    return SplitTrees(put(indices), put(thresholds), features)


def random_oblique_trees(rng, features, codebooks, special=0.0, width=None):
    """Trees that project `width` features each, overlapping and in any order; `special` adds awkward contents.

    Thresholds are often values that a row can reach, so that there are ties.
    """
    width = width or max(1, 2 * features // codebooks)
    chosen = rng.integers(0, features, (codebooks, width), np.int32)
    projections = rng.integers(-127, 128, (codebooks, 4, width)).astype(np.int8)
    projections[rng.random(projections.shape) < special] = 127
    thresholds = rng.integers(-9000, 9000, (codebooks, 15)).astype(np.int32)
    thresholds[rng.random(thresholds.shape) < special] = rng.choice([0, -(2**31), 2**31 - 1])
    center = rng.standard_normal(features).astype(np.float32)
    scale = rng.uniform(10.0, 100.0, features).astype(np.float32)
    awkward = rng.random(features) < special
    center[awkward], scale[awkward] = 0.0, rng.choice(np.array([0.0, 0.5, 2.0**-100, 2.0**100], np.float32))
    return ObliqueTrees(*put((chosen, projections, thresholds, center, scale)), features)


TREES = {"axis": random_trees, "oblique": random_oblique_trees}
"""Functions that make random trees, by kind."""


def random_tables(rng, codebooks, outputs):
    """Tables that use the whole range of their 8 bits."""
    values = rng.integers(0, 256, (outputs, codebooks, 16), np.uint8)
    scale = rng.uniform(0.1, 1.0, outputs).astype(np.float32)
    offset = rng.standard_normal(outputs).astype(np.float32)
    return LookupTables(*put((values, scale, offset)))


def random_term(rng, features, outputs, chosen, directions):
    """An exact term of so many features and directions."""
    up = rng.standard_normal((chosen + directions, outputs)).astype(np.float32)
    indices = put(rng.integers(0, features, chosen, np.int32)) if chosen else None
    down = put(rng.standard_normal((features, directions)).astype(np.float32)) if directions else None
    return ExactTerm(put(up), indices, down)


def random_int8_matrix(rng, inner, outer):
    """A matrix of an int8 product, in groups of four."""
    return int8.grouped(rng.integers(-127, 128, (inner, outer)).astype(np.int8))


def random_factors(rng, features, rank, outputs, codebooks=0, weights=False, make_trees=random_trees):
    """An op with int8 factors, alone or beside look-ups; few projections are clipped."""
    op = random_op(rng, features, codebooks, outputs, weights, make_trees if codebooks else _no_trees)
    center = rng.standard_normal(features).astype(np.float32)
    scale = rng.uniform(10.0, 100.0, features).astype(np.float32)
    steps = (rng.uniform(0.01, 0.02, rank) / np.sqrt(features)).astype(np.float32)
    down, up = random_int8_matrix(rng, features, rank), random_int8_matrix(rng, rank, outputs)
    shift = put(rng.integers(0, 5, outputs).astype(np.uint8))
    return dataclasses.replace(op, term=Factors(put(center), put(scale), down, put(steps), up, shift))


def random_int8(rng, kind, features, outputs, weights=False):
    """An op that is a whole product in int8."""
    op = random_op(rng, features, 0, outputs, weights, _no_trees)
    center = rng.standard_normal(features).astype(np.float32)
    scale = rng.uniform(10.0, 100.0, features).astype(np.float32)
    return dataclasses.replace(op, term=kind(put(center), put(scale), random_int8_matrix(rng, features, outputs)))


def _no_trees(rng, features, codebooks):
    return SplitTrees.placeholder(features, codebooks, 0)


def random_op(rng, features, codebooks, outputs, weights=False, make_trees=random_trees):
    """An op with random contents; its outputs mean nothing, but are well defined."""
    w = put(rng.standard_normal((features, outputs)).astype(np.float32)) if weights else None
    return MaddnessOp(make_trees(rng, features, codebooks), random_tables(rng, codebooks, outputs), w)
