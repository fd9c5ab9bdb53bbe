"""`fit_budget`, which searches the kind and the size of product that meet a budget of error, size or time."""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_maddness.core import arguments
from jax_maddness.core.atomic import replace_file
from jax_maddness.core.types import MaddnessOp
from jax_maddness.learn import validate
from jax_maddness.learn.config import REPORTED_SHARE, FitConfig
from jax_maddness.learn.data.held_out import split
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.evaluate import evaluate
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.sizes import (
    PRODUCT_NAMES,
    Product,
    Tried,
    largest_within,
    most_useful,
    placeholder,
    products_of,
    seconds_of,
    smallest,
)
from jax_maddness.learn.steps import learn
from jax_maddness.learn.tables.factors import rounding

MOST_HELD_OUT = 4096
"""Largest number of held-out rows on which errors are measured."""
_PAPER = FitConfig("paper")
_PRODUCTS = ("factors", "int8", "codes")  # the others rarely win by much, and take as long as codes


@dataclasses.dataclass(frozen=True)
class BudgetReport:
    """The op that `fit_budget` chose, and everything that it tried.

    `print` shows the trials as a table, and `picture` draws them.

    Attributes:
      op: op of the chosen kind and size, learned from all rows.
      trace: error and costs of everything that was tried, in the order of the search.
      chosen: the entry of `trace` that `op` was learned like.
    """

    op: MaddnessOp
    trace: tuple[Tried, ...]
    chosen: Tried

    def __str__(self) -> str:
        lines = ["| product | C | rank | NMSE on held-out rows | bytes | seconds |", "|---|---|---|---|---|---|"]
        for t in sorted(self.trace, key=lambda t: (t.product, t.codebooks, t.rank)):
            bold = "**" if t == self.chosen else ""
            seconds = "" if t.seconds is None else f"{t.seconds:.2e}"
            lines.append(
                f"| {bold}{t.product}{bold} | {t.codebooks} | {t.rank} | {t.nmse:.4g} | {t.num_bytes:,} | {seconds} |"
            )
        return "\n".join(lines)

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draws the error of everything tried against its size, and its time if that was measured.

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
        tried = sorted(self.trace, key=lambda t: (t.product, t.num_bytes))
        costs: dict[str, list[float]] = {"bytes": [t.num_bytes for t in tried]}
        seconds = [t.seconds for t in tried if t.seconds is not None]
        if len(seconds) == len(tried):
            costs["seconds"] = seconds
        figure = Figure(figsize=(4.5 * len(costs), 3.5), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (name, values) in zip(figure.subplots(1, len(costs), squeeze=False).flat, costs.items(), strict=True):
            for product in dict.fromkeys(t.product for t in tried):
                some = [(cost, t) for cost, t in zip(values, tried, strict=True) if t.product == product]
                axes.plot([cost for cost, _ in some], [t.nmse for _, t in some], "o-", label=product)
                for cost, t in some:
                    sizes = [f"C = {t.codebooks}"] * bool(t.codebooks) + [f"rank {t.rank}"] * bool(t.rank)
                    bold = "bold" if t == self.chosen else "normal"
                    axes.annotate(", ".join(sizes), (cost, t.nmse), fontsize=8, weight=bold)
            axes.set(xscale="log", yscale="log", xlabel=name, ylabel="NMSE on held-out rows")
            axes.grid(alpha=0.25)
            axes.legend()
        suffix = pathlib.PurePath(path).suffix[1:] or "png"
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix, dpi=110)
        replace_file(path, lambda file: file.write(drawn.getvalue()))


def fit_budget(
    x_train: Float[ArrayLike, "... features"],
    w: Float[ArrayLike, "features outputs"],
    bias: Float[ArrayLike, " outputs"] | None = None,
    *,
    max_nmse: float | None = None,
    num_bytes: int | None = None,
    max_seconds: float | None = None,
    products: Sequence[str] = _PRODUCTS,
    config: FitConfig = _PAPER,
    progress: bool | None = None,
) -> BudgetReport:
    """Learns an op with the kind and size of product that a budget asks for.

    With `max_nmse`, each kind of product gets the smallest size that reaches it on held-out rows, and the quickest of
    these is chosen. Without it, each gets the largest size that the other limits allow, or a smaller one where a larger
    does not help, and the one with the least error is chosen. Sizes and times are known without learning.

    Every size is learned from nothing, as groups, trees and directions differ. Rows are validated and held out only
    once, and compiled functions serve for all sizes that are padded alike. The methods of learning are those of `fit`
    (Blalock & Guttag 2021, section 4); factors and the search are not in the paper.

    Args:
      x_train: training rows, `[..., D]`, of a real dtype; leading dimensions are flattened to rows. At least two rows.
      w: weights to multiply with, `[D, M]`, of a real dtype.
      bias: vector `[M]` that is added to every row of the product; None stands for zeros.
      max_nmse: largest NMSE, `|y - y_exact|^2 / |y_exact - mean|^2`, on held-out rows; a fraction.
      num_bytes: largest size of the op's arrays, in bytes.
      max_seconds: longest time of one call of `amm` on the rows of `x_train` (at most 16,384 of them), in seconds, on
        this machine under its present load.
      products: kinds of products to choose from: `"codes"`, `"factors"` (`Factors` alone), `"codes and factors"` (as
        many codebooks as directions), `"int8"` (`Int8Product` or `Int8ProductByRow`). By default all but the third,
        which rarely wins by much and takes as long to learn as codes.
      config: options of learning trees; by default those of the quickest method. Its `rank` and `outliers` hold for
        `"codes"`.
      progress: whether to show a progress bar on stderr; None shows it where learning takes longer than two seconds.

    Returns:
      A report with the op, which is learned from all rows, and with the error and costs of everything that was tried.

    Raises:
      TypeError: an argument is of the wrong kind, as in `fit`.
      ValueError: an argument is invalid, as in `fit`; no limit is given, or one is not a positive number; a product is
        unknown; there is only one row; or no product is within the limits.

    Example:
      >>> x = np.random.default_rng(0).standard_normal((300, 8))
      >>> fit_budget(x, np.ones((8, 3)), num_bytes=300, products=["codes"]).op
      MaddnessOp(8 -> 3, 2 codebooks, 272 bytes)
    """
    arguments.instance(config, "config", FitConfig)
    limits = {"max_nmse": max_nmse, "num_bytes": num_bytes, "max_seconds": max_seconds}
    _validate(limits)
    x = validate.samples(x_train)
    weights, offset = validate.product(x.shape[1], w, bias)
    held_out, others = split(len(x), REPORTED_SHARE, MOST_HELD_OUT)
    if not len(held_out):
        raise ValueError("`x_train` has one row; a budget needs rows to judge by. Pass many rows.")
    train_rows, held_out_rows = Rows.of(x[others]), x[held_out]
    candidates = _allowed(_chosen_products(products, config, weights), x, weights.shape[1], num_bytes, max_seconds)
    timed = max_seconds is not None or (max_nmse is not None and len(candidates) > 1)
    trace: dict[tuple[str, int], Tried] = {}
    with Progress(progress) as bar:

        def attempt(product: Product, size: int) -> Tried:
            if (product.name, size) not in trace:
                codebooks, options = product.options(size)
                op = learn(train_rows, weights, offset, codebooks, options, bar)
                seconds = (
                    seconds_of(placeholder(x.shape[1], weights.shape[1], codebooks, options), x) if timed else None
                )
                nmse = evaluate(op, held_out_rows, weights, offset).nmse
                tried = Tried(product.name, codebooks, options.rank, nmse, op.nbytes, seconds)
                trace[product.name, size] = tried
            return trace[product.name, size]

        product, size = _best(attempt, candidates, max_nmse)
        op = learn(Rows.of(x), weights, offset, *product.options(size), bar, warn=True)
    return BudgetReport(op, tuple(trace.values()), trace[product.name, size])


def _chosen_products(names: Sequence[str], config: FitConfig, w: np.ndarray) -> list[Product]:
    """Returns the products called `names` for `w`, validated."""
    known = products_of(w.shape[0], w.shape[1], config)
    given = [] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if not given or not all(isinstance(name, str) and name in PRODUCT_NAMES for name in given):
        choices = ", ".join(map(repr, PRODUCT_NAMES))
        raise ValueError(f"`products` is {names!r:.100}; expected a list of some of: {choices}.")
    return [known[name] for name in given if name in known]


def _allowed(
    products: list[Product], x: np.ndarray, outputs: int, num_bytes: int | None, max_seconds: float | None
) -> list[tuple[Product, int]]:
    """Returns the products that are within the limits of size and time, each with its largest size."""
    allowed, reasons = [], []
    for product in products:
        try:
            if product.name != "codes":
                rounding(x)  # int8 does not take rows of any size
            allowed.append((product, largest_within(product, x, outputs, num_bytes, max_seconds)))
        except ValueError as error:
            reasons.append(error)
    if not allowed:
        raise reasons[-1]
    return allowed


def _best(
    attempt: Callable[[Product, int], Tried], candidates: list[tuple[Product, int]], max_nmse: float | None
) -> tuple[Product, int]:
    """Returns the quickest product that reaches `max_nmse`, or without it the one with the least error.

    Raises:
      ValueError: none reaches it.
    """
    found: list[tuple[float, Product, int]] = []
    for product, largest in candidates:

        def of_size(size: int, product: Product = product) -> Tried:
            return attempt(product, size)

        if max_nmse is None:
            size = most_useful(of_size, largest)
            found.append((of_size(size).nmse, product, size))
        elif (reached := smallest(of_size, largest, max_nmse)) is not None:
            found.append((of_size(reached).seconds or 0.0, product, reached))
    if not found:
        best = min((attempt(product, largest) for product, largest in candidates), key=lambda t: t.nmse)
        raise ValueError(
            f"`max_nmse` is {max_nmse:g}, but the best within the limits is {best.nmse:.3g}, by {best.product} with "
            f"{best.codebooks} codebooks and rank {best.rank}. Allow more error or a larger size, pass more rows, or "
            "take another method."
        )
    return min(found, key=lambda entry: entry[0])[1:]


def _validate(limits: dict[str, float | None]) -> None:
    """Raises `ValueError` unless at least one limit is given, and all of them are positive numbers."""
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if not given:
        raise ValueError("No budget is given. Pass `max_nmse`, `num_bytes` or `max_seconds`, or several of them.")
    for name, limit in given.items():
        if not (isinstance(limit, int | float) and not isinstance(limit, bool) and np.isfinite(limit) and limit > 0):
            raise ValueError(f"`{name}` is {limit!r}; expected a positive number.")
