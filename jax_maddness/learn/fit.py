"""x_train, w -> op: the steps of learning, composed.

    w --split--> exact term, the rest of w
    x_train --groups, splits--> trees --encode--> codes --gather--> Statistics --solve--> float tables --look_up--> op

A method decides on the trees, and on how its tables are regularised (`Learned`); what follows is the same for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jax_maddness.core.types import LookupTables, MaddnessOp
from jax_maddness.learn import validate
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.data.rows import Rows, exponent, power_of_two
from jax_maddness.learn.methods import oblique
from jax_maddness.learn.methods.auto import METHODS
from jax_maddness.learn.methods.objective import Objective
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.tables import exact_term as terms
from jax_maddness.learn.tables.solve import Learned, look_up, padded_own, solve

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How `fit` learns.

    Attributes:
      method: `"paper"`: Blalock & Guttag 2021, with exact sums, and a scale and an offset per output. `"axis"`: trees
        of the same kind, grown on what the other trees leave of `x @ w`, over all features, by validation: more
        accurate at the same cost of inference, and slower to learn. `"oblique"`: trees on projections of each
        codebook's features (`ObliqueTrees`), trained: about half the error; encoding takes 4 int8 multiply-adds per
        feature and row, and learning a minute. `"auto"`: the one of these three that serves best on rows held out, the
        cheaper where that is not sure; up to 512 rows by cross-validation.
      ridge: weight of the penalty that keeps prototypes near their bucket's mean, in rows (lambda of section 4.2), for
        `"paper"`; the others choose it.
      num_split_features: features whose thresholds are searched per level and codebook (section 4.1), on groups.
      width: features that each codebook of an oblique tree projects, from D/C (None: the least) to D: more are more
        accurate, and take `4 * C * width` multiply-adds per row.
      rank: of an exact term for the principal directions of `x @ w`, so that codes have to say only what it leaves;
        `rank * (D + M)` multiply-adds per row. 0: none. `docs/terms.md` says where it pays.
      outliers: how many features, those with most power in `x @ w`, keep an exact product; `outliers * M`
        multiply-adds per row. 0: none.
      steps: of training oblique trees, at most: a multiple of 50. It ends sooner where rows held out gain nothing.
      seed: of what is random: which rows are held out, and what training draws.
      loss: what training makes small instead of the squared error, on oblique trees (`"auto"` takes these then): a
        JAX function of outputs `[rows, M]`, the exact ones `x @ w + bias`, and the same rows of `fit`'s `extra` arrays;
        it returns a scalar. Trees and tables are trained by it, and kept as they do best on rows held out. Define it
        once: every new function is compiled anew.

    Example:
      >>> def weighted_rows(y, exact, weight):  # with fit(..., extra=(weights,))
      ...     return (weight * jnp.square(y - exact).sum(-1)).mean()
      >>> def weighted_outputs(y, exact):
      ...     return (jnp.square(y - exact) @ jnp.array([1.0, 1.0, 100.0])).mean()
      >>> def cross_entropy(y, exact, label):  # of logits, with extra=(labels,); for a hidden layer, of `head(y)`
      ...     return -jnp.take_along_axis(jax.nn.log_softmax(y), label[:, None], axis=-1).mean()
      >>> def distillation(y, exact):  # the exact logits are the teacher; or pass another's as `extra`
      ...     return -(jax.nn.softmax(exact) * jax.nn.log_softmax(y)).sum(-1).mean()
      >>> FitConfig("oblique", loss=cross_entropy).loss is cross_entropy
      True
    """

    method: str = "auto"
    ridge: float = 1.0
    num_split_features: int = 4
    width: int | None = None
    rank: int = 0
    outliers: int = 0
    steps: int = oblique.STEPS
    seed: int = 0
    loss: Callable[..., Array] | None = None

    def __post_init__(self) -> None:
        validate.config(self, tuple(METHODS))


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

    For each of `num_codebooks` codebooks a tree of four levels is grown: `config.method` says how. In method "paper" it
    is grown on a contiguous group of features, to leave the least squared error about its 16 bucket means (section
    4.1). Ridge regression over all codebooks' codes at once refits what each code stands for (section 4.2); its
    products with `w`, in 8 bits, are the op's tables. The error falls with more codebooks, and with more rows: have at
    least some hundreds, better thousands.

    Works in float32; the same inputs give the same op, bit by bit, on the same machine with the same number of threads
    (which decides the order of XLA's sums). Call it outside of `jax.jit`. Where several processes share the rows, all
    of them call it, with the same other arguments, and get the same op, each on its own default device.

    Args:
      x_train: samples of `x`; leading dimensions are flattened to rows. Real; used as float32. Or a function that
        returns an iterator over batches of them, always the same ones: then they are read twice and never held at once.
        Or a `jax.Array` whose rows are sharded over the devices of a `jax.sharding.Mesh`: then they stay there. From
        batches and shards, trees are grown on a random sample of 65,536 rows, of which every process gets a copy;
        tables are learned from all.
      w: the weights to multiply with.
      bias: what to add to every row of the product.
      num_codebooks: C, from 1 to the number of features. Inference costs C look-ups per row and output.
      config: how to learn; by default what serves best on rows held out, which takes seconds to minutes.
      extra: arrays for `config.loss`, with an entry for each row of `x_train`: labels, weights, what a teacher says.
      keep_weights: keep `w` in the op, for gradients with respect to `x`.
      progress: show a progress bar; None shows it where learning takes longer than two seconds.

    Raises:
      TypeError: an argument is of the wrong kind, is complex, or is traced by `jax.jit`, `jax.vmap` or `jax.grad`.
      ValueError: shapes do not match, there are no rows, they are sharded over features too, values are NaN, infinite,
        or so large that `x @ w` overflows, `num_codebooks` is not between 1 and the number of features, the exact term
        is to be larger than `w`, or `extra` comes without a loss or with rows in batches or shards.

    Example:
      >>> x = np.random.default_rng(0).standard_normal((1000, 8))
      >>> fit(x, np.ones((8, 3)), num_codebooks=2, config=FitConfig("paper"))
      MaddnessOp(8 -> 3, 2 codebooks, 272 bytes)
    """
    validate.kind(config, FitConfig, "config")
    if extra and config.loss is None:
        raise ValueError("`extra` is given without a `loss`. Pass the loss that wants it: `FitConfig(loss=...)`.")
    rows = Rows.of(x_train, extra)
    weights, offset = validate.product(rows.num_features, w, bias)
    codebooks = validate.codebooks(num_codebooks, rows.num_features)
    with Progress(progress) as bar:
        op = learn(rows, weights, offset, codebooks, config, bar)
    return dataclasses.replace(op, weights=jnp.asarray(weights)) if keep_weights else op


def learn(
    rows: Rows,
    w: Float[np.ndarray, "features outputs"],
    bias: Float[np.ndarray, " outputs"],
    num_codebooks: int,
    config: FitConfig,
    bar: Progress,
) -> MaddnessOp:
    """`fit`, of arguments that have been checked."""
    with modes():
        exact, w = rows.agreed(terms.split(rows, w, config))
        w_exponent = exponent(float(np.abs(w).max()))
        w = w * power_of_two(-w_exponent)
        if config.loss is not None:
            config = dataclasses.replace(config, loss=Objective(config.loss, power_of_two(w_exponent), bias))
        bar.expect(rows.num_steps + 1)
        bar.stage("splits")
        learned = rows.agreed(METHODS[config.method](rows, w, num_codebooks, config, bar))
        tables = tables_for(rows, learned, w, w_exponent, bias, bar)
        return rows.agreed(MaddnessOp(learned.trees, tables, exact=exact))


def tables_for(
    rows: Rows,
    learned: Learned,
    w: Float[np.ndarray, "features outputs"],
    w_exponent: int,
    bias: Float[np.ndarray, " outputs"],
    bar: Progress,
) -> LookupTables:
    """Tables of `x @ (2**w_exponent * w) + bias` for trees that have been learned: what all methods share."""
    bar.stage("prototypes")
    statistics = rows.statistics(learned.trees, bar.step)
    bar.stage("tables")
    found = learned.tables or solve(statistics, padded_own(learned.own, statistics), w, rows.count, learned.ridge)
    constant = np.ldexp(rows.mean, -rows.exponent) @ w.astype(np.float64)
    used = np.asarray(statistics.counts) > 0
    tables = look_up(found, used, constant, rows.exponent + w_exponent, bias, learned.trees.num_codebooks)
    bar.step()
    return tables
