"""Shared by all tests: four host devices, every backend and tier as a fixture, small random ops."""

import dataclasses
import gc
import importlib.metadata
import os
import pathlib
import zlib

# Most of the time goes into compiling. It takes less than half as long without LLVM's optimizations and, where XLA has
# both, with its older emitters. What another test, process or run has compiled is not compiled again, however small.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
        *["--xla_cpu_use_fusion_emitters=false"] * importlib.metadata.version("jaxlib").startswith(("0.9.", "0.10.")),
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache/xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["JAX_MADDNESS_COSTS"] = str(pathlib.Path(__file__).parents[1] / ".pytest_cache/costs.json")

import numpy as np
import pytest
from helpers.memory import MemoryGuard
from helpers.ops import TREES, put, random_op, random_rows, random_term
from helpers.shapes import check_public_functions

from jax_maddness import testing
from jax_maddness.core import ffi

collect_ignore = ["fuzz/guided.py"]  # it needs atheris, and has no tests

check_public_functions()

# Tracing makes objects by the million, few of them in cycles: a quarter of the time went into looking for those.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 20, 20)

# Two workers, a browser and an editor fit a laptop of 8 GB. The aim is 1.5 GB (measured: 1.42); peaks vary with the
# order of the tests and with what must be compiled anew, so that a run fails only when it is missed by far.
MAX_WORKER_MEMORY = 2e9


def pytest_addoption(parser):
    """Adds the option with which `make test-matrix` makes sure that it tests the wheel."""
    parser.addoption("--installed", action="store_true", help="fail unless jax_maddness is an installed wheel")


def pytest_configure(config):
    """Registers the guard for the doctests of the package, too, which are outside of this file's folder."""
    if config.getoption("--installed") and "site-packages" not in pathlib.Path(testing.__file__).parts:
        raise pytest.UsageError(f"jax_maddness is imported from {testing.__file__}, not from an installed wheel")
    config.pluginmanager.register(MemoryGuard(MAX_WORKER_MEMORY))


@pytest.fixture(params=["jax", *ffi.supported_tiers()])
def tier(request):
    """Pure JAX, then every tier that this CPU supports: a new one is tested the day it is added."""
    if request.param == "jax":
        with testing.force_backend("jax"):
            yield request.param
    else:
        with testing.force_tier(request.param):
            yield request.param


@pytest.fixture(params=["jax", "auto"])
def backend(request):
    """Pure JAX, then the kernels on the best tier: for what JAX does around them, which knows no tiers."""
    with testing.force_backend(request.param):
        yield request.param


@pytest.fixture
def rng(request):
    """The same numbers for the same test, whatever ran before."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def op(rng):
    """8 features, 3 codebooks, 5 outputs, weights kept."""
    return random_op(rng, 8, 3, 5, weights=True)


@pytest.fixture(params=["axis", "oblique", "oblique, exact term"])
def any_op(request, rng):
    """The same with trees of every kind, with an exact term and without."""
    kind, *exact = request.param.split(", ")
    op = random_op(rng, 8, 3, 5, weights=True, make_trees=TREES[kind])
    return dataclasses.replace(op, term=random_term(rng, 8, 5, 2, 3)) if exact else op


@pytest.fixture
def x(rng):
    """12 rows for `op`."""
    return put(random_rows(rng, 12, 8))


@pytest.fixture(params=TREES)
def make_trees(request):
    return TREES[request.param]
