"""Peak memory of a fit, in multiples of its training matrix; every method runs in a process of its own.

    python -m benchmarks.memory [--rows 200000] [--features 1024] [--outputs 256] [--codebooks 16] [--methods paper]

The peak includes the matrix and the memory that JAX takes before anything is learned, which the first line reports.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import numpy as np

import jax_maddness
from jax_maddness.learn.config import METHOD_NAMES


def peak() -> int:
    """Returns the peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fitted(method: str, rows: int, features: int, outputs: int, codebooks: int) -> int:
    """Fits float32 rows of rank 16 and returns `peak`; an empty method learns nothing, to measure the rest."""
    rng = np.random.default_rng(0)
    factors, w = (rng.standard_normal(shape, np.float32) for shape in ((16, features), (features, outputs)))
    x = np.empty((rows, features), np.float32)
    for start in range(0, rows, 4096):
        part = x[start : start + 4096]
        part[:] = rng.standard_normal((len(part), 16), np.float32) @ factors
    if method:
        jax_maddness.fit(x, w, num_codebooks=codebooks, config=jax_maddness.FitConfig(method), progress=False)
    return peak()


def main() -> None:
    """Measures every method in a process of its own and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"rows": 200_000, "features": 1024, "outputs": 256, "codebooks": 16}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--methods", type=lambda s: s.split(","), default=list(METHOD_NAMES))
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone is not None:
        print(fitted(args.alone, *(getattr(args, name) for name in sizes)))
        return
    matrix = 4 * args.rows * args.features
    given = [f"--{name}={getattr(args, name)}" for name in sizes]
    for method in ("", *args.methods):
        command = [sys.executable, "-m", "benchmarks.memory", *given, f"--alone={method}"]
        used = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{method or 'nothing learned'}: {used / 2**30:.2f} GiB, {used / matrix:.2f} x the matrix", flush=True)


if __name__ == "__main__":
    main()
