"""Serves the classifier that `export.py` wrote. It needs jax, jax_maddness and flatbuffers, and no code of the model.

    python examples/serving/serve.py build/serving --way module

prints how long each step of the start takes, then the time of a batch, and fails unless the outputs are exactly those
of the exporting process. The ways to start:

    module        reads classifier.jax and compiles it
    cache         does the same with JAX's persistent cache, where the second start finds what the first compiled
    executable    reads classifier.executable, which is compiled already
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import statistics
import time
from collections import Counter
from collections.abc import Callable

START = time.perf_counter()

import jax  # noqa: E402 -- the time of imports is measured, too
import numpy as np  # noqa: E402
from jax.experimental import serialize_executable  # noqa: E402

import jax_maddness  # noqa: E402 -- registers the kernels that modules and executables call

BATCH = 64
WAYS = ("module", "cache", "executable")


def from_module(path: pathlib.Path) -> Callable[[np.ndarray], jax.Array]:
    """Reads a module and compiles it for batches of `BATCH` rows."""
    module = jax.export.deserialize(bytearray(path.read_bytes()))
    (x,) = module.in_avals
    return jax.jit(module.call).lower(jax.ShapeDtypeStruct((BATCH, *x.shape[1:]), x.dtype)).compile()


def from_executable(path: pathlib.Path) -> Callable[[np.ndarray], jax.Array]:
    """Reads an executable. Read only your own files: this unpickles, and runs machine code."""
    serialized = pickle.loads(path.read_bytes())  # noqa: S301
    return serialize_executable.deserialize_and_load(*serialized, execution_devices=jax.devices()[:1])


def cached(folder: pathlib.Path) -> Counter[str]:
    """Turns the persistent cache on, for functions of any size; returns a count of its hits and misses."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    counts: Counter[str] = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rsplit("/", 1)[-1]]))
    return counts


def outputs_of(call: Callable[[np.ndarray], jax.Array], x: np.ndarray) -> np.ndarray:
    """Computes the outputs of all rows of `x` in batches, the last of which is padded."""
    padded = np.concatenate([x, np.zeros((-len(x) % BATCH, *x.shape[1:]), x.dtype)])
    return np.concatenate([call(padded[i : i + BATCH]) for i in range(0, len(padded), BATCH)])[: len(x)]


def milliseconds(call: Callable[[np.ndarray], jax.Array], batch: np.ndarray, rounds: int = 200) -> float:
    """Returns the median time of a batch."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call(batch).block_until_ready()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    """Starts, answers, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="the folder that export.py wrote")
    parser.add_argument("--way", choices=WAYS, default=WAYS[0], help="where the compiled function comes from")
    args = parser.parse_args()
    jax.devices()  # starts the backend
    imported = time.perf_counter()
    counts = cached(args.folder / "cache") if args.way == "cache" else Counter()
    if args.way == "executable":
        call = from_executable(args.folder / "classifier.executable")
    else:
        call = from_module(args.folder / "classifier.jax")
    ready = time.perf_counter()
    x, expected = (np.load(args.folder / name) for name in ("pixels.npy", "outputs.npy"))
    y = outputs_of(call, x)
    found = f" ({counts['cache_hits']} found, {counts['cache_misses']} compiled)" if args.way == "cache" else ""
    print(
        f"{args.way}{found}: imports {imported - START:.2f} s, load and compile {ready - imported:.3f} s, "
        f"{milliseconds(call, x[:BATCH]):.3f} ms for {BATCH} rows; tier {jax_maddness.active_tier()}"
    )
    if not np.array_equal(y, expected):
        raise SystemExit("The outputs are not those of the process that exported the module.")


if __name__ == "__main__":
    main()
