"""x_train -> split trees: per level the feature, and per bucket the threshold, that leave the least squared error.

A codebook's tree is grown greedily on the codebook's own features alone (Blalock & Guttag 2021, section 4.1,
Algorithms 3 and 4). All codebooks of a chunk grow at once, as arrays [codebooks, ...] of one compiled function.

Notation: a bucket holds the `n` training rows at one node, with mean `mu`; a split after its `n_L` smallest values
of one feature leaves `n_L` rows on the left and `n_R` on the right, and `S_L` is the sum of `row - mu` on the left.
Then the squared error falls by

    gain = |S_L|^2 * n / (n_L * n_R)

which is the paper's difference of sums of squares, in a form that subtracts nothing large: rows are centred by
their bucket before they are summed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_maddness.core.types import LEVELS

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int32, UInt32

_BUCKETS = 2 ** (LEVELS - 1)  # buckets of the last level that is split; earlier levels leave some of them empty
_BUCKET_BITS = LEVELS - 1
_BLOCK = 32  # rows per step of the running sums; 16 to 64 are equally fast, whole columns 2 to 6 times slower
_SIGN = np.uint32(1 << 31)
_NEVER = np.float32(np.finfo(np.float32).max)  # the threshold that no finite value exceeds


def subspaces(num_features: int, num_codebooks: int) -> np.ndarray:
    """Deals the features out to codebooks in contiguous groups of near-equal size, the larger groups first.

    Returns:
      int32 [codebooks, width]: the features of each codebook, padded at the end with -1.

    Example:
      >>> subspaces(5, 2).tolist()
      [[0, 1, 2], [3, 4, -1]]
    """
    groups = np.array_split(np.arange(num_features), num_codebooks)
    width = len(groups[0])
    return np.stack([np.pad(g, (0, width - len(g)), constant_values=-1) for g in groups]).astype(np.int32)


@functools.partial(jax.jit, static_argnames="num_candidates")
def grow_trees(
    x: Float[Array, "rows features"],
    factor: Float[Array, ""],
    groups: Int32[Array, "codebooks width"],
    num_candidates: int,
) -> tuple[Int32[Array, "codebooks 4"], Float[Array, "codebooks 15"]]:
    """Grows one tree per group of features (section 4.1, Algorithm 3).

    At each level the `num_candidates` features with the largest squared error about the bucket means, summed over
    the buckets, are tried: each bucket takes its own best threshold, and the feature whose thresholds together
    leave the least squared error over all features of the group is chosen.

    Args:
      x: training rows, finite.
      factor: a power of two that brings the largest magnitude of `x` near 1, so that no square overflows.
      groups: the features of each codebook, padded with -1.
      num_candidates: features tried per level.

    Returns:
      `indices` and `thresholds` of `SplitTrees`. `x > threshold` in IEEE f32 reproduces every split of the search on
      the training rows. A bucket that cannot be split (empty, or constant in the chosen feature) goes left whole.
    """
    own = groups >= 0
    columns = jnp.take(x, jnp.maximum(groups, 0), axis=1).transpose(1, 0, 2)  # [codebooks, rows, width]
    columns = columns * factor
    residuals = jnp.where(own[:, None], columns - columns[:, :1], 0.0)  # so that a large mean costs no precision
    buckets = jnp.zeros(residuals.shape[:2], jnp.int32)
    grow = functools.partial(_grow_level, x, groups, min(num_candidates, groups.shape[1]))
    _, (indices, thresholds) = lax.scan(grow, (residuals, buckets), length=LEVELS)
    heap = [thresholds[level, :, : 2**level] for level in range(LEVELS)]
    return indices.T, jnp.concatenate(heap, axis=1)


def _grow_level(
    x: Array, groups: Array, num_candidates: int, state: tuple[Array, Array], _: None
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """One level of all trees: (residuals, buckets) -> (..., (features [codebooks], thresholds [codebooks, 8]))."""
    residuals, buckets = state
    residuals = _centre(residuals, buckets)
    errors = jnp.where(groups >= 0, (residuals * residuals).sum(1), -1.0)
    errors, candidates = lax.top_k(errors, num_candidates)
    features = jnp.take_along_axis(groups, candidates, axis=1)  # [codebooks, candidates]
    keys = sort_keys(jnp.take(x, jnp.maximum(features, 0), axis=1).transpose(1, 2, 0))  # [codebooks, candidates, rows]
    order = bucket_order(keys, jnp.broadcast_to(buckets[:, None], keys.shape))
    keys_in_order, buckets_in_order = _take(keys, order), _take(buckets[:, None], order)
    gains = _split_gains(residuals, order, keys_in_order, buckets_in_order)
    total = jnp.maximum(_by_bucket(gains, buckets_in_order).max(-1), 0.0).sum(-1)
    best = jnp.where(errors < 0, -1.0, total).argmax(-1)  # [codebooks]

    keys, keys_in_order, features = (_pick(best, a) for a in (keys, keys_in_order, features))
    gains = _by_bucket(_pick(best, gains), _pick(best, buckets_in_order))  # [codebooks, 8, rows]
    position = gains.argmax(-1)  # the last row of each bucket that goes left
    left, right = _take(keys_in_order, position), _take(keys_in_order, position + 1)
    thresholds = jnp.where(gains.max(-1) >= 0, _threshold_between(left, right), _NEVER)
    goes_right = keys > _take(sort_keys(thresholds), buckets)
    return (residuals, 2 * buckets + goes_right), (features, thresholds)


def _by_bucket(gains: Float[Array, "... rows"], buckets: Int32[Array, "... rows"]) -> Float[Array, "... 8 rows"]:
    """The gains of each bucket alone, -inf elsewhere."""
    return jnp.where(buckets[..., None, :] == jnp.arange(_BUCKETS)[:, None], gains[..., None, :], -jnp.inf)


def _centre(residuals: Float[Array, "codebooks rows width"], buckets: Int32[Array, "codebooks rows"]) -> Array:
    """Subtracts from every row the mean of its bucket."""
    members = jax.nn.one_hot(buckets, _BUCKETS, dtype=jnp.float32)
    counts = members.sum(1)[..., None]
    sums = jnp.einsum("cnb,cnd->cbd", members, residuals, precision="highest")
    return residuals - jnp.einsum("cnb,cbd->cnd", members, sums / jnp.maximum(counts, 1), precision="highest")


def sort_keys(x: Float[Array, "..."]) -> UInt32[Array, "..."]:
    """Integers in the order of the finite floats `x`, equal where they are equal (-0 = +0).

    Comparing them is IEEE f32's comparison also where the CPU flushes denormals, as XLA's threads do.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    magnitude = bits & ~_SIGN
    return jnp.where(bits >= _SIGN, _SIGN - magnitude, _SIGN + magnitude)


def _from_sort_keys(keys: UInt32[Array, "..."]) -> Float[Array, "..."]:
    bits = jnp.where(keys < _SIGN, _SIGN + (_SIGN - keys), keys - _SIGN)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _threshold_between(left: UInt32[Array, "..."], right: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """A float `t` with `left <= t < right`, of sort keys: their midpoint, or `left` if rounding spoils it."""
    midpoint = 0.5 * _from_sort_keys(left) + 0.5 * _from_sort_keys(right)
    key = sort_keys(midpoint)
    return _from_sort_keys(jnp.where((left <= key) & (key < right), key, left))


def bucket_order(keys: UInt32[Array, "... rows"], buckets: Int32[Array, "... rows"]) -> Int32[Array, "... rows"]:
    """Row numbers sorted by bucket (< 8), then key, then row number.

    XLA's CPU sort takes 50 ns per element for one array of integers, but 250 to 450 ns for several arrays. So: a radix
    sort from the least digit up, each pass one sort of `digit << bits | position`; 5,000 rows take two, of 19 bits.
    """
    rows = keys.shape[-1]
    position_bits = max(1, (rows - 1).bit_length())
    digit_bits = 32 - position_bits
    position = lax.broadcasted_iota(jnp.uint32, keys.shape, keys.ndim - 1)
    order = position
    for shift in range(0, 32 + _BUCKET_BITS, digit_bits):
        digit = _take(_digit(keys, buckets.astype(jnp.uint32), shift, digit_bits), order)
        step = lax.sort(digit << np.uint32(position_bits) | position, is_stable=False)
        order = _take(order, step & np.uint32((1 << position_bits) - 1))
    return order.astype(jnp.int32)


def _digit(keys: Array, buckets: Array, shift: int, width: int) -> Array:
    """Bits [shift, shift + width) of the number `buckets << 32 | keys`."""
    low = keys >> np.uint32(shift) if shift < 32 else jnp.zeros_like(keys)
    high = buckets << np.uint32(32 - shift) if 0 < shift < 32 else buckets >> np.uint32(max(shift - 32, 0))
    return ((low | high) if shift else low) & np.uint32((1 << width) - 1)


def _split_gains(
    residuals: Float[Array, "codebooks rows width"],
    order: Int32[Array, "codebooks candidates rows"],
    keys: UInt32[Array, "codebooks candidates rows"],
    buckets: Int32[Array, "codebooks candidates rows"],
) -> Float[Array, "codebooks candidates rows"]:
    """What splitting a bucket after each row saves (see the top of this file); -inf where equal values would part.

    `keys` and `buckets` are in `order`. Residuals of a bucket sum to zero, so running sums over all rows are the
    running sums within each bucket.
    """
    counts = (buckets[..., None, :] == jnp.arange(_BUCKETS)[:, None]).sum(-1)  # [codebooks, candidates, 8]
    ends = jnp.cumsum(counts, axis=-1)
    n = _take(counts, buckets)
    n_left = jnp.arange(1, order.shape[-1] + 1) - _take(ends - counts, buckets)
    n_right = n - n_left
    splits = n_right > 0
    splits &= keys != jnp.roll(keys, -1, axis=-1)
    weight = n / (n_left.astype(jnp.float32) * jnp.maximum(n_right, 1))
    return jnp.where(splits, _running_norms(residuals, order) * weight, -jnp.inf)


def _running_norms(residuals: Array, order: Array) -> Float[Array, "codebooks candidates rows"]:
    """|sum of residuals[c, order[c, k, :i + 1]]|^2 for every i: blocks of rows, summed by a triangular product."""
    codebooks, rows, width = residuals.shape
    candidates, blocks = order.shape[1], -(-rows // _BLOCK)
    padded = jnp.pad(order, ((0, 0), (0, 0), (0, blocks * _BLOCK - rows)))
    padded = padded.reshape(codebooks, candidates, blocks, _BLOCK).transpose(2, 0, 1, 3)
    triangle = jnp.tril(jnp.ones((_BLOCK, _BLOCK), jnp.float32))

    def step(before: Array, block: Array) -> tuple[Array, Array]:
        taken = jax.vmap(lambda r, i: r.at[i].get(mode="promise_in_bounds"))(residuals, block)
        sums = jnp.einsum("ij,ckjd->ckid", triangle, taken, precision="highest") + before[:, :, None]
        return sums[:, :, -1], (sums * sums).sum(-1)

    _, norms = lax.scan(step, jnp.zeros((codebooks, candidates, width), residuals.dtype), padded)
    return norms.transpose(1, 2, 0, 3).reshape(codebooks, candidates, blocks * _BLOCK)[..., :rows]


def _take(values: Array, positions: Array) -> Array:
    """`values[..., positions[...]]` along the last axis; positions are in bounds or clipped."""
    lead = jnp.broadcast_shapes(values.shape[:-1], positions.shape[:-1])
    values = jnp.broadcast_to(values, (*lead, values.shape[-1]))
    positions = jnp.broadcast_to(positions.astype(jnp.int32), (*lead, positions.shape[-1]))
    return jnp.take_along_axis(values, positions, axis=-1, mode="clip")


def _pick(best: Int32[Array, " codebooks"], values: Array) -> Array:
    """`values[c, best[c]]` for every codebook."""
    return jax.vmap(lambda v, b: v[b])(values, best)
