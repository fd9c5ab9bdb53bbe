"""Shared by all tests: four host devices, every backend and tier as a fixture, small random ops."""

import os
import zlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import jax.numpy as jnp
import numpy as np
import pytest

from jax_maddness import LookupTables, MaddnessOp, SplitTrees, testing
from jax_maddness.core import ffi

SPECIAL = np.array(
    [0.0, -0.0, 1.0, np.nan, -np.nan, np.inf, -np.inf, 1e-40, -1e-40, 1.1754944e-38, 3.4028235e38], np.float32
)


@pytest.fixture(params=["jax", *ffi.supported_tiers()])
def tier(request):
    """Pure JAX, then every tier that this CPU supports: a new one is tested the day it is added."""
    if request.param == "jax":
        with testing.force_backend("jax"):
            yield request.param
    else:
        with testing.force_tier(request.param):
            yield request.param


@pytest.fixture
def rng(request):
    """The same numbers for the same test, whatever ran before."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def op(rng):
    """8 features, 3 codebooks, 5 outputs, weights kept."""
    return random_op(rng, 8, 3, 5, weights=True)


@pytest.fixture
def x(rng):
    """12 rows for `op`."""
    return jnp.asarray(random_rows(rng, 12, 8))


def random_rows(rng, rows, features, special=0.0):
    """Normal rows, a share `special` of them NaN, infinities, zeros of both signs, denormals."""
    x = rng.standard_normal((rows, features)).astype(np.float32)
    return np.where(rng.random(x.shape) < special, rng.choice(SPECIAL, x.shape), x)


def random_trees(rng, features, codebooks, special=0.0):
    """Trees over any features; a share `special` of the thresholds is taken from the awkward ones."""
    indices = rng.integers(0, features, (codebooks, 4), np.int32)
    thresholds = random_rows(rng, codebooks, 15, special)
    return SplitTrees(jnp.asarray(indices), jnp.asarray(thresholds), features)


def random_tables(rng, codebooks, outputs):
    """Tables that use the whole range of their 8 bits."""
    values = rng.integers(0, 256, (outputs, codebooks, 16), np.uint8)
    scale = rng.uniform(0.1, 1.0, outputs).astype(np.float32)
    offset = rng.standard_normal(outputs).astype(np.float32)
    return LookupTables(jnp.asarray(values), jnp.asarray(scale), jnp.asarray(offset))


def random_op(rng, features, codebooks, outputs, weights=False):
    """An op with random contents; its outputs mean nothing, but are well defined."""
    w = jnp.asarray(rng.standard_normal((features, outputs)), jnp.float32) if weights else None
    return MaddnessOp(random_trees(rng, features, codebooks), random_tables(rng, codebooks, outputs), w)
