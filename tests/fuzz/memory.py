"""Memory of a process after many small calls and many fits: it must not grow with their number.

    PYTHONPATH=tests python -m fuzz.memory --calls 1000000 --fits 1000

Half of the calls and fits warm up; the other half may not add more than 10 MB.
"""

import argparse
import functools
import gc
import sys
import time

import jax
import numpy as np
from helpers.memory import resident
from helpers.ops import TREES, put, random_op, random_rows

from jax_maddness import FitConfig, aggregate, amm, encode, fit, with_small_batch_tables

MOST_GROWTH = 10e6
"""Bytes: a leak of 20 bytes in each of 500,000 calls, or of 20 kB in each of 500 fits."""
_LOOKS = 10


def calls():
    """Compiled functions of no arguments: small batches and larger ones, with trees of every kind."""
    rng = np.random.default_rng(0)
    made = []
    for make_trees in TREES.values():
        op = with_small_batch_tables(random_op(rng, 8, 3, 5, make_trees=make_trees))
        for count in (1, 20):
            x = put(random_rows(rng, count, 8))
            made.append(functools.partial(jax.jit(amm), x, op))
        made.append(functools.partial(jax.jit(encode), x, op.trees))
        made.append(functools.partial(jax.jit(aggregate), encode(x, op.trees), op.tables))
    return made


def fits():
    """Fits of the same shapes: one in twenty by each slower method, without its training, the others by the paper's."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((300, 8)).astype(np.float32), rng.standard_normal((8, 4)).astype(np.float32)
    configs = [FitConfig("axis", steps=0), FitConfig("oblique", steps=0), *[FitConfig("paper")] * 18]
    return [functools.partial(fit, x, w, num_codebooks=2, config=config, progress=False) for config in configs]


def growth(name, functions, count):
    """Calls the functions in turn, `count` calls in all; returns by how many bytes the second half made memory grow."""
    looks, begin = [], time.perf_counter()
    for look in range(_LOOKS):
        for i in range(count * look // _LOOKS, count * (look + 1) // _LOOKS):
            result = functions[i % len(functions)]()
        jax.block_until_ready(result)
        gc.collect()
        looks.append(resident())
    seconds = time.perf_counter() - begin
    shown = " ".join(f"{bytes_ / 1e6:.1f}" for bytes_ in looks)
    print(f"{count:,} {name} in {seconds:.0f} s; MB after each tenth: {shown}", flush=True)
    return looks[-1] - looks[_LOOKS // 2 - 1]


def main():
    """Measures, and exits with 1 where memory has grown."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.memory", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--fits", type=int, default=30)
    args = parser.parse_args()
    grown = growth("calls", calls(), args.calls), growth("fits", fits(), args.fits)
    sys.exit(int(max(grown) > MOST_GROWTH))


if __name__ == "__main__":
    main()
