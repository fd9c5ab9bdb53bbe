"""The products that `fit_budget` chooses from, and the search for the size of each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core.amm import amm
from jax_maddness.core.int8 import GROUP
from jax_maddness.core.terms.factors import Factors
from jax_maddness.core.terms.int8_product import Int8ProductByRow
from jax_maddness.core.types import LEAVES, LookupTables, MaddnessOp, ObliqueTrees, SplitTrees, Term
from jax_maddness.learn.config import FitConfig

CLOSE = 1.125
"""Ratio between the smallest size that reaches the error and the largest that does not, at which the search ends."""


PRODUCT_NAMES = ("factors", "int8", "codes", "codes and factors")
"""The kinds of products that `fit_budget` knows."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """The measured error and costs of one product.

    Attributes:
      product: kind of the product: "codes", "factors", "codes and factors" or "int8".
      codebooks: number of codebooks, C.
      rank: rank of the factors, which learning rounds up to a multiple of 4; 0 without factors.
      nmse: NMSE on held-out rows, a fraction.
      num_bytes: size of the op's arrays in bytes.
      seconds: least time of several calls of `jit(amm)` on the rows of `x_train` (at most 16,384 of them), in seconds;
        None if it was not measured.
    """

    product: str
    codebooks: int
    rank: int
    nmse: float
    num_bytes: int
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Product:
    """A kind of product that comes in several sizes.

    Attributes:
      name: as in `Tried.product`.
      largest: the largest size; the smallest is 1.
      unit: what a size of 1 is called in errors.
      options: returns the number of codebooks and the options of learning for a size.
    """

    name: str
    largest: int
    unit: str
    options: Callable[[int], tuple[int, FitConfig]]


def products_of(features: int, outputs: int, config: FitConfig) -> dict[str, Product]:
    """Returns all kinds of products for `w` of the given shape, by name.

    Args:
      features, outputs: the shape of `w`.
      config: the user's options; its `rank` and `outliers` are part of every product that has codes.
    """
    most_directions = min(features, outputs)

    def with_rank(size: int) -> FitConfig:
        return dataclasses.replace(config, rank=min(GROUP * size, most_directions), outliers=0)

    groups = -(-most_directions // GROUP)
    products = (
        Product("codes", features, "one codebook", lambda size: (size, config)),
        Product("factors", groups, "rank 4", lambda size: (0, with_rank(size))),
        Product(
            "codes and factors",
            min(groups, features // GROUP),
            "rank 4 with 4 codebooks",
            lambda size: (GROUP * size, with_rank(size)),
        ),
        Product("int8", 1, "int8", lambda size: (0, FitConfig("int8", seed=config.seed))),
    )
    return {product.name: product for product in products if product.largest > 0}


def largest_within(
    product: Product, x: np.ndarray, outputs: int, num_bytes: int | None, max_seconds: float | None
) -> int:
    """Returns the largest size of a product within the limits of size and time.

    Raises:
      ValueError: not even the smallest is within them.
    """

    def blank(size: int) -> MaddnessOp:
        return placeholder(x.shape[1], outputs, *product.options(size))

    largest = product.largest
    if num_bytes is not None:
        if blank(1).nbytes > num_bytes:
            raise ValueError(f"`num_bytes` is {num_bytes}; {product.unit} takes {blank(1).nbytes:,}. Allow as many.")
        largest = last_that_fits(largest, lambda size: blank(size).nbytes <= num_bytes, 1.0)
    if max_seconds is not None and seconds_of(blank(largest), x) > max_seconds:
        shortest = seconds_of(blank(1), x)
        if shortest > max_seconds:
            raise ValueError(
                f"`max_seconds` is {max_seconds}; {product.unit} takes {shortest:.2g} s on {len(x):,} rows. "
                "Allow more time."
            )
        largest = last_that_fits(largest, lambda size: seconds_of(blank(size), x) <= max_seconds, CLOSE)
    return largest


def last_that_fits(largest: int, fits: Callable[[int], bool], close: float) -> int:
    """Returns the largest number up to `largest` for which `fits` holds, up to a factor of `close`.

    `fits(1)` must hold. If the result is less than the largest such number, then `close` times the result is too much.
    """
    low, high = 1, largest + 1
    # The search ends at a ratio of `high` to `low`, so it bisects on a logarithmic scale.
    while high > max(close * low, low + 1):
        between = min(max(round(np.sqrt(low * high)), low + 1), high - 1)
        low, high = (between, high) if fits(between) else (low, between)
    return low


def most_useful(attempt: Callable[[int], Tried], size: int) -> int:
    """Returns `size`, halved for as long as half of it has no larger error on held-out rows."""
    while size > 1 and attempt(size // 2).nmse <= attempt(size).nmse:
        size //= 2
    return size


def smallest(attempt: Callable[[int], Tried], largest: int, max_nmse: float) -> int | None:
    """Returns the smallest size that reaches `max_nmse`, up to a factor of `CLOSE`; None if even `largest` does not.

    The size is doubled until it reaches the error, and then bisected on a logarithmic scale.
    """
    low, high = 0, 1
    while attempt(high).nmse > max_nmse:
        if high == largest:
            return None
        low, high = high, min(2 * high, largest)
    while high > max(CLOSE * low, low + 1):
        between = min(max(round(np.sqrt(low * high)), low + 1), high - 1)
        low, high = (low, between) if attempt(between).nmse <= max_nmse else (between, high)
    return high


def placeholder(features: int, outputs: int, codebooks: int, config: FitConfig) -> MaddnessOp:
    """Returns an op of the given size that has learned nothing, whose calls take as long as those of a learned op.

    Method "auto" may learn either kind of trees: then the op has the slower kind.
    """
    kind = ObliqueTrees if config.method in ("oblique", "auto") and codebooks else SplitTrees
    width = max(-(-features // codebooks), config.width or 0) if codebooks else 0
    tables = LookupTables(jnp.zeros((outputs, codebooks, LEAVES), jnp.uint8), jnp.zeros(outputs), jnp.zeros(outputs))
    term: Term | None = None
    if config.method == "int8":
        term = Int8ProductByRow.placeholder(features, outputs)
    elif groups := -(-(config.rank + config.outliers) // GROUP):
        term = Factors.placeholder(features, GROUP * groups, outputs)
    return MaddnessOp(kind.placeholder(features, codebooks, width), tables, term=term)


def seconds_of(op: MaddnessOp, x: np.ndarray) -> float:
    """Returns the least time of a call on the rows of `x`, in seconds; on 16,384 of them at most."""
    return least_seconds(jax.jit(amm), jnp.asarray(x[:16384]), op)


def least_seconds(call: Callable[..., Any], *args: Any) -> float:
    """Returns the least time of a compiled call, in seconds, over at least five calls and 0.1 s."""
    jax.block_until_ready(call(*args))  # compiles, which is not a cost of a call
    times: list[float] = []
    while len(times) < 5 or (sum(times) < 0.1 and len(times) < 1000):
        start = time.perf_counter()
        jax.block_until_ready(call(*args))
        times.append(time.perf_counter() - start)
    return min(times)
