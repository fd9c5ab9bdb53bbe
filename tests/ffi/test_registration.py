"""After `import jax_maddness` alone, exported modules and executables of other processes run; it has no other effect.

Everything runs in fresh processes: this one has imported the package and started a backend.
"""

import os
import pickle
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.ops import needs_kernels, random_oblique_trees, random_op
from jax import export
from jax.experimental import serialize_executable

import jax_maddness
from jax_maddness import amm
from jax_maddness.core import ffi


def run(code, *args, **environment):
    """Runs `code` in a fresh process; returns what it printed, after a check of its exit status."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        # No cache of programs: older versions of XLA print what they think of the machine when they load one.
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


RUN_EXPORT = """
import sys, numpy as np, jax, jax_maddness
folder = sys.argv[1]
exported = jax.export.deserialize(bytearray(open(folder + "/module", "rb").read()))
np.save(folder + "/y.npy", jax.jit(exported.call)(np.load(folder + "/x.npy")))
"""


@needs_kernels
@pytest.mark.parametrize("kind", ["axis", "oblique"])
def test_an_exported_module_runs_in_a_process_that_only_imports_the_package(kind, rng, x, op, tmp_path):
    if kind == "oblique":
        op = random_op(rng, 8, 3, 5, make_trees=random_oblique_trees)
    checks = jax_maddness.disabled_export_checks()
    exported = export.export(jax.jit(lambda x: amm(x, op)), disabled_checks=checks)(x)
    (tmp_path / "module").write_bytes(exported.serialize())
    np.save(tmp_path / "x.npy", x)
    assert run(RUN_EXPORT, tmp_path) == ""
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), amm(x, op))


RUN_EXECUTABLE = """
import pickle, sys, numpy as np, jax, jax_maddness
from jax.experimental import serialize_executable
folder = sys.argv[1]
with open(folder + "/executable", "rb") as file:
    call = serialize_executable.deserialize_and_load(*pickle.load(file), execution_devices=jax.devices()[:1])
np.save(folder + "/y.npy", call(np.load(folder + "/x.npy")))
"""


@needs_kernels
def test_a_serialised_executable_runs_in_a_process_that_only_imports_the_package(x, op, tmp_path):

    compiled = jax.jit(lambda x: amm(x, op)).lower(x).compile()
    (tmp_path / "executable").write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
    np.save(tmp_path / "x.npy", x)
    run(RUN_EXECUTABLE, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), amm(x, op))


def test_importing_starts_no_backend_and_does_not_import_flax():
    code = (
        "import os, sys, jax, jax_maddness\n"
        "assert 'flax' not in sys.modules\n"
        "os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=3'\n"
        "print(jax.device_count())"
    )
    assert run(code, XLA_FLAGS="", JAX_PLATFORMS="cpu").strip() == "3"


def test_the_pure_backend_does_not_load_the_extension_at_import():
    code = "import sys, jax_maddness; print('jax_maddness._ffi' in sys.modules)"
    assert run(code, JAX_MADDNESS_BACKEND="jax").strip() == "False"
    assert run(code, JAX_MADDNESS_BACKEND="auto").strip() == str(bool(ffi.supported_tiers()))


@pytest.mark.parametrize(
    "broken",
    [
        "import sys; sys.modules['jax_maddness._ffi'] = None",
        "import importlib as i; original = i.import_module\n"
        "def load(name, *_, **__):\n  if name == 'jax_maddness._ffi': raise ImportError('GLIBCXX_9 not found')\n"
        "  return original(name, *_, **__)\ni.import_module = load",
    ],
)
@pytest.mark.parametrize("backend", ["auto", "ffi", "unknown"])
def test_importing_says_nothing_where_the_kernels_cannot_be_used(broken, backend):
    assert run(f"{broken}\nimport jax_maddness", JAX_MADDNESS_BACKEND=backend) == ""


@pytest.mark.parametrize("name", ["jax", "jaxlib"])
def test_a_jax_that_is_too_old_is_an_import_error_that_says_what_to_install(name):
    old = {"jax": "jax.__version__ = '0.7.9'", "jaxlib": "jax.lib.__version__ = '0.8.2.dev1'"}[name]
    code = f"import jax, jax.lib; {old}; jax.jit = None\ntry: import jax_maddness\nexcept ImportError as e: print(e)"
    text = run(code)
    assert re.fullmatch(rf"jax_maddness needs {name} >= [\d.]+, but 0\S+ is installed: pip install -U .*\n", text)


def test_a_flax_that_is_too_old_is_an_import_error_that_says_what_to_install():
    code = "import flax; flax.__version__ = '0.11.0'\ntry: import jax_maddness.nn\nexcept ImportError as e: print(e)"
    text = "jax_maddness needs flax >= 0.12.2, but 0.11.0 is installed: pip install -U 'jax_maddness[flax]'\n"
    assert run(code) == text


def test_the_bound_is_that_of_the_package():
    with open(os.path.join(os.path.dirname(__file__), "..", "..", "pyproject.toml")) as file:
        bounds = dict(re.findall(r'"(jax|jaxlib|flax)>=([\d.]+)"', file.read()))
    from jax_maddness.core import _OLDEST
    from jax_maddness.nn.models import _OLDEST as _OLDEST_FLAX

    of_jax, of_flax = (".".join(map(str, version)) for version in (_OLDEST, _OLDEST_FLAX))
    assert bounds == {"jax": of_jax, "jaxlib": of_jax, "flax": of_flax}
