"""`fit_budget`, which searches the smallest number of codebooks that meets a budget of error, size or time."""

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
"""Largest number of held-out rows on which errors are measured."""
CLOSE = 1.125
"""Ratio between the fewest codebooks that reach the error and the most that do not, at which the search ends."""

_PAPER = FitConfig("paper")


@dataclasses.dataclass(frozen=True)
class Tried:
    """The measured error and costs of one number of codebooks.

    Attributes:
      codebooks: number of codebooks, C.
      nmse: NMSE on held-out rows, a fraction.
      num_bytes: size of the op's arrays in bytes.
      seconds: least time of several calls of `jit(amm)` on the rows of `x_train` (at most 16,384 of them), in seconds;
        None unless `max_seconds` was given.
    """

    codebooks: int
    nmse: float
    num_bytes: int
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class BudgetReport:
    """The op that `fit_budget` chose, and every number of codebooks that it tried.

    `print` shows the numbers tried as a table, and `picture` draws them.

    Attributes:
      op: op with the chosen number of codebooks, learned from all rows.
      trace: error and costs of each number of codebooks that was tried, in the order of the search.
    """

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
        """Draws the error of every number of codebooks tried against its size, and its time if that was measured.

        Args:
          path: file to write; its suffix chooses the format, as in `.png` or `.svg`.

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
    """Learns an op with the number of codebooks that a budget asks for.

    With `max_nmse`, these are the fewest codebooks that reach it on held-out rows. Without it, these are the most
    codebooks that the other limits allow, or fewer where more do not help. Sizes and times are known without learning.

    Every number of codebooks is learned from nothing, as groups and trees differ. Rows are validated and held out only
    once, and compiled functions serve for all sizes that are padded alike. The methods of learning are those of `fit`
    (Blalock & Guttag 2021, section 4); the search is not in the paper.

    Args:
      x_train: training rows, `[..., D]`, of a real dtype; leading dimensions are flattened to rows. At least two rows.
      w: weights to multiply with, `[D, M]`, of a real dtype.
      bias: vector `[M]` that is added to every row of the product; None stands for zeros.
      max_nmse: largest NMSE, |y - y_exact|^2 / |y_exact - mean|^2, on held-out rows; a fraction.
      num_bytes: largest size of the op's arrays, in bytes.
      max_seconds: longest time of one call of `amm` on the rows of `x_train` (at most 16,384 of them), in seconds, on
        this machine under its present load.
      config: options of learning, used for every number of codebooks; by default those of the quickest method.
      progress: whether to show a progress bar on stderr; None shows it where learning takes longer than two seconds.

    Returns:
      A report with the op, which is learned from all rows, and with the error and costs of each number of codebooks
      that was tried.

    Raises:
      TypeError: an argument is of the wrong kind, as in `fit`.
      ValueError: an argument is invalid, as in `fit`; no limit is given, or one is not a positive number; there is only
        one row; or no number of codebooks is within the limits.

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
    train_rows, held_out_rows = Rows.of(x[others]), x[held_out]
    max_codebooks = _most(x, weights.shape[1], config, num_bytes, max_seconds)
    trace: dict[int, Tried] = {}
    with Progress(progress) as bar:

        def attempt(codebooks: int) -> Tried:
            if codebooks not in trace:
                op = learn(train_rows, weights, offset, codebooks, config, bar)
                seconds = None if max_seconds is None else _seconds(op, x)
                nmse = evaluate(op, held_out_rows, weights, offset).nmse
                trace[codebooks] = Tried(codebooks, nmse, op.nbytes, seconds)
            return trace[codebooks]

        chosen = _most_useful(attempt, max_codebooks) if max_nmse is None else _fewest(attempt, max_codebooks, max_nmse)
        op = learn(Rows.of(x), weights, offset, chosen, config, bar, warn=True)
    return BudgetReport(op, tuple(trace.values()))


def _validate(limits: dict[str, float | None]) -> None:
    """Raises `ValueError` unless at least one limit is given, and all of them are positive numbers."""
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if not given:
        raise ValueError("No budget is given. Pass `max_nmse`, `num_bytes` or `max_seconds`, or several of them.")
    for name, limit in given.items():
        if not (isinstance(limit, int | float) and np.isfinite(limit) and limit > 0):
            raise ValueError(f"`{name}` is {limit!r}; expected a positive number.")


def _most(x: np.ndarray, outputs: int, config: FitConfig, num_bytes: int | None, max_seconds: float | None) -> int:
    """Returns the largest number of codebooks within the limits of size and time."""

    def blank(codebooks: int) -> MaddnessOp:
        return _blank(x.shape[1], codebooks, outputs, config)

    max_codebooks = x.shape[1]
    if num_bytes is not None:
        if blank(1).nbytes > num_bytes:
            raise ValueError(f"`num_bytes` is {num_bytes}; one codebook takes {blank(1).nbytes:,}. Allow as many.")
        max_codebooks = _last_that_fits(max_codebooks, lambda c: blank(c).nbytes <= num_bytes, 1.0)
    if max_seconds is not None and _seconds(blank(max_codebooks), x) > max_seconds:
        shortest = _seconds(blank(1), x)
        if shortest > max_seconds:
            raise ValueError(
                f"`max_seconds` is {max_seconds}; one codebook takes {shortest:.2g} s on {len(x):,} rows. "
                "Allow more time."
            )
        max_codebooks = _last_that_fits(max_codebooks, lambda c: _seconds(blank(c), x) <= max_seconds, CLOSE)
    return max_codebooks


def _last_that_fits(largest: int, fits: Callable[[int], bool], close: float) -> int:
    """Returns the largest number up to `largest` for which `fits` holds, up to a factor of `close`.

    `fits(1)` must hold. If the result is less than the largest such number, then `close` times the result is too much.
    """
    low, high = 1, largest + 1
    # The search ends at a ratio of `high` to `low`, so it bisects on a logarithmic scale.
    while high > max(close * low, low + 1):
        between = min(max(round(np.sqrt(low * high)), low + 1), high - 1)
        low, high = (between, high) if fits(between) else (low, between)
    return low


def _most_useful(attempt: Callable[[int], Tried], codebooks: int) -> int:
    """Returns `codebooks`, halved for as long as half as many have no larger error on held-out rows."""
    while codebooks > 1 and attempt(codebooks // 2).nmse <= attempt(codebooks).nmse:
        codebooks //= 2
    return attempt(codebooks).codebooks


def _fewest(attempt: Callable[[int], Tried], max_codebooks: int, max_nmse: float) -> int:
    """Returns the fewest codebooks that reach `max_nmse`, up to a factor of `CLOSE`.

    The number is doubled until it reaches the error, and then bisected on a logarithmic scale.

    Raises:
      ValueError: not even `max_codebooks` reach it.
    """
    low, high = 0, 1
    while attempt(high).nmse > max_nmse:
        if high == max_codebooks:
            best = min((attempt(c) for c in _powers_of_two(max_codebooks)), key=lambda t: t.nmse)
            raise ValueError(
                f"`max_nmse` is {max_nmse:g}, but the best within the limits is {best.nmse:.3g}, with "
                f"{best.codebooks} codebooks. Allow more error or codebooks, pass more rows, or take another method."
            )
        low, high = high, min(2 * high, max_codebooks)
    while high > max(CLOSE * low, low + 1):
        between = min(max(round(np.sqrt(low * high)), low + 1), high - 1)
        low, high = (low, between) if attempt(between).nmse <= max_nmse else (between, high)
    return high


def _powers_of_two(most: int) -> list[int]:
    """Returns the powers of two below `most`, and `most`: the numbers that `_fewest` tries while it doubles."""
    return sorted({min(2**k, most) for k in range(most.bit_length() + 1)})


def _blank(features: int, codebooks: int, outputs: int, config: FitConfig) -> MaddnessOp:
    """Returns an op of the given size that has learned nothing, whose calls take as long as those of a learned op.

    Method "auto" may learn either kind of trees: then the op has the slower kind.
    """
    kind = ObliqueTrees if config.method in ("oblique", "auto") else SplitTrees
    trees = kind.placeholder(features, codebooks, max(-(-features // codebooks), config.width or 0))
    tables = LookupTables(jnp.zeros((outputs, codebooks, LEAVES), jnp.uint8), jnp.zeros(outputs), jnp.zeros(outputs))
    return MaddnessOp(trees, tables, exact=_blank_term(features, outputs, config))


def _blank_term(features: int, outputs: int, config: FitConfig) -> ExactTerm | None:
    """Returns an exact term of zeros, of the size that `config` asks for, or None for no such term."""
    if not (config.rank or config.outliers):
        return None
    return ExactTerm(
        jnp.zeros((config.outliers + config.rank, outputs)),
        jnp.arange(config.outliers, dtype=jnp.int32) if config.outliers else None,
        jnp.zeros((features, config.rank)) if config.rank else None,
    )


def _seconds(op: MaddnessOp, x: np.ndarray) -> float:
    """Returns the least time of a call on the rows of `x`, in seconds, over at least five calls and 0.1 s."""
    rows, call = jnp.asarray(x[:16384]), jax.jit(amm)
    jax.block_until_ready(call(rows, op))  # compiles, which is not a cost of a call
    times: list[float] = []
    while len(times) < 5 or (sum(times) < 0.1 and len(times) < 1000):
        start = time.perf_counter()
        jax.block_until_ready(call(rows, op))
        times.append(time.perf_counter() - start)
    return min(times)
