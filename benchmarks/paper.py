"""The products of the paper's classifiers: 10,000 rows of 512 features, 10 and 100 outputs, 2 to 64 codebooks.

    taskset -c 1 python -m benchmarks.paper [--output docs/feature_major.png] [--seconds 20] [--save]

The heads of CIFAR-10 and CIFAR-100 of Blalock & Guttag (2021, section 5) have these shapes. Their code reads rows that
stand feature by feature, and writes its result so; ours reads and writes both, and XLA's and NumPy's exact products
stand beside them. Contents are random: they do not change the time. The rows change from call to call, freed memory is
retained, rounds are interleaved; the command prints a table of milliseconds and of ratios to XLA's product, and draws
it. The last column has what the authors published, from another machine.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks import measured, timing
from benchmarks.contenders import Contender
from benchmarks.records import Record
from jax_maddness import FitConfig, MaddnessOp

ROWS, FEATURES, OUTPUTS = 10_000, 512, (10, 100)
CODEBOOKS = (2, 4, 8, 16, 32, 64)
EXACT = ("XLA f32", "NumPy f32")
ORDERS = {"rows": "row by row", "features": "x feature by feature", "both": "x and y feature by feature"}
"""Orders of x and y in memory, and their names in tables."""
PUBLISHED = {
    10: {0: 5.784, 4: 0.035, 8: 0.064, 16: 0.127, 32: 0.278, 64: 0.704},
    100: {0: 17.164, 4: 0.217, 8: 0.312, 16: 0.562, 32: 1.099, 64: 2.118},
}
"""Milliseconds that the paper's authors measured, by outputs and codebooks; 0: by the exact product of Eigen.

The medians of five in github.com/dblalock/bolt, experiments/python/amm_results.py (commit 13e55ffe), where the method's
name is "multisplit". One thread of another CPU; results are integers of 8 bits, not yet rescaled.
"""
_SETS = 4  # of rows, 20 MB each: more than caches hold


def by_feature(x_by_feature: jax.Array, op: MaddnessOp) -> jax.Array:
    """Multiplies rows that stand feature by feature, `[features, rows]`."""
    return jax_maddness.amm(x_by_feature.T, op, feature_major=True)


def both_by_feature(x_by_feature: jax.Array, op: MaddnessOp) -> jax.Array:
    """Multiplies rows that stand feature by feature, and returns the result output by output, `[outputs, rows]`."""
    return jax_maddness.amm(x_by_feature.T, op, feature_major=True, feature_major_result=True).T


def contenders(outputs: int) -> Iterator[Contender]:
    """Yields the exact products, and ours of every order for each number of codebooks."""
    rng = np.random.default_rng(0)
    sets = [rng.standard_normal((ROWS, FEATURES), np.float32) for _ in range(_SETS)]
    sets_by_feature = [np.ascontiguousarray(x.T) for x in sets]
    w = rng.standard_normal((FEATURES, outputs), np.float32)
    yield Contender(EXACT[0], "rival", _changing(jax.jit(jnp.matmul), sets, jnp.asarray(w)))
    yield Contender(EXACT[1], "rival", _changing(np.matmul, sets, w, convert=np.asarray))
    for codebooks in CODEBOOKS:
        op = jax_maddness.fit(sets[0][:2000], w, num_codebooks=codebooks, config=FitConfig("paper"), progress=False)
        calls: Any = (jax_maddness.amm, sets), (by_feature, sets_by_feature), (both_by_feature, sets_by_feature)
        for order, (call, rows) in zip(ORDERS, calls, strict=True):
            yield Contender(order, "amm", _changing(jax.jit(call), rows, op), codebooks)


def _changing(
    call: Callable[..., Any], sets: Sequence[np.ndarray], *args: Any, convert: Callable[..., Any] = jnp.asarray
) -> Callable[[], Any]:
    """Returns a call that takes the next set of rows every time, and waits for its result."""
    rows = itertools.cycle([convert(x) for x in sets])
    return lambda: jax.block_until_ready(call(next(rows), *args))


def table(records: Sequence[Record]) -> str:
    """Returns a row for each number of outputs and codebooks: milliseconds, and in brackets the speed-up over XLA.

    The last column is of `PUBLISHED`, and its speed-up over the exact product there.
    """
    lines = [f"| outputs | codebooks | {', ms | '.join([*EXACT, *ORDERS.values(), 'published'])}, ms |"]
    lines.append("|---" * 8 + "|")
    for outputs in dict.fromkeys(r["outputs"] for r in records):
        own = {(r["product"], r["codebooks"]): r for r in records if r["outputs"] == outputs}
        exact = [f"{own[name, 0]['ms']:.3f}" for name in EXACT]
        for codebooks in sorted({c for _, c in own if c}):
            ours = [own[order, codebooks] for order in ORDERS]
            cells = [f"{r['ms']:.3f} ({r['speedup']:.1f}x)" for r in ours]
            lines.append(f"| {outputs} | {codebooks} | {' | '.join([*exact, *cells, published(outputs, codebooks)])} |")
    return "\n".join(lines)


def published(outputs: int, codebooks: int) -> str:
    """Returns what the authors measured, and its speed-up over their exact product.

    Example:
      >>> published(10, 4)
      '0.035 (165.3x)'
    """
    own = PUBLISHED.get(outputs, {})
    return f"{own[codebooks]:.3f} ({own[0] / own[codebooks]:.1f}x)" if codebooks in own else ""


def picture(path: pathlib.Path, records: Sequence[Record]) -> None:
    """Draws the speed-ups over XLA's product by number of codebooks, one panel for each number of outputs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, outputs in zip(figure.subplots(1, len(OUTPUTS), sharey=True), OUTPUTS, strict=True):
        for (order, label), color in zip(
            reversed(ORDERS.items()), ("tab:green", "tab:orange", "tab:blue"), strict=True
        ):
            own = [r for r in records if r["outputs"] == outputs and r["product"] == order]
            axes.plot([r["codebooks"] for r in own], [r["speedup"] for r in own], "o-", color=color, label=label)
        axes.axhline(1, color="gray", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="codebooks", title=f"{ROWS:,} x {FEATURES} x {outputs}")
        axes.set_xticks(CODEBOOKS, [str(c) for c in CODEBOOKS])
        axes.minorticks_off()
        axes.set_yticks([1, 3, 10, 30, 100], ["1x", "3x", "10x", "30x", "100x"])
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("times as quick as XLA's f32")
    figure.axes[-1].legend(frameon=False, fontsize=9, loc="upper right")  # above the lines
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table, and draws it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of timing, for each number of outputs")
    parser.add_argument("--output", type=pathlib.Path, help="picture to draw; its suffix chooses the format")
    measured.add_option(parser)
    args = parser.parse_args(argv)
    jax_maddness.retain_freed_memory()
    run, records = measured.Run("paper", argv), list[Record]()
    for outputs in OUTPUTS:
        entrants = list(contenders(outputs))
        figures = timing.interleaved(entrants, seconds=args.seconds, rounds=(5, 60))
        for entrant, own in zip(entrants, figures, strict=True):
            speedup = statistics.median(b / a for a, b in zip(own, figures[0], strict=True))
            record = {"outputs": outputs, "product": entrant.what, "codebooks": entrant.codebooks}
            records.append(record | {"ms": statistics.median(own), "speedup": speedup})
    run.finish(records, table(records), save=args.save)
    if args.output:
        picture(args.output, records)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
