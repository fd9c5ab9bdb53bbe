"""Method "axis": trees over all features, each grown on the residual that the others leave of `x @ w`.

A share of the rows is held out, and all choices are made there. Trees are regrown from two starts (no trees, and the
paper's), and those with the smaller error are regrown again for as long as that reduces it. They are taken if they are
surely better than the paper's own. Each trial solves its tables by ridge regression, with the penalty that has the
least error. Chosen trees are regrown once more with the held-out rows, if rows are too few to do without these.

The target is compressed: `x @ w` in its `DIMS` leading principal directions, which hold most of its energy. The tables
at the end are solved for all outputs, from all rows.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jax_maddness.core.types import SplitTrees, Trees
from jax_maddness.learn.config import FEW_ROWS, HELD_OUT_SHARE, FitConfig
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.compare import surely_less
from jax_maddness.learn.data.rows import Rows, in_blocks
from jax_maddness.learn.data.statistics import encoder, gather
from jax_maddness.learn.methods import groups, paper, regrow
from jax_maddness.learn.methods.learned import Learned
from jax_maddness.learn.methods.objective import Objective
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.tables.shrink import best_penalty
from jax_maddness.learn.tables.solve import padded_own
from jax_maddness.learn.tables.verdict import Verdict

DIMS = 64
"""Number of principal directions of the target that trees are grown on."""
GROWTH_ROWS = 4096
"""Largest number of rows that splits are searched on."""
TRIAL_ROWS = 16384
"""Largest number of rows that the tables of a trial are learned from; those of the op use all rows."""
PASSES = 3
"""Largest number of passes of backfitting of the trees that are returned."""
_MAX_PASSES = PASSES + 3  # with those of the other starts, and the one with held-out rows


def learn(
    rows: Rows,
    w: Float[np.ndarray, "features outputs"],
    num_codebooks: int,
    config: FitConfig,
    bar: Progress,
    objective: Objective | None = None,
) -> Learned:
    """Learns the trees with the least error on held-out rows, from several starts."""
    del objective  # trees are regrown, not trained: only the squared error can be minimized
    bar.expect(_MAX_PASSES)
    trial = Trial.of(rows, w, HELD_OUT_SHARE, config.seed)
    feature_groups = groups.contiguous(rows.num_features, num_codebooks)
    bar.stage("the paper's trees")
    on_groups = paper.grow_on_groups(trial.train, feature_groups, rows.factor, config.num_split_features, bar)
    judged = [trial.judge(on_groups, groups.owned(feature_groups, rows.num_features))]
    judged += _regrown(trial, on_groups, rows.num_features, num_codebooks, bar)
    bar.step(_MAX_PASSES - len(judged))  # `judged` has an entry without a pass, and one more pass may follow below
    # The best of several trials is partly luck, so it must beat the paper's trees by more than the standard error.
    papers, best = judged[0], min(judged[1:], key=lambda j: j.verdict.error)
    few = len(rows.sample) <= FEW_ROWS
    if not surely_less(best.verdict.errors, papers.verdict.errors):
        # The paper's trees need no held-out rows, so they are grown once more, on all rows.
        learned = paper.learn(rows, w, num_codebooks, config, bar)
        return learned if few else papers.learned(learned.trees)
    if few:
        # A share of a few rows is enough to choose trees by, but not to say how good they are.
        return dataclasses.replace(best.learned(best.trees), verdict=None)
    bar.step()
    # With at least `GROWTH_ROWS` training rows, the splits would be searched on as many rows as before.
    if len(trial.train) >= GROWTH_ROWS:
        return best.learned(best.trees)
    return best.learned(_regrown_on_all_rows(best.trees, rows, w, num_codebooks))


def _regrown(trial: Trial, on_groups: SplitTrees, num_features: int, num_codebooks: int, bar: Progress) -> list[Judged]:
    """Regrows trees from several starts, the best of them for as long as that helps; judges all of them."""
    judged: list[Judged] = []

    def one_pass(forest: regrow.Forest, name: str) -> tuple[Judged, regrow.Forest]:
        bar.stage(name)
        forest = regrow.regrow(trial.sample, forest, num_codebooks)
        judged.append(trial.judge(forest.trees(num_codebooks, num_features), None))
        bar.step()
        return judged[-1], forest

    # Regrowing is greedy, so its result depends on the start: two of them are tried.
    starts = [one_pass(trial.forest(on_groups, num_codebooks), "the paper's trees, regrown")]
    starts.append(one_pass(trial.forest(None, num_codebooks), "trees on the residual"))
    starts.append(one_pass(starts[1][1], "regrown"))
    best_so_far, forest = min(starts, key=lambda start: start[0].verdict.error)
    for _ in range(PASSES - 1):
        latest, forest = one_pass(forest, "the better ones, regrown")
        if latest.verdict.error >= best_so_far.verdict.error:
            break
        best_so_far = latest
    return judged


def _regrown_on_all_rows(
    trees: Trees, rows: Rows, w: Float[np.ndarray, "features outputs"], num_codebooks: int
) -> SplitTrees:
    """Regrows trees once more, with the rows that were held out."""
    assert isinstance(trees, SplitTrees)
    full_trial = Trial.of(rows, w, 0)
    forest = regrow.regrow(full_trial.sample, full_trial.forest(trees, num_codebooks), num_codebooks)
    return forest.trees(num_codebooks, rows.num_features)


class Judged(NamedTuple):
    """Trees, with what rows say of them that they have not seen.

    Attributes:
      trees: split trees of any kind.
      own: features in which tables shrink toward bucket means; None for those that the trees explain best.
      verdict: how tables are solved with the least error on held-out rows, in the compressed target.
    """

    trees: Trees
    own: Bool[np.ndarray, "codebooks features"] | None
    verdict: Verdict

    def learned(self, trees: Trees) -> Learned:
        """Returns `trees`, the judged ones or these grown again, with the verdict."""
        return Learned(trees, self.own, self.verdict.ridge, verdict=self.verdict)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Rows on which trees are grown, and held-out rows on which they are judged.

    Attributes:
      train: rows that tables are learned from.
      mean: mean of `train`, float64.
      factor: power of two that scales the largest magnitude to about 1.
      w: weights of the compressed target, scaled so that the target has a mean square of 1 per row.
      growth: rows of `sample`, padded.
      sample: ranks and compressed targets of the rows on which splits are searched.
      held_out: held-out rows, padded.
      y: compressed target of the held-out rows.
    """

    train: Float[np.ndarray, "train features"]
    mean: Float[np.ndarray, " features"]
    factor: np.float32
    w: Float[np.ndarray, "features dims"]
    growth: Float[np.ndarray, "growth padded"]
    sample: regrow.Sample
    held_out: Float[np.ndarray, "held_out padded"]
    y: Float[np.ndarray, "held_out dims"]

    @classmethod
    def of(cls, rows: Rows, w: Float[np.ndarray, "features outputs"], share: float, seed: int = 0) -> Trial:
        """Holds out a random share of the rows, and compresses the target of all of them.

        Args:
          rows: the training rows.
          w: weights.
          share: share of the rows to hold out; unless it is 0, at least one of two rows.
          seed: seed of the random choice.
        """
        order = np.random.default_rng(seed).permutation(len(rows.sample))
        size = min(max(round(share * len(order)), share > 0), GROWTH_ROWS, len(order) - 1)
        held_out, train = rows.sample[order[:size]], rows.sample[order[size : size + TRIAL_ROWS]]
        mean = train.mean(0, dtype=np.float64)

        def scaled(x: np.ndarray) -> np.ndarray:
            return x * rows.factor - (mean * rows.factor).astype(np.float32)

        growth = train[:GROWTH_ROWS]
        padded = shapes.rounded(min(len(order), GROWTH_ROWS), shapes.ROWS)  # the same, whatever the share
        w = compress(scaled(growth), w, DIMS)
        y = scaled(growth) @ w
        y -= y.mean(0)
        # Targets of about 1 keep squares within float32, whatever the scale of `w`.
        energy = np.sqrt((y * y).sum(1).mean())
        if energy > 0:
            w, y = w / energy, y / energy
        sample = regrow.sample_of(growth, y, padded)
        held_out_size = shapes.rounded(len(held_out), shapes.ROWS)
        return cls(
            train,
            mean,
            rows.factor,
            w,
            _padded(growth, padded),
            sample,
            _padded(held_out, held_out_size),
            scaled(held_out) @ w,
        )

    def forest(self, start: SplitTrees | None, num_codebooks: int) -> regrow.Forest:
        """Returns the state that `regrow` begins with: the trees of `start`, or no trees for None."""
        codebooks = shapes.rounded(num_codebooks, shapes.CODEBOOKS)
        if start is None:
            return regrow.empty(self.sample, codebooks)
        codes = shapes.pad(encoder(start)(self.growth), len(self.growth), codebooks)
        padded = shapes.padded_trees(start)
        real = np.arange(codebooks) < num_codebooks
        return regrow.start_from(self.sample, padded.indices, padded.thresholds, codes, real)

    def judge(self, trees: Trees, own: Bool[np.ndarray, "codebooks features"] | None) -> Judged:
        """Solves tables for `trees` with each penalty, and returns the one with the least error on held-out rows.

        Args:
          trees: split trees of any kind.
          own: features in which tables shrink toward bucket means; None for those that the trees explain best.
        """
        encoded = encoder(trees)
        statistics = gather(in_blocks([self.train], *self.train.shape), encoded, self.mean, self.factor)
        shrink = padded_own(own, statistics)
        verdict = best_penalty(statistics, shrink, self.w, len(self.train), encoded(self.held_out), self.y)
        return Judged(trees, own, verdict)


def _padded(x: Float[np.ndarray, "rows features"], rows: int) -> Float[np.ndarray, "padded features"]:
    """Pads `x` to `rows` rows, and to a number of features that many sets of rows share."""
    return shapes.pad(x, rows, shapes.rounded(x.shape[1], shapes.FEATURES))


def compress(
    x: Float[np.ndarray, "rows features"], w: Float[np.ndarray, "features outputs"], dims: int
) -> Float[np.ndarray, "features dims"]:
    """Returns `w @ v` with `v` the leading principal directions of `x @ w`, in the order of their energy.

    The directions are found by three steps of subspace iteration from random outputs (Halko, Martinsson & Tropp 2011,
    algorithm 4.4), with 16 directions to spare; `x @ w` itself is never formed. The residual of `x @ w` is orthogonal
    to the result, so least squares for `x @ w` is least squares for `x @ (w @ v)` and, separately, for the residual.

    Args:
      x: rows about their mean.
      w: weights.
      dims: largest number of directions.
    """
    spare = min(dims + 16, *w.shape, len(x))
    v = np.random.default_rng(0).standard_normal((w.shape[1], spare)).astype(np.float32)
    for _ in range(3):
        q = np.linalg.qr(x @ (w @ v))[0]
        v = np.linalg.qr(w.T @ (x.T @ q))[0]
    w = w @ v
    # The iteration finds the space of the directions only; the eigenvectors sort them within it.
    y = (x @ w).astype(np.float64)
    _, rotation = np.linalg.eigh(y.T @ y)
    return w @ rotation[:, ::-1][:, : min(dims, spare)].astype(np.float32)
