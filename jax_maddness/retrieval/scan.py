"""Scan: finds the vectors of an index with the greatest sums of table entries for each query.

Unlike in `amm`, the vectors are encoded once and stored, and the tables are made for each query. Stored codes take 4
bits. A block holds 64 vectors side by side, and a byte holds the codes of two codebooks,

    codes[b, p, v] = code of vector 64 b + v in codebook 2 p  |  its code in codebook 2 p + 1, times 16

which shuffles of 16, 32 and 64 bytes can all read without rearranging. Entries have 7 bits, so that those of two
codebooks can be added in a byte.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Int16, Int32, UInt8

from jax_maddness.core import ffi
from jax_maddness.core.stack import on_platform
from jax_maddness.core.types import LEAVES

BLOCK = 64
"""Number of vectors that are side by side in `codes`."""
MAX_ENTRY = 127
"""Greatest entry of a table: only the low 7 bits of an entry count."""
MAX_CODEBOOKS = 256
"""Greatest number of codebooks, so that sums fit into 16 bits: 256 * 127 < 2**15."""


def pack(codes: UInt8[Array, "vectors codebooks"]) -> UInt8[Array, "blocks pairs 64"]:
    """Packs two codes into a byte, in blocks of 64 vectors; missing vectors and codebooks get code 0.

    Example:
      >>> pack(jnp.array([[1, 2, 3]], jnp.uint8))[0, :, 0]
      Array([33,  3], dtype=uint8)
    """
    vectors, codebooks = codes.shape
    codes = jnp.pad(codes, ((0, -vectors % BLOCK), (0, codebooks % 2)))
    codes = codes.reshape(-(-vectors // BLOCK), BLOCK, -(-codebooks // 2), 2)
    return jnp.moveaxis(codes[..., 0] | codes[..., 1] << 4, 1, 2)


def unpack(packed: UInt8[Array, "blocks pairs 64"]) -> UInt8[Array, "vectors codebooks"]:
    """Undoes `pack`, for whole blocks and pairs of codebooks: padding is kept."""
    codes = jnp.stack([packed & 15, packed >> 4], -1)  # [blocks, pairs, 64, 2]
    return jnp.moveaxis(codes, 2, 1).reshape(packed.shape[0] * BLOCK, packed.shape[1] * 2)


def definition(
    codes: UInt8[Array, "blocks pairs 64"],
    tables: UInt8[Array, "queries codebooks 16"],
    count: Int32[Array, ""],
    k: int,
) -> tuple[Int32[Array, "queries k"], Int32[Array, "queries k"]]:
    """Finds, for each query, the `k` greatest `sum_c tables[c, code_c]` among `count` vectors, and their positions.

    Only the first `count` vectors take part. The greatest sum comes first; of equal sums, that of the first vector. If
    there are fewer than `k` vectors, the remaining sums and positions are -1. `codebooks` is `2 * pairs` or one less;
    `count` is clipped to the number of vectors that `codes` hold.
    """
    sums = sums_definition(codes, tables, count).astype(jnp.int32)
    sums = sums.reshape(tables.shape[0], codes.shape[0] * BLOCK)
    sums = jnp.pad(sums, ((0, 0), (0, max(k - sums.shape[1], 0))), constant_values=-1)
    best, positions = lax.top_k(sums, k)
    return best, jnp.where(best < 0, -1, positions).astype(jnp.int32)


def sums_definition(
    codes: UInt8[Array, "blocks pairs 64"], tables: UInt8[Array, "queries codebooks 16"], count: Int32[Array, ""]
) -> Int16[Array, "queries blocks 64"]:
    """Computes `sum_c tables[c, code_c]` of each query and each vector; -1 for vectors that are not among `count`."""
    unpacked, entries = unpack(codes), (tables & MAX_ENTRY).astype(jnp.int16)

    def add(c: int, sums: Int16[Array, "queries vectors"]) -> Int16[Array, "queries vectors"]:
        return sums + entries[:, c, :][:, unpacked[:, c]]

    # The sum starts from the first codebook, because zeros would vary over fewer axes of a shard_map than the sums.
    sums = lax.fori_loop(1, tables.shape[1], add, entries[:, 0, :][:, unpacked[:, 0]])
    counts = jnp.arange(len(unpacked), dtype=jnp.int32)[None, :] < count
    return jnp.where(counts, sums, jnp.int16(-1)).reshape(tables.shape[0], codes.shape[0], BLOCK)


def scan(
    codes: UInt8[Array, "blocks pairs 64"],
    tables: UInt8[Array, "queries codebooks 16"],
    count: Int32[Array, ""],
    k: int,
) -> tuple[Int32[Array, "queries k"], Int32[Array, "queries k"]]:
    """Computes `definition` by the kernels if they are available; sums and positions are the same, ties included.

    Args:
      codes: codes of the vectors, as `pack` returns them.
      tables: entries for each query; only the low 7 bits of each count.
      count: number of vectors that take part.
      k: number of sums for each query.

    Returns:
      The sums, greatest first, and the positions of their vectors; -1 and -1 if there are fewer than `k`.

    Raises:
      ValueError: shapes do not match, there are no codebooks or more than `MAX_CODEBOOKS`, or `k` is negative.
    """
    validate(codes, tables)
    if k < 0:
        raise ValueError(f"`k` is {k}; expected at least 0.")
    return _run(k, codes, tables, jnp.asarray(count, jnp.int32))


def scan_sums(
    codes: UInt8[Array, "blocks pairs 64"], tables: UInt8[Array, "queries codebooks 16"], count: Int32[Array, ""]
) -> Int16[Array, "queries vectors"]:
    """Computes `sums_definition` by the kernels if they are available; the sums are the same.

    Args:
      codes: codes of the vectors, as `pack` returns them.
      tables: entries for each query; only the low 7 bits of each count.
      count: number of vectors that take part.

    Returns:
      The sums of all vectors that `codes` have room for; -1 for those that are not among the first `count`.

    Raises:
      ValueError: shapes do not match, or there are no codebooks or more than `MAX_CODEBOOKS`.
    """
    validate(codes, tables)
    (sums,) = _run(None, codes, tables, jnp.asarray(count, jnp.int32))
    return sums.reshape(tables.shape[0], codes.shape[0] * BLOCK)


def validate(codes: Array, tables: Array) -> None:
    """Raises ValueError unless codes and tables have shapes that belong to each other."""
    _, pairs, block = codes.shape
    if block != BLOCK or tables.shape[1:] not in ((2 * pairs, LEAVES), (2 * pairs - 1, LEAVES)):
        raise ValueError(
            f"`codes` have the shape {codes.shape} and `tables` {tables.shape}; expected [blocks, pairs, {BLOCK}] and "
            f"[queries, codebooks, {LEAVES}] with two codebooks a pair. `pack` makes such codes."
        )
    if not 1 <= tables.shape[1] <= MAX_CODEBOOKS:
        raise ValueError(f"`tables` have {tables.shape[1]} codebooks; expected 1 to {MAX_CODEBOOKS}.")


# Outside of any `jit`, a call is compiled as one function; inside of one, it becomes a part of the caller.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _run(k: int | None, *args: Array) -> tuple[Array, ...]:
    return _vmapped(k)(*args)


@functools.cache
def _vmapped(k: int | None) -> Callable[..., Any]:
    """Returns the scan for `k`, or that for all sums. A batch of tables is more queries, of codes several scans."""
    target = "jax_maddness_scan_sums" if k is None else "jax_maddness_scan"

    def defined(codes: Array, tables: Array, count: Array) -> tuple[Array, ...]:
        return (sums_definition(codes, tables, count),) if k is None else definition(codes, tables, count, k)

    @custom_vmap
    def run(codes: Array, tables: Array, count: Array) -> tuple[Array, ...]:
        args = codes, tables, count
        return on_platform(defined, target, *args) if ffi.enabled() else defined(*args)

    @run.def_vmap
    def batch(axis_size: int, in_batched: list[bool], *args: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        if in_batched == [False, True, False]:
            codes, tables, count = args
            folded = run(codes, tables.reshape(-1, *tables.shape[2:]), count)
            return tuple(r.reshape(*tables.shape[:2], *r.shape[1:]) for r in folded), (True,) * len(folded)
        batched = [a for a, is_batched in zip(args, in_batched, strict=True) if is_batched]

        def run_element(elements: list[Array]) -> tuple[Array, ...]:
            remaining = iter(elements)
            return run(*(next(remaining) if is_batched else a for a, is_batched in zip(args, in_batched, strict=True)))

        results = lax.map(run_element, batched)
        return results, (True,) * len(results)

    return run
