"""The choice of backend and tier in fresh processes, and the extension's absence or mismatch."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import needs_kernels, random_op

from jax_maddness import amm
from jax_maddness.__main__ import main
from jax_maddness.core import ffi

CPU_FLAGS = {  # what /proc/cpuinfo must list for a tier to be supported
    "avx512amx": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vnni", "amx_tile", "amx_int8"},
    "avx512vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vnni"},
    "avx512bw": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma", "f16c"},
}

RUN = """
import numpy as np, jax_maddness as jm
op = jm.MaddnessOp(jm.SplitTrees(np.zeros((1, 4), 'i'), np.zeros((1, 15), 'f'), 2),
                   jm.LookupTables(np.ones((3, 1, 16), np.uint8), np.ones(3, 'f'), np.zeros(3, 'f')))
print(np.asarray(jm.amm(np.zeros((2, 2), np.float32), op)).sum(), jm.active_tier())
"""


def run(code, **environment):
    """Runs `code` in a fresh process; returns (exit status, what it printed, errors included)."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@needs_kernels
def test_the_default_tier_is_the_best_that_this_cpu_has():
    with open("/proc/cpuinfo") as lines:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", lines.read(), re.MULTILINE)
    flags = set(found.group(1).split())
    able = [tier for tier in ffi.tiers() if CPU_FLAGS.get(tier, set()) <= flags]
    if "avx512amx" not in ffi.supported_tiers():  # Linux may refuse a process the state of tiles
        able = [tier for tier in able if tier != "avx512amx"]
    assert ffi.supported_tiers() == tuple(able)
    assert ffi.supported_tiers()[-1] == "scalar"
    if "JAX_MADDNESS_TIER" not in os.environ:
        assert ffi.active_tier() == able[0]


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("tier", ffi.supported_tiers())
def test_the_environment_forces_a_tier(tier):
    assert run(RUN, JAX_MADDNESS_TIER=tier) == (0, f"6.0 {tier}\n")


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("tier", ["mmx", *(t for t in ffi.tiers() if t not in ffi.supported_tiers())])
def test_a_tier_that_cannot_run_is_an_error(tier):
    status, text = run(RUN, JAX_MADDNESS_TIER=tier)
    assert status != 0
    assert f"JAX_MADDNESS_TIER asks for the tier '{tier}'" in text
    assert "choose one of" in text


@pytest.mark.slow
def test_the_environment_switches_the_kernels_off():
    status, text = run(
        RUN + "import jax; print('custom_call' in jax.jit(jm.amm).lower(np.zeros((2, 2), 'f'), op).as_text())",
        JAX_MADDNESS_BACKEND="jax",
    )
    assert (status, text.split()[0], text.split()[-1]) == (0, "6.0", "False")


def test_an_unknown_backend_is_an_error(monkeypatch, rng):
    monkeypatch.setenv("JAX_MADDNESS_BACKEND", "gpu")
    with pytest.raises(ValueError, match="expected one of auto, ffi, jax"):
        amm(np.zeros((19, 23), np.float32), random_op(rng, 23, 7, 3))  # of no other test: what is traced stays


@pytest.mark.slow
def test_a_missing_extension_warns_once_and_falls_back():
    hide = "import sys; sys.modules['jax_maddness._ffi'] = None\n"
    again = "jm.amm(np.zeros((5, 2), np.float32), op); print('twice')\n"
    forced = "import os; os.environ['JAX_MADDNESS_BACKEND'] = 'ffi'; jm.amm(np.zeros((7, 2), np.float32), op)"
    status, text = run(hide + RUN + again + forced)
    assert text.count("jax_maddness runs in pure JAX, much slower on CPU: the extension") == 1
    assert "6.0 None" in text
    assert "twice" in text
    assert status != 0
    assert "the kernels cannot be used" in text


@pytest.mark.slow
def test_an_extension_that_cannot_be_loaded_says_why():
    broken = (
        "import importlib as i; original = i.import_module\n"
        "def load(name, *_, **__):\n  if name == 'jax_maddness._ffi': raise ImportError('GLIBCXX_9 not found')\n"
        "  return original(name, *_, **__)\ni.import_module = load\n"
    )
    status, text = run(broken + RUN)
    assert status == 0, text
    assert "could not be loaded: GLIBCXX_9 not found" in text


@pytest.mark.slow
@needs_kernels
def test_an_extension_newer_than_jaxlib_warns_and_is_never_registered():
    newer = (
        "import sys, types; m = sys.modules['jax_maddness._ffi'] = types.ModuleType('jax_maddness._ffi')\n"
        "m.api_version = lambda: (0, 99)\nm.registrations = None\n"
    )
    status, text = run(newer + "import jax_maddness; print('imported')\n" + RUN)
    assert status == 0, text
    assert text.startswith("imported")
    assert "built for XLA FFI (0, 99)" in text
    assert "upgrade jaxlib" in text
    assert "6.0 None" in text


@needs_kernels
def test_the_api_versions_are_known():
    built, running = ffi.api_versions()
    assert built <= running


def call(target, result, *args):
    return np.asarray(jax.jit(lambda *a: jax.ffi.ffi_call(target, result)(*a))(*args))


@needs_kernels
@pytest.mark.parametrize(
    ("x", "indices", "thresholds"),
    [
        ((1, 2, 5), (1, 3, 4), (1, 3, 14)),
        ((1, 2, 5), (1, 3, 5), (1, 3, 15)),
        ((1, 2, 5), (1, 4, 4), (1, 3, 15)),
        ((2, 2, 5), (1, 3, 4), (1, 3, 15)),
        ((1, 2, 0), (1, 3, 4), (1, 3, 15)),
        ((5,), (1, 3, 4), (1, 3, 15)),
        ((1, 2, 5), (3, 4), (1, 3, 15)),
    ],
)
def test_the_handler_checks_every_size_itself(x, indices, thresholds):
    args = jnp.zeros(x), jnp.zeros(indices, jnp.int32), jnp.zeros(thresholds)
    with pytest.raises(Exception, match=r"(?i)invalid"):
        call("jax_maddness_encode", jax.ShapeDtypeStruct((1, 2, 3), jnp.uint8), *args)


@needs_kernels
def test_the_handler_checks_dtypes_results_and_indices():
    x, thresholds = jnp.zeros((1, 2, 5)), jnp.zeros((1, 3, 15))
    codes = jax.ShapeDtypeStruct((1, 2, 3), jnp.uint8)
    for bad in (-1, 5, 2**31 - 1):
        with pytest.raises(Exception, match="indices"):
            call("jax_maddness_encode", codes, x, jnp.full((1, 3, 4), bad, jnp.int32), thresholds)
    indices = jnp.zeros((1, 3, 4), jnp.int32)
    for wrong in ((1, 2, 4), (1, 3, 3), (2, 2, 3), (2, 3)):
        with pytest.raises(Exception, match=r"(?i)invalid"):
            call("jax_maddness_encode", jax.ShapeDtypeStruct(wrong, jnp.uint8), x, indices, thresholds)
    with pytest.raises(Exception, match=r"(?i)invalid|wrong"):
        call("jax_maddness_encode", codes, x.astype(jnp.int32), indices, thresholds)
    with pytest.raises(Exception, match=r"(?i)invalid|wrong"):
        call("jax_maddness_encode", codes, x, indices.astype(jnp.int16), thresholds)


OBLIQUE = {
    "x": ((1, 2, 5), jnp.float32),
    "features": ((1, 3, 4), jnp.int32),
    "projections": ((1, 3, 4, 4), jnp.int8),
    "thresholds": ((1, 3, 15), jnp.int32),
    "center": ((1, 5), jnp.float32),
    "scale": ((1, 5), jnp.float32),
}


def encode_oblique(codes=(1, 2, 3), fill=0, **changes):
    args = [
        jnp.full(shape, fill if name == "features" else 0, dtype)
        for name, (shape, dtype) in (OBLIQUE | changes).items()
    ]
    return call("jax_maddness_encode_oblique", jax.ShapeDtypeStruct(codes, jnp.uint8), *args)


@needs_kernels
@pytest.mark.parametrize(
    "changes",
    [
        {"x": ((1, 2, 6), jnp.float32)},
        {"x": ((2, 2, 5), jnp.float32)},
        {"x": ((1, 2, 5), jnp.int32)},
        {"features": ((1, 3, 5), jnp.int32)},
        {"features": ((3, 4), jnp.int32)},
        {"features": ((1, 3, 4), jnp.int16)},
        {"features": ((1, 3, 0), jnp.int32), "projections": ((1, 3, 4, 0), jnp.int8)},
        {"features": ((1, 3, 100_001), jnp.int32), "projections": ((1, 3, 4, 100_001), jnp.int8)},
        {"projections": ((1, 3, 4, 3), jnp.int8)},
        {"projections": ((1, 3, 4, 4), jnp.uint8)},
        {"thresholds": ((1, 3, 14), jnp.int32)},
        {"thresholds": ((1, 3, 15), jnp.float32)},
        {"center": ((1, 4), jnp.float32)},
        {"scale": ((5,), jnp.float32)},
        {"codes": (1, 2, 4)},
        {"fill": 5},
        {"fill": -1},
    ],
)
def test_the_handler_checks_oblique_trees_itself(changes):
    assert not encode_oblique().any()
    with pytest.raises(Exception, match=r"(?i)invalid|wrong"):
        encode_oblique(**changes)


def test_doctor_says_that_all_is_well(capsys):
    status = main(["doctor"])
    assert (status == 0) == ("All is well." in capsys.readouterr().out) == bool(ffi.supported_tiers())


@needs_kernels
@pytest.mark.parametrize("backend", ["jax", "gpu"])
def test_doctor_says_when_the_kernels_are_not_what_runs(backend, monkeypatch, capsys):
    monkeypatch.setenv("JAX_MADDNESS_BACKEND", backend)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "Not well" in text
    assert "JAX_MADDNESS_BACKEND" in text


@pytest.mark.slow
@needs_kernels
def test_doctor_finds_a_wrong_environment():
    status, text = run(
        "from jax_maddness.__main__ import main; raise SystemExit(main(['doctor']))", JAX_MADDNESS_TIER="x"
    )
    assert status == 1
    assert "Not well" in text
