"""codes of a database, tables of queries -> the vectors with the greatest sums of entries.

The other orientation of look-ups: the database is encoded once and stays, tables are made for each query. Codes at
rest take 4 bits: 64 vectors are a block, in which vectors are side by side and a byte holds two codebooks,

    codes[b, p, v] = code of vector 64 b + v in codebook 2 p  |  its code in codebook 2 p + 1, times 16

which shuffles of 16, 32 and 64 bytes all read without rearranging. Entries have 7 bits, so that those of two codebooks
can be added in a byte.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Int32, UInt8

from jax_maddness.core import ffi
from jax_maddness.core.stack import on_platform
from jax_maddness.core.types import LEAVES

BLOCK = 64
"""Vectors side by side in `codes`."""
MAX_ENTRY = 127
"""Of a table: only the low 7 bits of an entry count."""
MAX_CODEBOOKS = 256
"""Sums fit 16 bits: 256 * 127 < 2**15."""


def pack(codes: UInt8[Array, "vectors codebooks"]) -> UInt8[Array, "blocks pairs 64"]:
    """Two codes a byte, in blocks of 64 vectors; code 0 where vectors or codebooks are missing.

    Example:
      >>> pack(jnp.array([[1, 2, 3]], jnp.uint8))[0, :, 0]
      Array([33,  3], dtype=uint8)
    """
    vectors, codebooks = codes.shape
    codes = jnp.pad(codes, ((0, -vectors % BLOCK), (0, codebooks % 2)))
    codes = codes.reshape(-(-vectors // BLOCK), BLOCK, -(-codebooks // 2), 2)
    return jnp.moveaxis(codes[..., 0] | codes[..., 1] << 4, 1, 2)


def unpack(packed: UInt8[Array, "blocks pairs 64"]) -> UInt8[Array, "vectors codebooks"]:
    """`pack` undone: of whole blocks and pairs."""
    codes = jnp.stack([packed & 15, packed >> 4], -1)  # [blocks, pairs, 64, 2]
    return jnp.moveaxis(codes, 2, 1).reshape(packed.shape[0] * BLOCK, packed.shape[1] * 2)


def definition(
    codes: UInt8[Array, "blocks pairs 64"],
    tables: UInt8[Array, "queries codebooks 16"],
    count: Int32[Array, ""],
    k: int,
) -> tuple[Int32[Array, "queries k"], Int32[Array, "queries k"]]:
    """For each query the `k` greatest `sum_c tables[c, code_c]` of the first `count` vectors, and whose they are.

    Best first, of equal sums the vector that comes first. Where there are fewer than `k` vectors, -1 and -1.
    `codebooks` is `2 * pairs` or one less; `count` is clipped to what `codes` hold.
    """
    unpacked, entries = unpack(codes), (tables & MAX_ENTRY).astype(jnp.int32)
    vectors = len(unpacked)

    def add(c: int, sums: Int32[Array, "queries vectors"]) -> Int32[Array, "queries vectors"]:
        return sums + entries[:, c, :][:, unpacked[:, c]]

    # From the first codebook's on, not from zeros: inside shard_map those would vary over fewer axes than the sums do.
    sums = lax.fori_loop(1, tables.shape[1], add, entries[:, 0, :][:, unpacked[:, 0]])
    sums = jnp.where(jnp.arange(vectors) < count, sums, -1)
    sums = jnp.pad(sums, ((0, 0), (0, max(k - vectors, 0))), constant_values=-1)
    best, positions = lax.top_k(sums, k)
    return best, jnp.where(best < 0, -1, positions).astype(jnp.int32)


def scan(
    codes: UInt8[Array, "blocks pairs 64"],
    tables: UInt8[Array, "queries codebooks 16"],
    count: Int32[Array, ""],
    k: int,
) -> tuple[Int32[Array, "queries k"], Int32[Array, "queries k"]]:
    """`definition`, by the kernels where there are any. The same sums and positions everywhere, ties included.

    Raises:
      ValueError: shapes do not match, there are no codebooks or more than `MAX_CODEBOOKS`, or `k` is negative.
    """
    _, pairs, block = codes.shape
    if block != BLOCK or tables.shape[1:] not in ((2 * pairs, LEAVES), (2 * pairs - 1, LEAVES)):
        raise ValueError(
            f"`codes` have the shape {codes.shape} and `tables` {tables.shape}; expected [blocks, pairs, {BLOCK}] and "
            f"[queries, codebooks, {LEAVES}] with two codebooks a pair. `pack` makes such codes."
        )
    if not 1 <= tables.shape[1] <= MAX_CODEBOOKS or k < 0:
        raise ValueError(
            f"`tables` have {tables.shape[1]} codebooks, and `k` is {k}; expected 1 to {MAX_CODEBOOKS}, and at least 0."
        )
    return _scan(k, codes, tables, jnp.asarray(count, jnp.int32))


# Compiled as one function where nobody has called jit; a part of the caller's where somebody has.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _scan(k: int, *args: Array) -> tuple[Array, Array]:
    return _vmapped(k)(*args)


@functools.cache
def _vmapped(k: int) -> Callable[..., Any]:
    """The scan for `k`, of which a batch of tables is a scan with more queries; a batch of codes, several scans."""

    def best(codes: Array, tables: Array, count: Array) -> tuple[Array, Array]:
        return definition(codes, tables, count, k)

    @custom_vmap
    def run(codes: Array, tables: Array, count: Array) -> tuple[Array, Array]:
        args = codes, tables, count
        return on_platform(best, "jax_maddness_scan", *args) if ffi.enabled() else best(*args)

    @run.def_vmap
    def batch(axis_size: int, in_batched: list[bool], *args: Array) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
        if in_batched == [False, True, False]:
            codes, tables, count = args
            folded = run(codes, tables.reshape(-1, *tables.shape[2:]), count)
            results = tuple(r.reshape(*tables.shape[:2], k) for r in folded)
            return results, (True, True)
        batched = [a for a, is_batched in zip(args, in_batched, strict=True) if is_batched]

        def one(these: list[Array]) -> tuple[Array, Array]:
            own = iter(these)
            return run(*(next(own) if is_batched else a for a, is_batched in zip(args, in_batched, strict=True)))

        return lax.map(one, batched), (True, True)

    return run
