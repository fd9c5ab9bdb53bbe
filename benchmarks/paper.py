"""The products of the paper's classifiers: 10,000 rows of 512 features, 10 and 100 outputs, 2 to 64 codebooks.

    taskset -c 1 python -m benchmarks.paper [--output docs/feature_major.png] [--seconds 20]

The heads of CIFAR-10 and CIFAR-100 of Blalock & Guttag (2021, section 5) have these shapes. Their code reads rows that
stand feature by feature, and writes its result so; ours reads and writes both, and XLA's and NumPy's exact products
stand beside them. Contents are random: they do not change the time. The rows change from call to call, freed memory is
retained, rounds are interleaved; the command prints a table of milliseconds and of ratios to XLA's product, and draws
it.
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
from benchmarks import machine, timing
from benchmarks.contenders import Contender
from jax_maddness import FitConfig, MaddnessOp

ROWS, FEATURES, OUTPUTS = 10_000, 512, (10, 100)
CODEBOOKS = (2, 4, 8, 16, 32, 64)
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
    yield Contender("XLA f32", "rival", _changing(jax.jit(jnp.matmul), sets, jnp.asarray(w)))
    yield Contender("NumPy f32", "rival", _changing(np.matmul, sets, w, convert=np.asarray))
    for codebooks in CODEBOOKS:
        op = jax_maddness.fit(sets[0][:2000], w, num_codebooks=codebooks, config=FitConfig("paper"), progress=False)
        for name, call, rows in (
            ("row by row", jax_maddness.amm, sets),
            ("feature by feature", by_feature, sets_by_feature),
            ("both feature by feature", both_by_feature, sets_by_feature),
        ):
            yield Contender(f"{name}, C = {codebooks}", "amm", _changing(jax.jit(call), rows, op), codebooks)


def _changing(
    call: Callable[..., Any], sets: Sequence[np.ndarray], *args: Any, convert: Callable[..., Any] = jnp.asarray
) -> Callable[[], Any]:
    """Returns a call that takes the next set of rows every time, and waits for its result."""
    rows = itertools.cycle([convert(x) for x in sets])
    return lambda: jax.block_until_ready(call(next(rows), *args))


def picture(path: pathlib.Path, ratios: dict[tuple[int, str], float]) -> None:
    """Draws the ratios to XLA's product over the number of codebooks, one panel for each number of outputs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, outputs in zip(figure.subplots(1, len(OUTPUTS), sharey=True), OUTPUTS, strict=True):
        for name, color, label in (
            ("both feature by feature", "tab:green", "x and y feature by feature"),
            ("feature by feature", "tab:orange", "x feature by feature"),
            ("row by row", "tab:blue", "row by row"),
        ):
            speeds = [1 / ratios[outputs, f"{name}, C = {c}"] for c in CODEBOOKS]
            axes.plot(CODEBOOKS, speeds, "o-", color=color, label=label)
        axes.axhline(1, color="gray", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="codebooks", title=f"{ROWS:,} x {FEATURES} x {outputs}")
        axes.set_xticks(CODEBOOKS, [str(c) for c in CODEBOOKS])
        axes.minorticks_off()
        axes.set_yticks([1, 3, 10, 30, 100], ["1x", "3x", "10x", "30x", "100x"])
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("times as quick as XLA's f32")
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table, and draws it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of timing, for each number of outputs")
    parser.add_argument("--output", type=pathlib.Path, help="picture to draw; its suffix chooses the format")
    args = parser.parse_args(argv)
    jax_maddness.retain_freed_memory()
    facts, before = machine.facts(), machine.work()
    lines, ratios = [], dict[tuple[int, str], float]()
    for outputs in OUTPUTS:
        entrants = list(contenders(outputs))
        figures = timing.interleaved(entrants, seconds=args.seconds, rounds=(5, 60))
        for entrant, own in zip(entrants, figures, strict=True):
            ratio = statistics.median(a / b for a, b in zip(own, figures[0], strict=True))
            ratios[outputs, entrant.what] = ratio
            lines.append(f"| {outputs} | {entrant.what} | {statistics.median(own):.3f} | {1 / ratio:.1f}x |")
    facts["others"] = machine.others(before, machine.work())
    print(machine.headline(facts, None))
    print("| outputs | product | ms | times as quick as XLA f32 |\n|---|---|---|---|\n" + "\n".join(lines))
    if args.output:
        picture(args.output, ratios)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
