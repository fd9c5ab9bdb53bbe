"""x_train, w, a budget -> the smallest op that meets it: a short search over the number of codebooks."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_maddness.core.amm import amm
from jax_maddness.core.types import (
    LEAVES,
    ExactTerm,
    LookupTables,
    MaddnessOp,
    ObliqueTrees,
    SplitTrees,
)
from jax_maddness.learn import validate
from jax_maddness.learn.config import REPORTED_SHARE, FitConfig
from jax_maddness.learn.data.held_out import split
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.evaluate import evaluate
from jax_maddness.learn.fit import learn
from jax_maddness.learn.progress import Progress

MOST_HELD_OUT = 4096
CLOSE = 1.125
"""The search ends when the fewest codebooks that reach the error and the most that do not are as close as this."""

_PAPER = FitConfig("paper")


@dataclasses.dataclass(frozen=True)
class Tried:
    """A number of codebooks: what it costs and brings.

    Attributes:
      nmse: on held-out rows.
      num_bytes: of the op.
      seconds: of `jit(amm)` on the rows of `x_train` (at most 16,384 of them), the least of some calls; None where it
        was not asked for.
    """

    codebooks: int
    nmse: float
    num_bytes: int
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class BudgetReport:
    """The op, and how it was found; `print` it for the table, `picture` draws it."""

    op: MaddnessOp
    trace: tuple[Tried, ...]

    def __str__(self) -> str:
        lines = ["| C | NMSE on held-out rows | bytes | seconds |", "|---|---|---|---|"]
        for t in sorted(self.trace, key=lambda t: t.codebooks):
            chosen = "**" if t.codebooks == self.op.num_codebooks else ""
            seconds = "" if t.seconds is None else f"{t.seconds:.2e}"
            lines.append(f"| {chosen}{t.codebooks}{chosen} | {t.nmse:.4g} | {t.num_bytes:,} | {seconds} |")
        return "\n".join(lines)

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draws the error of everything that was tried against its size, and time where that was asked for.

        Raises:
          ImportError: matplotlib, which only pictures need, is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "A picture needs matplotlib: `pip install matplotlib`. `print` shows the table."
            ) from error
        tried = sorted(self.trace, key=lambda t: t.codebooks)
        costs: dict[str, list[float]] = {"bytes": [t.num_bytes for t in tried]}
        seconds = [t.seconds for t in tried if t.seconds is not None]
        if len(seconds) == len(tried):
            costs["seconds"] = seconds
        figure = Figure(figsize=(4.5 * len(costs), 3.5), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (name, values) in zip(figure.subplots(1, len(costs), squeeze=False).flat, costs.items(), strict=True):
            axes.plot(values, [t.nmse for t in tried], "o-")
            for t, cost in zip(tried, values, strict=True):
                bold = "bold" if t.codebooks == self.op.num_codebooks else "normal"
                axes.annotate(f"C = {t.codebooks}", (cost, t.nmse), fontsize=8, weight=bold)
            axes.set(xscale="log", yscale="log", xlabel=name, ylabel="NMSE on held-out rows")
            axes.grid(alpha=0.25)
        figure.savefig(path, dpi=110)


def fit_budget(
    x_train: Float[ArrayLike, "... features"],
    w: Float[ArrayLike, "features outputs"],
    bias: Float[ArrayLike, " outputs"] | None = None,
    *,
    max_nmse: float | None = None,
    num_bytes: int | None = None,
    max_seconds: float | None = None,
    config: FitConfig = _PAPER,
    progress: bool | None = None,
) -> BudgetReport:
    """`fit` with the number of codebooks that a budget asks for.

    With `max_nmse`: the fewest codebooks that reach it, on held-out rows. Without it: the most codebooks that the
    other limits allow, or fewer where more do not help. Sizes and times are known without learning.

    Every number of codebooks is learned from nothing, as groups and trees differ. What is shared: rows are checked and
    held out once, and what is compiled serves for all sizes that are padded alike.

    Args:
      x_train: samples of `x`; leading dimensions are flattened to rows.
      w: the weights to multiply with.
      bias: what to add to every row of the product.
      max_nmse: |y - y_exact|^2 / |y_exact - mean|^2 to reach.
      num_bytes: the largest size of the op.
      max_seconds: the longest time of one call of `amm` on the rows of `x_train` (at most 16,384 of them), on this
        machine as it is now.
      config: how to learn, again and again: by default the quickest method.
      progress: show a progress bar; None shows it where learning takes longer than two seconds.

    Raises:
      TypeError, ValueError: as `fit`; no limit is given; or no number of codebooks is within the limits.

    Example:
      >>> x = np.random.default_rng(0).standard_normal((300, 8))
      >>> fit_budget(x, np.ones((8, 3)), num_bytes=300).op
      MaddnessOp(8 -> 3, 2 codebooks, 272 bytes)
    """
    validate.kind(config, FitConfig, "config")
    limits = {"max_nmse": max_nmse, "num_bytes": num_bytes, "max_seconds": max_seconds}
    _validate(limits)
    x = validate.samples(x_train)
    weights, offset = validate.product(x.shape[1], w, bias)
    held_out, others = split(len(x), REPORTED_SHARE, MOST_HELD_OUT)
    if not len(held_out):
        raise ValueError("`x_train` has one row; a budget needs rows to judge by. Pass many rows.")
    part, test = Rows.of(x[others]), x[held_out]
    most = _most(x, weights.shape[1], config, num_bytes, max_seconds)
    trace: dict[int, Tried] = {}
    with Progress(progress) as bar:

        def attempt(codebooks: int) -> Tried:
            if codebooks not in trace:
                op = learn(part, weights, offset, codebooks, config, bar)
                seconds = None if max_seconds is None else _seconds(op, x)
                trace[codebooks] = Tried(codebooks, evaluate(op, test, weights, offset).nmse, op.nbytes, seconds)
            return trace[codebooks]

        chosen = _most_useful(attempt, most) if max_nmse is None else _fewest(attempt, most, max_nmse)
        op = learn(Rows.of(x), weights, offset, chosen, config, bar)
    return BudgetReport(op, tuple(trace.values()))


def _validate(limits: dict[str, float | None]) -> None:
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if not given:
        raise ValueError("No budget is given. Pass `max_nmse`, `num_bytes` or `max_seconds`, or several of them.")
    for name, limit in given.items():
        if not (isinstance(limit, int | float) and np.isfinite(limit) and limit > 0):
            raise ValueError(f"`{name}` is {limit!r}; expected a positive number.")


def _most(x: np.ndarray, outputs: int, config: FitConfig, num_bytes: int | None, max_seconds: float | None) -> int:
    """The largest number of codebooks within the limits."""

    def blank(codebooks: int) -> MaddnessOp:
        return _blank(x.shape[1], codebooks, outputs, config)

    most = x.shape[1]
    if num_bytes is not None:
        if blank(1).nbytes > num_bytes:
            raise ValueError(f"`num_bytes` is {num_bytes}; one codebook takes {blank(1).nbytes:,}. Allow as many.")
        most = _last(most, lambda c: blank(c).nbytes <= num_bytes, 1.0)
    if max_seconds is not None and _seconds(blank(most), x) > max_seconds:
        least = _seconds(blank(1), x)
        if least > max_seconds:
            raise ValueError(
                f"`max_seconds` is {max_seconds}; one codebook takes {least:.2g} s on {len(x):,} rows. Allow more time."
            )
        most = _last(most, lambda c: _seconds(blank(c), x) <= max_seconds, CLOSE)
    return most


def _last(most: int, fits: Callable[[int], bool], close: float) -> int:
    """The largest number up to `most` that fits, as 1 does, or one nearly as large: `close` times it is too much."""
    low, high = 1, most + 1
    while high > max(close * low, low + 1):
        middle = min(max(round(np.sqrt(low * high)), low + 1), high - 1)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _most_useful(attempt: Callable[[int], Tried], most: int) -> int:
    """`most`, halved for as long as that makes the error no larger."""
    while most > 1 and attempt(most // 2).nmse <= attempt(most).nmse:
        most //= 2
    return attempt(most).codebooks


def _fewest(attempt: Callable[[int], Tried], most: int, max_nmse: float) -> int:
    """The fewest codebooks that reach `max_nmse`: doubled until they do, then bisected, on a logarithmic scale."""
    low, high = 0, 1
    while attempt(high).nmse > max_nmse:
        if high == most:
            best = min((attempt(c) for c in _powers(most)), key=lambda t: t.nmse)
            raise ValueError(
                f"`max_nmse` is {max_nmse:g}, but the best within the limits is {best.nmse:.3g}, with "
                f"{best.codebooks} codebooks. Allow more error or codebooks, pass more rows, or take another method."
            )
        low, high = high, min(2 * high, most)
    while high > max(CLOSE * low, low + 1):
        middle = min(max(round(np.sqrt(low * high)), low + 1), high - 1)
        low, high = (low, middle) if attempt(middle).nmse <= max_nmse else (middle, high)
    return high


def _powers(most: int) -> list[int]:
    return sorted({min(2**k, most) for k in range(most.bit_length() + 1)})


def _blank(features: int, codebooks: int, outputs: int, config: FitConfig) -> MaddnessOp:
    """An op of a given size that has learned nothing: it takes as long as any other, or as the longest if there may be
    either kind of trees.
    """
    kind = ObliqueTrees if config.method in ("oblique", "auto") else SplitTrees
    trees = kind.placeholder(features, codebooks, max(-(-features // codebooks), config.width or 0))
    tables = LookupTables(jnp.zeros((outputs, codebooks, LEAVES), jnp.uint8), jnp.zeros(outputs), jnp.zeros(outputs))
    return MaddnessOp(trees, tables, exact=_blank_term(features, outputs, config))


def _blank_term(features: int, outputs: int, config: FitConfig) -> ExactTerm | None:
    if not (config.rank or config.outliers):
        return None
    return ExactTerm(
        jnp.zeros((config.outliers + config.rank, outputs)),
        jnp.arange(config.outliers, dtype=jnp.int32) if config.outliers else None,
        jnp.zeros((features, config.rank)) if config.rank else None,
    )


def _seconds(op: MaddnessOp, x: np.ndarray) -> float:
    """The least time of a call on the rows of `x`, of at least five calls and a tenth of a second."""
    rows, call = jnp.asarray(x[:16384]), jax.jit(amm)
    jax.block_until_ready(call(rows, op))
    times: list[float] = []
    while len(times) < 5 or (sum(times) < 0.1 and len(times) < 1000):
        start = time.perf_counter()
        jax.block_until_ready(call(rows, op))
        times.append(time.perf_counter() - start)
    return min(times)
