"""The split search of the paper: per level the feature, and per bucket the threshold, with the least squared error.

A codebook's tree is grown greedily on the codebook's own features alone (Blalock & Guttag 2021, section 4.1,
Algorithms 3 and 4). All codebooks of a chunk grow at once, as arrays [codebooks, ...] of one compiled function.

Notation: a bucket holds the `n` training rows at one node, with mean `mu`; a split after its `n_L` smallest values
of one feature leaves `n_L` rows on the left and `n_R` on the right, and `S_L` is the sum of `row - mu` on the left.
Then the squared error falls by

    gain = |S_L|^2 * n / (n_L * n_R)

which equals the paper's difference of sums of squares. That difference would lose its leading digits where the mean is
large; this form does not, as rows are centered by their bucket before they are summed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt32

from jax_maddness.core.types import LEVELS

BUCKETS = 2 ** (LEVELS - 1)  # buckets of the last level that is split; at earlier levels some of them are empty
_OUTSIDE = BUCKETS  # the bucket of rows that are padding
_BUCKET_BITS = _OUTSIDE.bit_length()
_BLOCK = 32  # rows per step of the running sums; 16 to 64 are equally fast, whole columns 2 to 6 times slower
_SIGN = np.uint32(1 << 31)
NO_KEY = np.uint32(2**32 - 1)  # greater than the sort key of any finite float
_NEVER = np.float32(np.finfo(np.float32).max)  # the threshold that no finite value exceeds


@functools.partial(jax.jit, static_argnames="num_split_features")
def grow_trees(
    columns: Float[Array, "codebooks rows width"],
    own: Bool[Array, "codebooks width"],
    counted: Bool[Array, " rows"],
    factor: Float[Array, ""],
    num_split_features: int,
) -> tuple[Int32[Array, "codebooks 4"], Float[Array, "codebooks 15"]]:
    """Grows one tree per group of features (section 4.1, Algorithm 3).

    At each level the `num_split_features` features with the largest squared error about the bucket means, summed over
    the buckets, are tried: each bucket takes its own best threshold, and the feature whose thresholds together
    leave the least squared error over all features of the group is chosen.

    Args:
      columns: the training rows in the features of each codebook, finite.
      own: False for columns that are padding, where a group is narrower than the widest one.
      counted: False for rows that are padding.
      factor: power of two that scales the largest magnitude to about 1, so that no square overflows.
      num_split_features: number of features tried per level.

    Returns:
      The position of the feature in its group and the thresholds, as in `SplitTrees`. `x > threshold` in IEEE f32
      reproduces every split of the search on the training rows. A bucket that cannot be split (empty, or constant in
      the chosen feature) goes left whole.
    """
    scaled = columns * factor
    mask = own[:, None] & counted[:, None]
    residuals = jnp.where(mask, scaled - scaled[:, :1], 0.0)  # so that a large mean costs no precision
    # Keys come from the values as they are, so that thresholds are exact, whatever is rounded in `residuals`.
    keys = sort_keys(columns.transpose(0, 2, 1))
    buckets = jnp.broadcast_to(first_buckets(counted), residuals.shape[:2])

    def grow(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        residuals = center(state[0], state[1])
        # Padding gets an error below that of any feature, so it is tried last, and `errors >= 0` rules it out.
        errors = jnp.where(own, (residuals * residuals).sum(1), -1.0)
        errors, tried = lax.top_k(errors, min(num_split_features, own.shape[1]))
        tried_keys = jnp.take_along_axis(keys, tried[..., None], axis=1)
        best, (left, right), buckets = split_level(residuals, state[1], tried_keys, errors >= 0)
        return (residuals, buckets), (_pick(best, tried), threshold_between(left, right))

    _, (positions, thresholds) = lax.scan(grow, (residuals, buckets), length=LEVELS)
    return positions.T, heap_order(thresholds)


def first_buckets(counted: Bool[Array, " rows"]) -> Int32[Array, " rows"]:
    """Returns the buckets that a tree starts from: 0 for all rows, and a number outside of all buckets for padding."""
    return jnp.where(counted, 0, _OUTSIDE)


def heap_order(thresholds: Float[Array, "4 ... 8"]) -> Float[Array, "... 15"]:
    """Concatenates the thresholds of four levels, the first `2**level` of each, in heap order."""
    return jnp.concatenate([thresholds[level, ..., : 2**level] for level in range(LEVELS)], axis=-1)


def split_level(
    residuals: Float[Array, "codebooks rows width"],
    buckets: Int32[Array, "codebooks rows"],
    keys: UInt32[Array, "codebooks tried rows"],
    allowed: Bool[Array, "codebooks tried"],
    key_bits: int = 32,
) -> tuple[Int32[Array, " codebooks"], tuple[Array, Array], Int32[Array, "codebooks rows"]]:
    """Splits every bucket at its best threshold of the feature that reduces the error most over all buckets.

    Args:
      residuals: vectors that the tree should explain, centered by bucket.
      buckets: bucket of every row.
      keys: integers in the order of the rows' values in each feature that is tried.
      allowed: False for features that may not be chosen.
      key_bits: number of bits of the keys; fewer bits are sorted in less time.

    Returns:
      The position of the chosen feature among those tried; for each bucket the largest key that goes left and the
      smallest that goes right, `NO_KEY` where all rows go left; and the rows' buckets at the next level.
    """
    order = bucket_order(keys, jnp.broadcast_to(buckets[:, None], keys.shape), key_bits)
    keys_in_order, buckets_in_order = _take(keys, order), _take(buckets[:, None], order)
    gains = _split_gains(residuals, order, keys_in_order, buckets_in_order)
    # A bucket that cannot be split has gains of -inf; it stays whole at no cost, so it adds 0.
    total = jnp.maximum(_by_bucket(gains, buckets_in_order).max(-1), 0.0).sum(-1)
    best = jnp.where(allowed, total, -1.0).argmax(-1)  # [codebooks]

    # Only the chosen feature is followed from here on.
    keys, keys_in_order = _pick(best, keys), _pick(best, keys_in_order)
    gains = _by_bucket(_pick(best, gains), _pick(best, buckets_in_order))  # [codebooks, 8, rows]
    position = gains.argmax(-1)  # the last row of each bucket that goes left
    split = gains.max(-1) >= 0
    left = jnp.where(split, _take(keys_in_order, position), NO_KEY)
    right = jnp.where(split, _take(keys_in_order, position + 1), NO_KEY)
    # `NO_KEY` is above every key of a finite float: where a bucket is not split, all of its rows go left.
    goes_right = keys > _take(left, buckets)
    return best, (left, right), jnp.where(buckets == _OUTSIDE, _OUTSIDE, 2 * buckets + goes_right)


def _by_bucket(gains: Float[Array, "... rows"], buckets: Int32[Array, "... rows"]) -> Float[Array, "... 8 rows"]:
    """Returns a copy of the gains for each bucket, with -inf in the places of other buckets."""
    return jnp.where(buckets[..., None, :] == jnp.arange(BUCKETS)[:, None], gains[..., None, :], -jnp.inf)


def center(residuals: Float[Array, "codebooks rows width"], buckets: Int32[Array, "codebooks rows"]) -> Array:
    """Subtracts from every row the mean of its bucket."""
    # One-hot products are fast on every backend; `_OUTSIDE` has no column, so padding stays as it is.
    members = jax.nn.one_hot(buckets, BUCKETS, dtype=jnp.float32)
    counts = members.sum(1)[..., None]
    sums = jnp.einsum("cnb,cnd->cbd", members, residuals, precision="highest")
    return residuals - jnp.einsum("cnb,cbd->cnd", members, sums / jnp.maximum(counts, 1), precision="highest")


def sort_keys(x: Float[Array, "..."]) -> UInt32[Array, "..."]:
    """Returns integers in the order of the finite floats `x`, equal where these are equal (-0 = +0).

    Comparing the integers gives the result of the comparison in IEEE f32 even where the CPU flushes denormals to zero,
    as XLA's threads do.
    """
    # Magnitudes of floats have the order of their bits. Negative ones are mirrored about the key of zero.
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    magnitude = bits & ~_SIGN
    return jnp.where(bits >= _SIGN, _SIGN - magnitude, _SIGN + magnitude)


def _from_sort_keys(keys: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Returns the floats of which `keys` are the sort keys; +0 for either zero."""
    bits = jnp.where(keys < _SIGN, _SIGN + (_SIGN - keys), keys - _SIGN)
    return lax.bitcast_convert_type(bits, jnp.float32)


def threshold_between(left: UInt32[Array, "..."], right: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Returns a float `t` with `left <= t < right`, given sort keys: their midpoint, or `left` if that is rounded away.

    Where `left` is `NO_KEY`, the result is the threshold that no finite value exceeds.
    """
    # Halving first cannot overflow. The midpoint may still be rounded to `right`, or flushed to a zero outside.
    midpoint = 0.5 * _from_sort_keys(left) + 0.5 * _from_sort_keys(right)
    key = sort_keys(midpoint)
    between = _from_sort_keys(jnp.where((left <= key) & (key < right), key, left))
    return jnp.where(left == NO_KEY, _NEVER, between)


def bucket_order(
    keys: UInt32[Array, "... rows"], buckets: Int32[Array, "... rows"], key_bits: int = 32
) -> Int32[Array, "... rows"]:
    """Returns row numbers sorted by bucket (<= 8), then key, then row number.

    XLA's CPU sort takes 50 ns per element for one array of integers, but 250 to 450 ns for several arrays. So this is a
    radix sort from the least digit up, of which each pass sorts one array, `digit << bits | position`. 5,000 rows take
    two passes of 19 bits.
    """
    rows = keys.shape[-1]
    position_bits = max(1, (rows - 1).bit_length())
    digit_bits = 32 - position_bits
    position = lax.broadcasted_iota(jnp.uint32, keys.shape, keys.ndim - 1)
    order = position
    low, high = _pair(keys, buckets.astype(jnp.uint32), key_bits)
    for shift in range(0, key_bits + _BUCKET_BITS, digit_bits):
        digit = _take(_digit(low, high, shift, digit_bits), order)
        step = lax.sort(digit << np.uint32(position_bits) | position, is_stable=False)
        order = _take(order, step & np.uint32((1 << position_bits) - 1))
    return order.astype(jnp.int32)


def _pair(keys: Array, buckets: Array, key_bits: int) -> tuple[Array, Array]:
    """Returns the number `buckets << key_bits | keys` as its low and its high 32 bits, as 64-bit types are off."""
    if key_bits == 32:
        return keys, buckets
    return keys | buckets << np.uint32(key_bits), buckets >> np.uint32(32 - key_bits)


def _digit(low: Array, high: Array, shift: int, width: int) -> Array:
    """Returns bits [shift, shift + width) of the number `high << 32 | low`."""
    # A word has 32 bits, so each case takes only shifts below 32.
    below = low >> np.uint32(shift) if shift < 32 else jnp.zeros_like(low)
    above = high << np.uint32(32 - shift) if 0 < shift < 32 else high >> np.uint32(max(shift - 32, 0))
    return ((below | above) if shift else below) & np.uint32((1 << width) - 1)


def _split_gains(
    residuals: Float[Array, "codebooks rows width"],
    order: Int32[Array, "codebooks tried rows"],
    keys: UInt32[Array, "codebooks tried rows"],
    buckets: Int32[Array, "codebooks tried rows"],
) -> Float[Array, "codebooks tried rows"]:
    """Returns the gain of splitting a bucket after each row, as defined at the top of this file.

    The gain is -inf where rows with equal values would be separated. `keys` and `buckets` are in `order`.
    """
    # Residuals of a bucket sum to zero, so running sums over all rows are running sums within each bucket: no sum has
    # to start anew at a bucket's border.
    counts = (buckets[..., None, :] == jnp.arange(BUCKETS)[:, None]).sum(-1)  # [codebooks, tried, 8]
    ends = jnp.cumsum(counts, axis=-1)
    n = _take(counts, buckets)
    n_left = jnp.arange(1, order.shape[-1] + 1) - _take(ends - counts, buckets)
    n_right = n - n_left
    splits = n_right > 0
    splits &= keys != jnp.roll(keys, -1, axis=-1)  # a threshold cannot separate equal values
    weight = n / (n_left.astype(jnp.float32) * jnp.maximum(n_right, 1))
    return jnp.where(splits, _running_norms(residuals, order) * weight, -jnp.inf)


def _running_norms(residuals: Array, order: Array) -> Float[Array, "codebooks tried rows"]:
    """Returns |sum of residuals[c, order[c, k, :i + 1]]|^2 for every i.

    Blocks of rows are summed by a product with a triangular matrix; whole columns at once are slower (`_BLOCK`).
    """
    codebooks, rows, width = residuals.shape
    tried, blocks = order.shape[1], -(-rows // _BLOCK)
    padded = jnp.pad(order, ((0, 0), (0, 0), (0, blocks * _BLOCK - rows)))
    padded = padded.reshape(codebooks, tried, blocks, _BLOCK).transpose(2, 0, 1, 3)
    triangle = jnp.tril(jnp.ones((_BLOCK, _BLOCK), jnp.float32))

    def step(before: Array, block: Array) -> tuple[Array, Array]:
        taken = jax.vmap(lambda r, i: r.at[i].get(mode="promise_in_bounds"))(residuals, block)
        sums = jnp.einsum("ij,ckjd->ckid", triangle, taken, precision="highest") + before[:, :, None]
        return sums[:, :, -1], (sums * sums).sum(-1)

    _, norms = lax.scan(step, jnp.zeros((codebooks, tried, width), residuals.dtype), padded)
    return norms.transpose(1, 2, 0, 3).reshape(codebooks, tried, blocks * _BLOCK)[..., :rows]


def _take(values: Array, positions: Array) -> Array:
    """Returns `values[..., positions[...]]` along the last axis; positions out of bounds are clipped."""
    lead = jnp.broadcast_shapes(values.shape[:-1], positions.shape[:-1])
    values = jnp.broadcast_to(values, (*lead, values.shape[-1]))
    positions = jnp.broadcast_to(positions.astype(jnp.int32), (*lead, positions.shape[-1]))
    return jnp.take_along_axis(values, positions, axis=-1, mode="clip")


def _pick(best: Int32[Array, " codebooks"], values: Array) -> Array:
    """Returns `values[c, best[c]]` for every codebook `c`."""
    return jax.vmap(lambda v, b: v[b])(values, best)
