"""Installs a wheel as users do, in a fresh environment without a compiler, and uses it.

    python tools/release/smoke.py dist PYTHON...

Each PYTHON installs the wheel that pip finds for it in `dist`, and runs the check in an empty folder. A free-threaded
Python whose wheel is not there must be refused by pip: the others do not fit it.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

CHECK = """
import pathlib, jax, jax.numpy as jnp, numpy as np, jax_maddness
assert "site-packages" in pathlib.Path(jax_maddness.__file__).parts, jax_maddness.__file__
flags = pathlib.Path("/proc/cpuinfo").read_text().split()
assert ("avx2" in flags) <= (jax_maddness.active_tier() != "scalar"), jax_maddness.active_tier()
rng = np.random.default_rng(0)
x, w = (jnp.float32(rng.standard_normal(shape)) for shape in [(3000, 8), (64, 128)])
x = x @ jnp.float32(rng.standard_normal((8, 64)))
op = jax_maddness.fit(x, w, num_codebooks=16, config=jax_maddness.FitConfig("paper"))
jax_maddness.save("op.maddness", op)
y = jax.jit(jax_maddness.amm)(x[:100], jax_maddness.load("op.maddness"))
error = float(jnp.mean((y - x[:100] @ w) ** 2) / jnp.var(x[:100] @ w))
assert error < 0.2, error
print(f"an op was learned, saved, loaded and used on {jax_maddness.active_tier()}: NMSE {error:.3f}")
"""

# The lock comes back, with a RuntimeWarning, where an extension does not say that it can do without.
CHECK_THREADS = """
import concurrent.futures, sys, jax, jax.numpy as jnp, numpy as np, jax_maddness

def learn_and_use(seed):
    rng = np.random.default_rng(seed)
    x, w = (jnp.float32(rng.standard_normal(shape)) for shape in [(500, 32), (32, 16 + seed)])
    op = jax_maddness.fit(x, w, num_codebooks=8, config=jax_maddness.FitConfig("paper"), progress=False)
    return [np.asarray(jax.jit(jax_maddness.amm)(x[:rows], op)) for rows in (1, 8, 500)]

expected = [learn_and_use(seed) for seed in range(4)]
jax.clear_caches()
with concurrent.futures.ThreadPoolExecutor(8) as threads:
    for seed, results in zip([*range(4)] * 4, threads.map(learn_and_use, [*range(4)] * 4)):
        jax.tree.map(np.testing.assert_array_equal, results, expected[seed])
assert not sys._is_gil_enabled()
print("eight threads without a lock learned and used the same ops as one")
"""


def main() -> None:
    """Smoke-tests the wheels of the folder that is the first argument on the interpreters that follow."""
    wheels, pythons = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:]
    for python in pythons:
        print(f"== {python}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            check(wheels, python, pathlib.Path(folder))


def check(wheels: pathlib.Path, python: str, folder: pathlib.Path) -> None:
    """Makes an environment in `folder`, installs, and runs the doctor and CHECK there."""
    subprocess.run([python, "-m", "venv", folder / "env"], check=True)
    own = folder / "env" / "bin" / "python"
    # PATH has nothing but the environment, so that whatever needs a compiler fails.
    environment = {**os.environ, "PATH": str(own.parent), "JAX_PLATFORMS": "cpu"}
    install = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    done = subprocess.run([*install, "--find-links", wheels, "jax_maddness"], env=environment, check=False)
    free_threaded = is_free_threaded(own)
    if free_threaded and not any(wheels.glob("*-cp3*t-*.whl")):
        if done.returncode == 0:
            sys.exit(f"{python} is free-threaded, and yet it installed a wheel that is not.")
        print("refused, as it should be: this Python is free-threaded, and its wheel was not built.")
        return
    if done.returncode != 0:
        sys.exit(f"{python} cannot install the wheel.")
    checks = [["-m", "jax_maddness", "doctor"], ["-c", CHECK]]
    for command in checks + [["-W", "error::RuntimeWarning", "-c", CHECK_THREADS]] * free_threaded:
        subprocess.run([own, *command], env=environment, cwd=folder, check=True)


def is_free_threaded(python: pathlib.Path) -> bool:
    """Returns whether the interpreter was built without the global lock."""
    code = "import sysconfig; print(sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
    return subprocess.check_output([python, "-c", code], text=True).strip() == "1"


if __name__ == "__main__":
    main()
