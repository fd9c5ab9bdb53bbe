"""x_train, y -> split trees that explain y: each is grown on what the others leave.

Growing trees one after the other on the residual, and backfitting (growing each tree again when all others are there),
are the same step from different starts: from no trees, and from those of the step before.
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

CANDIDATES = 16
"""Features whose thresholds are searched, per level."""
RIDGE = 1.0
"""Weight of the penalty while trees grow, in rows."""
SOLVES = 16
"""How often, in one pass over all trees, their tables are solved together."""
_SKETCH = 16  # leading directions of what is left, by which candidates are chosen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows that splits are searched on.

    Attributes:
      keys: each feature's sort keys, in ascending order.
      ranks: the position of every row's key among `keys`; that of the first where keys are equal.
      counted: False for rows that are only there to fill the arrays.
      y: what trees should explain, with mean 0; 0 in rows that do not count.
    """

    keys: UInt32[Array, "features rows"]
    ranks: UInt32[Array, "features rows"]
    counted: Bool[Array, " rows"]
    y: Float[Array, "rows dims"]


def sample_of(x: Float[np.ndarray, "rows features"], y: Float[np.ndarray, "rows dims"], rows: int) -> Sample:
    """A sample padded to `rows` rows; `x` as it is, without a scale."""
    x_padded = shapes.pad(x, rows, shapes.rounded(x.shape[1], shapes.FEATURES))
    y_padded = shapes.pad(y, rows, shapes.rounded(y.shape[1], shapes.OUTPUTS))
    return _ranked(x_padded, np.arange(rows) < len(x), y_padded)


@jax.jit
def _ranked(x: Array, counted: Array, y: Array) -> Sample:
    keys = jnp.where(counted, sort_keys(x.T), NO_KEY)
    in_order = jnp.sort(keys, axis=1)
    ranks = jax.vmap(jnp.searchsorted)(in_order, keys)
    return Sample(in_order, ranks.astype(jnp.uint32), counted, y)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forest:
    """Trees, and what they make of the sample. Codebooks that are not there yet have no codes and tables of 0.

    Attributes:
      indices, thresholds: as in `SplitTrees`.
      one_hot: the rows' codes, `G`.
      gram: `G^T G`.
      tables: what each code stands for.
      residual: what all tables together leave of `y`.
    """

    indices: Int32[Array, "codebooks 4"]
    thresholds: Float[Array, "codebooks 15"]
    one_hot: Float[Array, "rows codes"]
    gram: Float[Array, "codes codes"]
    tables: Float[Array, "codes dims"]
    residual: Float[Array, "rows dims"]

    def trees(self, num_codebooks: int, num_features: int) -> SplitTrees:
        """The first `num_codebooks` trees."""
        indices, thresholds = np.asarray(self.indices)[:num_codebooks], np.asarray(self.thresholds)[:num_codebooks]
        return SplitTrees(jnp.asarray(indices), jnp.asarray(thresholds), num_features)


def empty(sample: Sample, codebooks: int) -> Forest:
    """No trees."""
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
    """The given trees; those that are not `real` are not there yet."""
    seen = sample.counted[:, None, None] & real[:, None]
    one_hot = (jax.nn.one_hot(codes, LEAVES, dtype=jnp.float32) * seen).reshape(len(codes), -1)
    tables = jnp.zeros((one_hot.shape[1], sample.y.shape[1]), jnp.float32)
    return _solved(sample, Forest(indices, thresholds, one_hot, one_hot.T @ one_hot, tables, sample.y))


@jax.jit
def regrow(sample: Sample, forest: Forest, num_codebooks: int | Int32[Array, ""]) -> Forest:
    """Grows the trees again, one after the other, each on what all others leave.

    A new tree's tables are its bucket means, shrunk by `RIDGE`; some `SOLVES` times, all tables are solved together.
    The new tree replaces the old one even where it leaves more: keeping the better of the two ends at 2 to 5 % more.
    """
    every = jnp.maximum(1, num_codebooks // SOLVES)

    def step(c: Array, forest: Forest) -> Forest:
        forest = _regrow_one(sample, forest, c)
        again = ((c + 1) % every == 0) | (c + 1 == num_codebooks)
        return lax.cond(again, lambda f: _solved(sample, f), lambda f: f, forest)

    return lax.fori_loop(0, num_codebooks, step, forest)


def _regrow_one(sample: Sample, forest: Forest, c: Int32[Array, ""]) -> Forest:
    at = c * LEAVES
    before = lax.dynamic_slice_in_dim(forest.one_hot, at, LEAVES, axis=1)
    target = forest.residual + before @ lax.dynamic_slice_in_dim(forest.tables, at, LEAVES)
    indices, thresholds, codes = grow_tree(sample, target)
    own = jax.nn.one_hot(codes, LEAVES, dtype=jnp.float32)  # nothing for rows that do not count: their code is no leaf
    table = (own.T @ target) / (own.sum(0) + RIDGE)[:, None]
    one_hot = lax.dynamic_update_slice_in_dim(forest.one_hot, own, at, axis=1)
    together = own.T @ one_hot
    gram = lax.dynamic_update_slice_in_dim(forest.gram, together, at, axis=0)
    return Forest(
        indices=forest.indices.at[c].set(indices),
        thresholds=forest.thresholds.at[c].set(thresholds),
        one_hot=one_hot,
        gram=lax.dynamic_update_slice_in_dim(gram, together.T, at, axis=1),
        tables=lax.dynamic_update_slice_in_dim(forest.tables, table, at, axis=0),
        residual=target - own @ table,
    )


def _solved(sample: Sample, forest: Forest) -> Forest:
    """The forest with all tables solved together, and what they leave."""
    sums, rows = forest.one_hot.T @ sample.y, sample.counted.sum()
    tables, intercept, _ = ridge_regression(forest.gram, sums, rows, RIDGE)
    residual = jnp.where(sample.counted[:, None], sample.y - forest.one_hot @ tables - intercept, 0.0)
    return dataclasses.replace(forest, tables=tables, residual=residual)


def grow_tree(
    sample: Sample, target: Float[Array, "rows dims"]
) -> tuple[Int32[Array, "4"], Float[Array, "15"], Int32[Array, " rows"]]:
    """A tree over all features that leaves little of `target`: its indices, its thresholds and the rows' leaves.

    At each level the `CANDIDATES` most promising features are tried, as `splits.grow_trees` tries them. Rows that do
    not count reach no leaf: their number is none of 0..15.
    """
    rows, dims = target.shape
    key_bits = max(1, (rows - 1).bit_length())
    first = jax.random.normal(jax.random.key(0), (dims, min(_SKETCH, dims)))
    sketch = jnp.linalg.qr(target.T @ (target @ first))[0]

    def level(state: tuple[Array, Array], nothing: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        residual = center(state[0][None], state[1][None])
        _, tried = lax.top_k(_promise(sample, residual[0] @ sketch, state[1]), min(CANDIDATES, len(sample.ranks)))
        ranks = jnp.take(sample.ranks, tried, axis=0)[None]
        allowed = jnp.ones((1, len(tried)), bool)
        best, sides, buckets = split_level(residual, state[1][None], ranks, allowed, key_bits)
        feature = tried[best[0]]
        left, right = (jnp.where(k[0] == NO_KEY, NO_KEY, jnp.take(sample.keys[feature], k[0])) for k in sides)
        return (residual[0], buckets[0]), (feature, threshold_between(left, right))

    (_, leaves), (indices, thresholds) = lax.scan(level, (target, first_buckets(sample.counted)), length=LEVELS)
    return indices, heap_order(thresholds), jnp.where(sample.counted, leaves, -1)


def _promise(
    sample: Sample, target: Float[Array, "rows sketch"], buckets: Int32[Array, " rows"]
) -> Float[Array, " features"]:
    """How much of `target`, centered by bucket, a linear function of each feature's ranks would explain, per bucket.

    A feature that is constant everywhere promises nothing.
    """
    rows = len(target)
    ranks = sample.ranks.astype(jnp.float32) * (2 / rows) - 1
    member = jax.nn.one_hot(buckets, BUCKETS, dtype=jnp.float32)
    spread = (member[:, :, None] * target[:, None]).reshape(rows, -1)
    covariance = (ranks @ spread).reshape(len(ranks), BUCKETS, -1)
    variance = (ranks * ranks) @ member - (ranks @ member) ** 2 / jnp.maximum(member.sum(0), 1)
    return jnp.where(variance > 1e-6 * rows, (covariance**2).sum(-1) / jnp.maximum(variance, 1e-30), 0.0).sum(-1)
