"""The solution of float tables that held-out rows do not show to do harm, for trees of any method.

With a few rows per code, the paper's penalty of one row repeats the noise of single rows, so that more codebooks make
an op worse, up to worse than the mean of the outputs. Two remedies are taken on held-out rows: the weight of the
penalty, which keeps tables near the products of the bucket means, and a factor of all tables, which brings outputs
nearer to their mean. The factor helps where `w` cancels most of what is common to the features: the products of the
bucket means then err by more than the outputs vary, whatever the penalty.

The statistics of all rows minus those of the held-out rows are those of the others, so that nothing is summed twice.
Trees may have seen the held-out rows: that makes errors too small, but hardly changes which penalty has the least.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from jax_maddness.core.types import LEAVES, Trees
from jax_maddness.learn.config import FEW_ROWS, FOLDS, HELD_OUT_SHARE
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.rows import Rows, in_blocks
from jax_maddness.learn.data.statistics import Statistics, encoder
from jax_maddness.learn.tables.ridge import Solution
from jax_maddness.learn.tables.solve import RIDGES, nearest_minimum, padded_own, predict, solve
from jax_maddness.learn.tables.verdict import Comparison, Verdict, are_few, unjudged, verdict

_FEWEST, _MOST = 32, 1024  # held-out rows: the fewest that judge anything, and the most
_PAPERS_RIDGE = 1.0
_FIRST_RIDGE = 3  # the place in `RIDGES` where the search begins: 30 rows, near the best with a few rows per code


def solve_shrunk(
    rows: Rows,
    statistics: Statistics,
    trees: Trees,
    own: Bool[np.ndarray, "codebooks features"] | None,
    w: Float[np.ndarray, "features outputs"],
    ridge: float | None,
    seed: int,
    known: Verdict | None = None,
) -> tuple[Solution, Verdict]:
    """Solves the float tables from all rows, with the penalty and the factor that held-out rows choose.

    Args:
      rows: the training rows.
      statistics: statistics of all rows about their mean.
      trees: trees of any kind.
      own: features in which tables shrink toward bucket means; None for those that the trees explain best.
      w: weights.
      ridge: weight of the penalty, in rows; None for the paper's or, with few rows per code, the best one.
      seed: seed of the random choice of held-out rows, the one with which the trees were learned.
      known: verdict to follow; None for one of the tables of `trees`. With fewer than 32 rows, nothing is chosen.

    Returns:
      The tables, and the verdict that they follow.
    """
    padded = padded_own(own, statistics)
    followed = known or _judge(rows, statistics, trees, padded, w, ridge, seed)
    solution = solve(statistics, padded, w, rows.count, followed.ridge)
    if followed.factor != 1:  # ordinary tables stay as they are, bit by bit
        weights, intercept = (a * followed.factor for a in (solution.weights, solution.intercept))
        solution = solution._replace(weights=weights, intercept=intercept)
    return solution, followed


def best_penalty(
    statistics: Statistics,
    own: Array,
    w: Float[np.ndarray, "features outputs"],
    rows: int,
    codes: UInt8[np.ndarray, "held_out codebooks"],
    y: Float[np.ndarray, "held_out outputs"],
) -> Verdict:
    """Solves tables with each of `RIDGES`, and returns the verdict with the least squared error on held-out rows.

    Args:
      statistics: statistics of the rows to learn from, about their mean.
      own: features in which prototypes shrink toward bucket means, padded.
      w: weights.
      rows: number of rows that `statistics` counted.
      codes: codes of the held-out rows; rows beyond those of `y` are padding.
      y: exact outputs of the held-out rows, minus those of the mean row.
    """
    few = are_few(rows, codes.shape[1])
    codes = shapes.pad(codes, len(codes), len(own))
    verdicts = []
    for ridge in RIDGES:
        solution = solve(statistics, own, w, rows, ridge)
        predicted = np.asarray(predict(solution.weights, solution.intercept, codes))[: len(y), : y.shape[1]]
        verdicts.append(verdict(Comparison.of(predicted, y), ridge, few))
    return min(verdicts, key=lambda v: v.error)


def _judge(
    rows: Rows,
    statistics: Statistics,
    trees: Trees,
    own: Array,
    w: Float[np.ndarray, "features outputs"],
    ridge: float | None,
    seed: int,
) -> Verdict:
    """Judges tables on held-out rows, and chooses how they are solved; the arguments are those of `solve_shrunk`."""
    parts = _held_out(len(rows.sample), seed)
    if sum(map(len, parts)) < _FEWEST:
        return unjudged(_PAPERS_RIDGE if ridge is None else ridge)
    folds = [Fold.of(rows.sample[part], rows, trees, statistics, w) for part in parts]
    few = are_few(rows.count, trees.num_codebooks)

    @functools.cache
    def judged(ridge: float) -> Verdict:
        in_folds = [fold.judge(statistics, own, w, rows.count, ridge) for fold in folds]
        return verdict(Comparison(*map(np.concatenate, zip(*in_folds, strict=True))), ridge, few)

    if ridge is None:
        place = nearest_minimum(lambda i: judged(RIDGES[i]).error, _FIRST_RIDGE, len(RIDGES)) if few else None
        ridge = _PAPERS_RIDGE if place is None else RIDGES[place]
    return judged(ridge)


def _held_out(count: int, seed: int) -> list[np.ndarray]:
    """Draws the rows to hold out: the first of those that methods hold out or, if rows are few, every row once."""
    order = np.random.default_rng(seed).permutation(count)
    if count <= FEW_ROWS:
        return np.array_split(order, FOLDS)
    return [order[: min(round(HELD_OUT_SHARE * count), _MOST)]]


@dataclasses.dataclass(frozen=True)
class Fold:
    """Held-out rows, and how the statistics of all rows differ from those of the others.

    Attributes:
      one_hot: one-hot codes of the held-out rows.
      sums: what to subtract from the sums of all rows, which are about the mean of all: then they are those of the
        other rows, about their own mean.
      y: exact outputs of the held-out rows minus the mean of the others'.
    """

    one_hot: Float[np.ndarray, "held_out codes"]
    sums: Float[np.ndarray, "codes features"]
    y: Float[np.ndarray, "held_out outputs"]

    @classmethod
    def of(
        cls,
        x: Float[np.ndarray, "held_out features"],
        rows: Rows,
        trees: Trees,
        statistics: Statistics,
        w: Float[np.ndarray, "features outputs"],
    ) -> Fold:
        """Holds out the rows `x` of all `rows`, whose `statistics` are known."""
        # Blocks have the shape of those that were summed, for which encoding is compiled already.
        encode, blocks = encoder(trees), in_blocks([x], rows.count, rows.num_features)
        codes = np.concatenate([encode(block)[counted] for block, counted in blocks])
        one_hot = np.zeros((len(x), len(statistics.gram)), np.float32)
        np.put_along_axis(one_hot, codes + np.arange(trees.num_codebooks) * LEAVES, 1, axis=1)
        centered = x * rows.factor - (rows.mean * rows.factor).astype(np.float32)
        # The mean of the other rows differs from that of all rows, to which the statistics refer.
        mean = (-centered.sum(0, dtype=np.float64) / (rows.count - len(x))).astype(np.float32)
        counts = np.diagonal(np.asarray(statistics.gram)) - one_hot.sum(0)
        sums = one_hot.T @ centered + np.outer(counts, mean)
        return cls(one_hot, shapes.pad(sums, *statistics.sums.shape), (centered - mean) @ w)

    def judge(
        self, statistics: Statistics, own: Array, w: Float[np.ndarray, "features outputs"], rows: int, ridge: float
    ) -> Comparison:
        """Solves tables from the rows that are not held out, and judges them on those that are.

        Args:
          statistics: statistics of all rows.
          own: features in which tables shrink toward bucket means, padded.
          w: weights.
          rows: number of all rows.
          ridge: weight of the penalty, in rows.
        """
        # NumPy subtracts: every shape that JAX sees for the first time has to be compiled.
        gram = np.asarray(statistics.gram) - (self.one_hot.T @ self.one_hot).astype(np.int32)
        sums = np.asarray(statistics.sums) - self.sums
        others = Statistics(jax.device_put(gram), jax.device_put(sums))
        weights, intercept, _ = solve(others, own, w, rows - len(self.y), ridge)
        outputs = self.y.shape[1]
        return Comparison.of(self.one_hot @ np.asarray(weights)[:, :outputs] + np.asarray(intercept)[:outputs], self.y)
