"""The steps of `fit`, composed: what it does once its arguments are validated.

    w --split--> factors, remainder of w
    x_train --groups, splits--> trees --encode--> codes --gather--> Statistics --solve--> float tables --quantize--> op

A method decides on the trees, and on how their tables are regularized (`Learned`); the steps after that are the same
for all methods. So is the judgement of the tables on held-out rows, which shrinks those that would do harm.
"""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

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
        warning = ""
        if num_codebooks:
            trees, tables, verdict = look_ups(rows, w, bias, num_codebooks, config, bar)
            warning = "" if verdict.useful else _harm(verdict, num_codebooks, rows.count, low_rank is not None)
        else:
            trees, tables = without_codebooks(rows, w, bias)
        if warn and (warning := warning or tails.warning(tails.largest_share(rows, exact), len(rows.sample))):
            warnings.warn(warning, stacklevel=3)
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
