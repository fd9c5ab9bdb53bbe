"""Installs a wheel as users do, in a fresh environment without a compiler, and uses it.

    python tools/release/smoke.py dist PYTHON...

Each PYTHON installs the wheel that pip finds for it in `dist`, and runs the check in an empty folder. Free-threaded
Pythons must be refused by pip: there is no wheel for them.
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
    if is_free_threaded(own):
        if done.returncode == 0:
            sys.exit(f"{python} is free-threaded, and yet it installed a wheel.")
        print("refused, as it should be: this Python is free-threaded.")
        return
    if done.returncode != 0:
        sys.exit(f"{python} cannot install the wheel.")
    for command in (["-m", "jax_maddness", "doctor"], ["-c", CHECK]):
        subprocess.run([own, *command], env=environment, cwd=folder, check=True)


def is_free_threaded(python: pathlib.Path) -> bool:
    """Returns whether the interpreter was built without the global lock."""
    code = "import sysconfig; print(sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
    return subprocess.check_output([python, "-c", code], text=True).strip() == "1"


if __name__ == "__main__":
    main()
