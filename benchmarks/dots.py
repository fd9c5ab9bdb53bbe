"""amm against the dots that one would use instead, on one shape, interleaved in one run; prints a Markdown table.

Times only: the ops are random. What their accuracy would be is measured elsewhere (benchmarks/quality.py, make demo).
With --threads 1, XLA's pool has one thread, for everything alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(8192, 1024, 1024), metavar=("N", "D", "M"))
    parser.add_argument("--codebooks", type=int, nargs="+", default=(64, 32))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


def main() -> None:
    args = parse()
    # Before JAX starts its pool: it has as many threads as this process may use processors.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    import jax

    import jax_maddness

    calls = prepare(*args.shape, args.codebooks)
    times = interleaved(calls, args.rounds)
    shape = " x ".join(map(str, args.shape))
    print(f"{shape}, {args.threads} thread(s), tier {jax_maddness.active_tier()}, jax {jax.__version__}\n")
    f32, int8 = (statistics.median(times[name]) for name in ("f32 dot", "int8 dot, dynamic"))
    print("| | ms (median) | against f32 | against int8 dynamic |\n|---|---|---|---|")
    for name, own in times.items():
        middle = statistics.median(own)
        print(f"| {name} | {middle:.2f} | {f32 / middle:.1f}x | {int8 / middle:.1f}x |")


def prepare(n: int, d: int, m: int, codebooks: list[int]) -> dict[str, Callable]:
    """The compiled functions to compare, by name."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jax_maddness
    from jax_maddness import LookupTables, MaddnessOp, SplitTrees

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((n, d)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((d, m)), jnp.float32)
    scale = jnp.max(jnp.abs(w), axis=0) / 127
    w8, x8 = jnp.round(w / scale).astype(jnp.int8), jnp.round(x * 30).astype(jnp.int8)

    def int8_dynamic(x: jax.Array, w8: jax.Array, scale: jax.Array) -> jax.Array:
        step = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
        dot = jnp.matmul(jnp.round(x / step).astype(jnp.int8), w8, preferred_element_type=jnp.int32)
        return dot * (step * scale)

    def int8_given(x8: jax.Array, w8: jax.Array) -> jax.Array:
        return jnp.matmul(x8, w8, preferred_element_type=jnp.int32)

    def op(c: int) -> MaddnessOp:
        group = np.arange(c)[:, None] * d // c  # each codebook's features are neighbours, as `fit` chooses them
        indices = group + rng.integers(0, -(-d // c), (c, 4)).clip(max=d - 1 - group)
        trees = SplitTrees(jnp.asarray(indices, jnp.int32), jnp.asarray(rng.standard_normal((c, 15)), jnp.float32), d)
        values = jnp.asarray(rng.integers(0, 256, (m, c, 16)), jnp.uint8)
        return MaddnessOp(trees, LookupTables(values, jnp.ones(m), jnp.zeros(m)))

    work = {
        "f32 dot": (jnp.matmul, x, w),
        "int8 dot, dynamic": (int8_dynamic, x, w8, scale),
        "int8 dot, int8 given": (int8_given, x8, w8),
        **{f"amm, C = {c} (D/C = {d / c:g})": (jax_maddness.amm, x, op(c)) for c in codebooks},
    }
    return {name: _compiled(f, *operands) for name, (f, *operands) in work.items()}


def _compiled(f: Callable, *operands: object) -> Callable:
    import jax

    run = jax.jit(f).lower(*operands).compile()
    return lambda: jax.block_until_ready(run(*operands))


def interleaved(calls: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, all called in turn in every round; the first two rounds are not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: own[2:] for name, own in times.items()}


if __name__ == "__main__":
    main()
