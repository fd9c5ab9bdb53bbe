"""`fit`, which learns an op from training rows and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_maddness.core import arguments
from jax_maddness.core.pytrees import register_with_flax
from jax_maddness.core.types import SMALL_BATCH, MaddnessOp, with_small_batch_tables
from jax_maddness.learn import validate
from jax_maddness.learn.choose import chosen
from jax_maddness.learn.config import FitConfig
from jax_maddness.learn.costs import CostModel
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.steps import learn


def fit(
    x_train: Float[ArrayLike, "... features"] | Callable[[], Iterator[Float[ArrayLike, "... features"]]],
    w: Float[ArrayLike, "features outputs"],
    bias: Float[ArrayLike, " outputs"] | None = None,
    *,
    num_codebooks: int | None = None,
    config: FitConfig = FitConfig(),
    extra: Sequence[ArrayLike] = (),
    keep_weights: bool = False,
    rows: int | None = None,
    costs: CostModel | None = None,
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
        output. 0 where `config` asks for factors, which then stand alone, or for method "int8". None: chosen, together
        with the rank, from what `costs` says is four times as quick as XLA's product in float32: the whole product in
        int8 if that is; else codes with at most D/16 codebooks, factors or both, whichever has the least error on
        held-out rows, which takes about three times as long to learn. D/16 where nothing is as quick, where rows are
        out of the range of int8, or where `config` has a rank, outliers or a loss.
      config: options of learning; by default the method with the least error on held-out rows, which takes seconds to
        minutes.
      extra: arrays for `config.loss`, with an entry for each row of `x_train`: labels, weights, or a teacher's outputs.
      keep_weights: whether to keep `w` in the op, for gradients with respect to `x`.
      rows: number of rows of a later call of `amm`, which is quicker for at most 8 rows with tables in a second layout:
        the op then has both (`with_small_batch_tables`, of which `save` keeps one). None: one layout, for more rows.
      costs: the times by which sizes are chosen; None: those of this machine, which are measured once, in some seconds,
        and kept in a file (`python -m jax_maddness tune`). With given costs, the choice is the same on every machine.
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
        one row has more than a tenth of the outputs' variance (among 100 to 250 rows: more than 25 / rows).

    Example:
      >>> import numpy as np
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
    rows_per_call = SMALL_BATCH + 1 if rows is None else arguments.integer(rows, "rows", 1, ", or None")
    training = Rows.of(x_train, extra)
    weights, offset = validate.product(training.num_features, w, bias)
    if costs is not None:
        arguments.instance(costs, "costs", CostModel, "`measure_costs` returns one")
    with Progress(progress) as bar:
        if num_codebooks is None:
            codebooks, config = chosen(training, weights, offset, config, bar, costs)
        else:
            codebooks = num_codebooks_of(num_codebooks, training.num_features, config)
        op = learn(training, weights, offset, codebooks, config, bar, warn=True)
    op = with_small_batch_tables(op) if rows_per_call <= SMALL_BATCH and op.num_codebooks else op
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
