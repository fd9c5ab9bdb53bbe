"""`fit`, which composes the steps of learning.

    w --split--> factors, remainder of w
    x_train --groups, splits--> trees --encode--> codes --gather--> Statistics --solve--> float tables --quantize--> op

A method decides on the trees, and on how their tables are regularized (`Learned`); the steps after that are the same
for all methods. So is the judgement of the tables on held-out rows, which shrinks those that would do harm.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_maddness.core import arguments
from jax_maddness.core.pytrees import register_with_flax
from jax_maddness.core.types import LEAVES, LookupTables, MaddnessOp, SplitTrees, Trees
from jax_maddness.learn import validate
from jax_maddness.learn.config import FitConfig
from jax_maddness.learn.data import tails
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.data.rows import Rows, exponent, power_of_two
from jax_maddness.learn.methods.auto import METHODS
from jax_maddness.learn.methods.learned import Learned
from jax_maddness.learn.methods.objective import Objective
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.tables import factors, int8_product
from jax_maddness.learn.tables.shrink import solve_shrunk
from jax_maddness.learn.tables.solve import to_lookup_tables
from jax_maddness.learn.tables.verdict import Verdict, unjudged


def fit(
    x_train: Float[ArrayLike, "... features"] | Callable[[], Iterator[Float[ArrayLike, "... features"]]],
    w: Float[ArrayLike, "features outputs"],
    bias: Float[ArrayLike, " outputs"] | None = None,
    *,
    num_codebooks: int,
    config: FitConfig = FitConfig(),
    extra: Sequence[ArrayLike] = (),
    keep_weights: bool = False,
    progress: bool | None = None,
) -> MaddnessOp:
    """Learns an op such that `amm(x, op)` approximates `x @ w + bias` for rows like those of `x_train`.

    For each of `num_codebooks` codebooks a tree of four levels is grown, by the method `config.method`. Method "paper"
    grows it on a contiguous group of features, so that it leaves the least squared error about its 16 bucket means
    (Blalock & Guttag 2021, section 4.1). Ridge regression over the codes of all codebooks at once refits the prototypes
    (section 4.2); their products with `w`, in 8 bits, are the op's lookup tables (section 4.3). The error falls with
    more codebooks, and with more rows: have at least some hundreds, better thousands.

    Learning works in float32. The same inputs give the same op, bit by bit, on the same machine with the same number of
    threads (which decides the order of XLA's sums). Call `fit` outside of `jax.jit`. Where several processes share the
    rows, all of them call it, with the same other arguments, and get the same op, each on its own default device.

    Args:
      x_train: training rows, `[..., D]`, of a real dtype; leading dimensions are flattened to rows, and values are used
        as float32. Or a function that returns an iterator over batches of such rows, the same ones at every call: then
        the batches are read twice and are never all in memory at once. Or a `jax.Array` whose rows are sharded over the
        devices of a `jax.sharding.Mesh`: then the rows stay there. From batches and shards, trees are grown on a random
        sample of 65,536 rows, of which every process gets a copy; tables are learned from all rows.
      w: weights to multiply with, `[D, M]`, of a real dtype; used as float32.
      bias: vector `[M]` that is added to every row of the product; None stands for zeros.
      num_codebooks: number of codebooks, C, from 1 to the number of features. Inference takes C look-ups per row and
        output. 0 where `config` asks for factors, which then stand alone, or for method "int8".
      config: options of learning; by default the method with the least error on held-out rows, which takes seconds to
        minutes.
      extra: arrays for `config.loss`, with an entry for each row of `x_train`: labels, weights, or a teacher's outputs.
      keep_weights: whether to keep `w` in the op, for gradients with respect to `x`.
      progress: whether to show a progress bar on stderr; None shows it where learning takes longer than two seconds.

    Returns:
      The op, whose arrays are on the default device: `num_codebooks` trees, lookup tables for M outputs, the term that
      `config` asks for, and `w` if `keep_weights`.

    Raises:
      TypeError: an argument is of the wrong kind, is complex, or is traced by `jax.jit`, `jax.vmap` or `jax.grad`.
      ValueError: shapes do not match; there are no rows; rows are sharded over features too; values are NaN, infinite,
        or so large that `x @ w` overflows; `num_codebooks` is not between 1 and the number of features; `rank` or
        `outliers` is larger than `w` allows; rows vary by more or less than terms in int8 take; or `extra` comes
        without a loss or with rows in batches or shards.

    Warns:
      UserWarning: on held-out rows, the look-ups are hardly better than the mean of the outputs, or not surely so; or
        one row of at least 100 has a tenth or more of the outputs' variance.

    Example:
      >>> x = np.random.default_rng(0).standard_normal((1000, 8))
      >>> fit(x, np.ones((8, 3)), num_codebooks=2, config=FitConfig("paper"))
      MaddnessOp(8 -> 3, 2 codebooks, 272 bytes)
    """
    register_with_flax()
    arguments.instance(config, "config", FitConfig)
    keep_weights = arguments.flag(keep_weights, "keep_weights")
    if not isinstance(extra, Sequence) or isinstance(extra, str):  # of an array nobody could say whether it is one
        raise TypeError(f"`extra` is {type(extra).__name__}; expected a list of arrays: `extra=(labels,)`.")
    if extra and config.loss is None:
        raise ValueError("`extra` is given without a `loss`. Pass the loss that wants it: `FitConfig(loss=...)`.")
    rows = Rows.of(x_train, extra)
    weights, offset = validate.product(rows.num_features, w, bias)
    codebooks = num_codebooks_of(num_codebooks, rows.num_features, config)
    with Progress(progress) as bar:
        op = learn(rows, weights, offset, codebooks, config, bar, warn=True)
    return dataclasses.replace(op, weights=jnp.asarray(weights)) if keep_weights else op


def num_codebooks_of(number: int, num_features: int, config: FitConfig) -> int:
    """Returns `num_codebooks` as an int; raises unless trees, factors and their number go together."""
    codebooks = validate.codebooks(number, num_features, least=0 if config.stands_alone else 1)
    if config.method == "int8" and codebooks:
        raise ValueError(
            f'`num_codebooks` is {codebooks}, but method "int8" computes the whole product and leaves nothing to '
            "codes. Pass `num_codebooks=0`, or take another method."
        )
    return codebooks


def learn(
    rows: Rows,
    w: Float[np.ndarray, "features outputs"],
    bias: Float[np.ndarray, " outputs"],
    num_codebooks: int,
    config: FitConfig,
    bar: Progress,
    warn: bool = False,
) -> MaddnessOp:
    """Learns an op from arguments that have been validated, as `fit` does; with its warning if `warn`."""
    with modes():
        if config.method == "int8":
            return rows.agreed(int8_product.learn(rows, w, bias))
        # Steps that depend on the threads' order of sums may differ between processes: `agreed` takes the first one's.
        exact = w
        low_rank, w = rows.agreed(factors.split(rows, w, config))
        if low_rank is not None:
            bias = bias + low_rank.constant
        said = ""
        if num_codebooks:
            trees, tables, verdict = look_ups(rows, w, bias, num_codebooks, config, bar)
            said = "" if verdict.useful else _harm(verdict, num_codebooks, rows.count, low_rank is not None)
        else:
            trees, tables = without_codebooks(rows, w, bias)
        if warn and (said := said or tails.warning(tails.largest_share(rows, exact), len(rows.sample))):
            warnings.warn(said, stacklevel=3)
        tables, term = (tables, None) if low_rank is None else factors.joined(tables, low_rank)
        return rows.agreed(MaddnessOp(trees, tables, term=term))


def look_ups(
    rows: Rows,
    w: Float[np.ndarray, "features outputs"],
    bias: Float[np.ndarray, " outputs"],
    num_codebooks: int,
    config: FitConfig,
    bar: Progress,
) -> tuple[Trees, LookupTables, Verdict]:
    """Learns trees and tables whose look-ups approximate `x @ w + bias`, by the method of `config`.

    Returns:
      Trees, tables, and what held-out rows say of the tables.
    """
    # Scaling by a power of two rounds nothing, and keeps the squares of large or tiny weights within float32.
    w_exponent = exponent(float(np.abs(w).max()))
    w = w * power_of_two(-w_exponent)
    # A loss of the user's wants outputs in the user's units, so the objective undoes the scaling.
    objective = Objective(config.loss, power_of_two(w_exponent), bias) if config.loss is not None else None
    bar.expect(rows.num_steps + 1)
    bar.stage("splits")
    learned = rows.agreed(METHODS[config.method](rows, w, num_codebooks, config, bar, objective))
    return learned.trees, *tables_for(rows, learned, w, w_exponent, bias, bar, config.seed)


def without_codebooks(
    rows: Rows, w: Float[np.ndarray, "features outputs"], bias: Float[np.ndarray, " outputs"]
) -> tuple[Trees, LookupTables]:
    """Returns no trees, and tables that give the outputs of the mean row of `x @ w + bias` for every row."""
    num_features, num_outputs = w.shape
    trees = SplitTrees.placeholder(num_features, 0, 0)
    values = jnp.zeros((num_outputs, 0, LEAVES), jnp.uint8)
    scale, offset = validate.in_range(np.zeros(num_outputs), rows.mean @ w.astype(np.float64) + bias)
    return trees, LookupTables(values, scale, offset)


def _harm(verdict: Verdict, num_codebooks: int, rows: int, has_factors: bool) -> str:
    """Returns the words of the warning about look-ups that bring next to nothing."""
    rival = "the factors alone" if has_factors else "the mean of the outputs"
    scaled = f", after their tables were multiplied by {verdict.factor:.2g}" if verdict.factor < 1 else ""
    clip = ""
    if verdict.largest > tails.DOMINANT:
        clip = f" One row has {verdict.largest:.0%} of the outputs' variance: clip such rows, or keep them exact."
    return (
        f"The look-ups of {num_codebooks} codebooks are hardly better than {rival}: NMSE {verdict.nmse:.2g} on "
        f"{len(verdict.errors):,} held-out rows, of {rows:,} rows in all{scaled}.{clip} Use more codebooks, more rows "
        "or factors (`FitConfig(rank=...)`), or keep the product exact."
    )


def tables_for(
    rows: Rows,
    learned: Learned,
    w: Float[np.ndarray, "features outputs"],
    w_exponent: int,
    bias: Float[np.ndarray, " outputs"],
    bar: Progress,
    seed: int,
) -> tuple[LookupTables, Verdict]:
    """Solves and quantizes the tables of `x @ (2**w_exponent * w) + bias` for learned trees, as all methods do.

    Args:
      rows: the training rows, all of which count.
      learned: the trees, and how their tables are regularized.
      w: weights, scaled to a largest magnitude near 1.
      w_exponent: exponent of the power of two by which `w` was divided.
      bias: vector that is added to every row of the product.
      bar: shows progress.
      seed: seed of the random choice of held-out rows.

    Returns:
      The tables, and what held-out rows say of them; tables that were trained on a loss of the user's are not judged.
    """
    bar.stage("prototypes")
    statistics = rows.statistics(learned.trees, bar.step)
    bar.stage("tables")
    if learned.tables is not None:
        solution, verdict = learned.tables, unjudged(1.0)
    else:
        solution, verdict = solve_shrunk(
            rows, statistics, learned.trees, learned.own, w, learned.ridge, seed, learned.verdict
        )
    # Tables are solved for rows about their mean, so the product of the mean is a constant of every row.
    constant = np.ldexp(rows.mean, -rows.exponent) @ w.astype(np.float64)
    shares = np.asarray(statistics.counts) / rows.count
    tables = to_lookup_tables(solution, shares, constant, rows.exponent + w_exponent, bias, learned.trees.num_codebooks)
    bar.step()
    return tables, verdict
