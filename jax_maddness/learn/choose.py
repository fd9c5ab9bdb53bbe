"""`chosen`, the number of codebooks and the rank of an op where the user leaves both open."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from jax_maddness.core.int8 import GROUP
from jax_maddness.learn import costs as cost_model
from jax_maddness.learn.config import REPORTED_SHARE, FitConfig
from jax_maddness.learn.costs import CostModel
from jax_maddness.learn.data.held_out import split
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.evaluate import evaluate
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.sizes import last_that_fits
from jax_maddness.learn.steps import learn
from jax_maddness.learn.tables.factors import rounding

SPEEDUP = 4
"""An op whose size is chosen is this many times as quick as XLA's product in float32, if that can be had."""
_FEATURES_PER_CODEBOOK = 16  # of the largest number of codebooks; more bring little, and take long to learn
_MOST_HELD_OUT = 4096


@modes()
def chosen(
    rows: Rows,
    w: Float[np.ndarray, "features outputs"],
    bias: Float[np.ndarray, " outputs"],
    config: FitConfig,
    bar: Progress,
    costs: CostModel | None = None,
) -> tuple[int, FitConfig]:
    """Returns the number of codebooks and the options of the closest op that is four times as quick as XLA's product.

    If a whole product in int8 is as quick as that, it is taken, as nothing else is as close. Else as many codebooks as
    there is time for, up to one for every 16 features, factors of as large a rank as there is time for, and half as
    many codebooks with factors are learned from a part of the rows, and compared on the others. Where nothing is as
    quick, it is one codebook for every 16 features.

    Args:
      rows: the training rows; where they come in batches or shards, sizes are compared on a sample.
      w: weights.
      bias: vector that is added to every row of the product.
      config: the user's options. If they ask for factors, for a loss or for int8, nothing but C is left open: then it
        is one codebook for every 16 features, and 0 for int8.
      bar: shows progress.
      costs: times of all sizes; None for those of this machine.
    """
    features, outputs = w.shape
    codebooks = -(-features // _FEATURES_PER_CODEBOOK)
    if config.method == "int8":
        return 0, config
    held_out, others = split(len(rows.sample), REPORTED_SHARE, _MOST_HELD_OUT)
    if config.stands_alone or config.loss is not None or not len(held_out) or not _takes_int8(rows):
        return codebooks, config
    known = costs or cost_model.costs(bar)
    candidates = list(_candidates(known, features, outputs, codebooks, config)) or [(codebooks, config)]
    best = 0
    if len(candidates) > 1:
        train, test = Rows.of(rows.sample[others]), rows.sample[held_out]
        ops = [learn(train, w, bias, *candidate, bar) for candidate in candidates]
        best = int(np.argmin([evaluate(op, test, w, bias).nmse for op in ops]))
    # Processes that share the rows have measured different times: all of them take the choice of the first one.
    size, options = candidates[best]
    size, rank, whole = rows.agreed(np.array([size, options.rank, options.method == "int8"])).tolist()
    return size, FitConfig("int8", seed=config.seed) if whole else dataclasses.replace(config, rank=rank)


def _takes_int8(rows: Rows) -> bool:
    """Returns whether the rows are in the range that int8 factors take."""
    try:
        rounding(rows.sample)
    except ValueError:
        return False
    return True


def _candidates(
    costs: CostModel, features: int, outputs: int, largest: int, config: FitConfig
) -> Iterator[tuple[int, FitConfig]]:
    """Yields numbers of codebooks with options that are `SPEEDUP` times as quick as XLA's product in float32."""
    most = costs.exact_seconds(1, features, outputs) / SPEEDUP
    whole = FitConfig("int8", seed=config.seed)

    def fits(codebooks: int, options: FitConfig) -> bool:
        return costs.seconds(1, features, outputs, codebooks, options) <= most

    def with_groups(groups: int) -> FitConfig:
        return dataclasses.replace(config, rank=min(GROUP * groups, features, outputs))

    def with_factors(codebooks: int) -> Iterator[tuple[int, FitConfig]]:
        def groups_fit(groups: int) -> bool:
            return fits(codebooks, with_groups(groups))

        if groups_fit(1):
            groups = last_that_fits(-(-min(features, outputs) // GROUP), groups_fit, 1.0)
            yield codebooks, with_groups(groups)

    if fits(0, whole):
        yield 0, whole
        return
    yield from with_factors(0)
    if fits(1, config):
        codebooks = last_that_fits(largest, lambda size: fits(size, config), 1.0)
        yield codebooks, config
        if codebooks > 1:
            yield from with_factors(codebooks // 2)
