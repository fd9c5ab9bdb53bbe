"""Growth of split trees over all features, each on the residual that the other trees leave of a target `y`.

Growing trees one after the other on the residual, and backfitting (growing each tree again when all others exist), are
the same step from different starts: from no trees, and from those of the step before.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt8, UInt32

from jax_maddness.core.types import LEAVES, LEVELS, NODES, SplitTrees
from jax_maddness.learn.data import shapes
from jax_maddness.learn.methods.splits import (
    BUCKETS,
    NO_KEY,
    center,
    first_buckets,
    heap_order,
    sort_keys,
    split_level,
    threshold_between,
)
from jax_maddness.learn.tables.ridge import ridge_regression

NUM_SPLIT_FEATURES = 16
"""Number of features whose thresholds are searched, per level."""
RIDGE = 1.0
"""Weight of the penalty while trees grow, in rows."""
SOLVES = 16
"""Approximate number of times that all tables are solved together in one pass over the trees."""
_SKETCH = 16  # leading directions of the residual, by which the features to search are chosen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows on which splits are searched.

    Attributes:
      keys: sort keys of each feature, in ascending order.
      ranks: position of every row's key among `keys`; that of the first one where keys are equal.
      counted: False for rows that are padding.
      y: target that trees should explain, with mean 0; 0 in rows that are padding.
    """

    keys: UInt32[Array, "features rows"]
    ranks: UInt32[Array, "features rows"]
    counted: Bool[Array, " rows"]
    y: Float[Array, "rows dims"]


def sample_of(x: Float[np.ndarray, "rows features"], y: Float[np.ndarray, "rows dims"], rows: int) -> Sample:
    """Returns a sample of the rows `x` with the targets `y`, padded to `rows` rows; `x` needs no scaling."""
    x_padded = shapes.pad(x, rows, shapes.rounded(x.shape[1], shapes.FEATURES))
    y_padded = shapes.pad(y, rows, shapes.rounded(y.shape[1], shapes.OUTPUTS))
    return _ranked(x_padded, np.arange(rows) < len(x), y_padded)


@jax.jit
def _ranked(x: Array, counted: Array, y: Array) -> Sample:
    """Sorts every feature once, so that searches need only sort ranks, which have fewer bits than floats."""
    keys = jnp.where(counted, sort_keys(x.T), NO_KEY)
    in_order = jnp.sort(keys, axis=1)
    ranks = jax.vmap(jnp.searchsorted)(in_order, keys)
    return Sample(in_order, ranks.astype(jnp.uint32), counted, y)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forest:
    """Trees, with the codes, tables and residual of a sample. Codebooks without a tree have no codes, and tables of 0.

    Attributes:
      indices: split indices, as in `SplitTrees`.
      thresholds: thresholds, as in `SplitTrees`.
      one_hot: one-hot codes of the rows, `G`; 0 for rows and codebooks that are padding.
      gram: `G^T G`.
      tables: vector that each code stands for, in the space of the target.
      residual: target minus the sum of all tables' entries.
    """

    indices: Int32[Array, "codebooks 4"]
    thresholds: Float[Array, "codebooks 15"]
    one_hot: Float[Array, "rows codes"]
    gram: Float[Array, "codes codes"]
    tables: Float[Array, "codes dims"]
    residual: Float[Array, "rows dims"]

    def trees(self, num_codebooks: int, num_features: int) -> SplitTrees:
        """Returns the first `num_codebooks` trees."""
        indices, thresholds = np.asarray(self.indices)[:num_codebooks], np.asarray(self.thresholds)[:num_codebooks]
        return SplitTrees(jnp.asarray(indices), jnp.asarray(thresholds), num_features)


def empty(sample: Sample, codebooks: int) -> Forest:
    """Returns a forest without trees, in arrays for `codebooks` codebooks."""
    rows, dims = sample.y.shape
    size = codebooks * LEAVES
    return Forest(
        indices=jnp.zeros((codebooks, LEVELS), jnp.int32),
        thresholds=jnp.zeros((codebooks, NODES), jnp.float32),
        one_hot=jnp.zeros((rows, size), jnp.float32),
        gram=jnp.zeros((size, size), jnp.float32),
        tables=jnp.zeros((size, dims), jnp.float32),
        residual=sample.y,
    )


@jax.jit
def start_from(
    sample: Sample, indices: Array, thresholds: Array, codes: UInt8[Array, "rows codebooks"], real: Array
) -> Forest:
    """Returns a forest of the given trees, with tables solved for them.

    Args:
      sample: rows on which splits are searched.
      indices: split indices of the trees.
      thresholds: thresholds of the trees.
      codes: codes of the rows.
      real: False for codebooks without a tree.
    """
    mask = sample.counted[:, None, None] & real[:, None]
    one_hot = (jax.nn.one_hot(codes, LEAVES, dtype=jnp.float32) * mask).reshape(len(codes), -1)
    tables = jnp.zeros((one_hot.shape[1], sample.y.shape[1]), jnp.float32)
    return _solved(sample, Forest(indices, thresholds, one_hot, one_hot.T @ one_hot, tables, sample.y))


@jax.jit
def regrow(sample: Sample, forest: Forest, num_codebooks: int | Int32[Array, ""]) -> Forest:
    """Grows the trees again, one after the other, each on the residual that all others leave.

    The table of a new tree is its bucket means, shrunk by `RIDGE`; about `SOLVES` times, all tables are solved
    together. A new tree replaces the old one even where it leaves a larger error: keeping the better one of the two
    ends with 2 to 5 % more error.
    """
    # Solving all tables costs the cube of the number of codes, so not every new tree can be followed by it.
    interval = jnp.maximum(1, num_codebooks // SOLVES)

    def step(c: Array, forest: Forest) -> Forest:
        forest = _regrow_one(sample, forest, c)
        solve_now = ((c + 1) % interval == 0) | (c + 1 == num_codebooks)
        return lax.cond(solve_now, lambda f: _solved(sample, f), lambda f: f, forest)

    return lax.fori_loop(0, num_codebooks, step, forest)


def _regrow_one(sample: Sample, forest: Forest, c: Int32[Array, ""]) -> Forest:
    """Grows the tree of codebook `c` again, on the residual that all others leave."""
    first_code = c * LEAVES
    old_one_hot = lax.dynamic_slice_in_dim(forest.one_hot, first_code, LEAVES, axis=1)
    # The residual without the old tree: this is what the new one has to explain.
    target = forest.residual + old_one_hot @ lax.dynamic_slice_in_dim(forest.tables, first_code, LEAVES)
    indices, thresholds, codes = grow_tree(sample, target)
    new_one_hot = jax.nn.one_hot(codes, LEAVES, dtype=jnp.float32)  # 0 for rows that are padding: their code is no leaf
    table = (new_one_hot.T @ target) / (new_one_hot.sum(0) + RIDGE)[:, None]
    one_hot = lax.dynamic_update_slice_in_dim(forest.one_hot, new_one_hot, first_code, axis=1)
    # Only the rows and columns of codebook c change: `gram` needs no product over all codes.
    co_occurrences = new_one_hot.T @ one_hot
    gram = lax.dynamic_update_slice_in_dim(forest.gram, co_occurrences, first_code, axis=0)
    return Forest(
        indices=forest.indices.at[c].set(indices),
        thresholds=forest.thresholds.at[c].set(thresholds),
        one_hot=one_hot,
        gram=lax.dynamic_update_slice_in_dim(gram, co_occurrences.T, first_code, axis=1),
        tables=lax.dynamic_update_slice_in_dim(forest.tables, table, first_code, axis=0),
        residual=target - new_one_hot @ table,
    )


def _solved(sample: Sample, forest: Forest) -> Forest:
    """Returns the forest with all tables solved together by ridge regression, and with their residual."""
    sums, rows = forest.one_hot.T @ sample.y, sample.counted.sum()
    tables, intercept, _ = ridge_regression(forest.gram, sums, rows, RIDGE)
    residual = jnp.where(sample.counted[:, None], sample.y - forest.one_hot @ tables - intercept, 0.0)
    return dataclasses.replace(forest, tables=tables, residual=residual)


def grow_tree(
    sample: Sample, target: Float[Array, "rows dims"]
) -> tuple[Int32[Array, "4"], Float[Array, "15"], Int32[Array, " rows"]]:
    """Grows a tree over all features, greedily, to reduce the squared residual of `target`.

    At each level the `NUM_SPLIT_FEATURES` most promising features are tried, as `splits.grow_trees` tries them.

    Args:
      sample: rows on which splits are searched.
      target: vectors that the tree should explain; 0 in rows that are padding.

    Returns:
      The split indices, the thresholds, and the leaf of every row; -1 for rows that are padding.
    """
    rows, dims = target.shape
    key_bits = max(1, (rows - 1).bit_length())
    # One step of subspace iteration finds the leading directions of the target well enough to rank features by.
    random_directions = jax.random.normal(jax.random.key(0), (dims, min(_SKETCH, dims)))
    sketch = jnp.linalg.qr(target.T @ (target @ random_directions))[0]

    def level(state: tuple[Array, Array], nothing: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        residual = center(state[0][None], state[1][None])
        promise = _promise(sample, residual[0] @ sketch, state[1])
        _, tried = lax.top_k(promise, min(NUM_SPLIT_FEATURES, len(sample.ranks)))
        ranks = jnp.take(sample.ranks, tried, axis=0)[None]
        allowed = jnp.ones((1, len(tried)), bool)
        best, sides, buckets = split_level(residual, state[1][None], ranks, allowed, key_bits)
        feature = tried[best[0]]
        # The search compares ranks; thresholds lie between the keys, and so the floats, of the neighboring ranks.
        left, right = (jnp.where(k[0] == NO_KEY, NO_KEY, jnp.take(sample.keys[feature], k[0])) for k in sides)
        return (residual[0], buckets[0]), (feature, threshold_between(left, right))

    (_, leaves), (indices, thresholds) = lax.scan(level, (target, first_buckets(sample.counted)), length=LEVELS)
    return indices, heap_order(thresholds), jnp.where(sample.counted, leaves, -1)


def _promise(
    sample: Sample, target: Float[Array, "rows sketch"], buckets: Int32[Array, " rows"]
) -> Float[Array, " features"]:
    """Returns how much of `target`, centered by bucket, a linear function of each feature's ranks explains per bucket.

    A feature that is constant in all buckets gets 0.
    """
    # Regression costs one matrix product for all features, where the search of thresholds sorts each of them. Ranks do
    # not depend on a feature's scale or outliers, as thresholds do not.
    rows = len(target)
    ranks = sample.ranks.astype(jnp.float32) * (2 / rows) - 1
    member = jax.nn.one_hot(buckets, BUCKETS, dtype=jnp.float32)
    target_by_bucket = (member[:, :, None] * target[:, None]).reshape(rows, -1)
    covariance = (ranks @ target_by_bucket).reshape(len(ranks), BUCKETS, -1)
    # `target` sums to 0 in every bucket, so the covariance needs no centered ranks; the variance does.
    variance = (ranks * ranks) @ member - (ranks @ member) ** 2 / jnp.maximum(member.sum(0), 1)
    return jnp.where(variance > 1e-6 * rows, (covariance**2).sum(-1) / jnp.maximum(variance, 1e-30), 0.0).sum(-1)
