"""codes of a database, tables of queries -> the vectors with the greatest sums of entries.

The other orientation of look-ups: the database is encoded once and stays, tables are made for each query. Codes at
rest take 4 bits: 64 vectors are a block, in which vectors are side by side and a byte holds two codebooks,

    codes[b, p, v] = code of vector 64 b + v in codebook 2 p  |  its code in codebook 2 p + 1, times 16

which shuffles of 16, 32 and 64 bytes all read without rearranging. Entries have 7 bits, so that those of two codebooks
can be added in a byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from jax_maddness.core.types import LEAVES

if TYPE_CHECKING:
    from jaxtyping import Array, Int32, UInt8

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
    vectors, queries = len(unpacked), len(tables)

    def add(c: int, sums: Int32[Array, "queries vectors"]) -> Int32[Array, "queries vectors"]:
        return sums + entries[:, c, :][:, unpacked[:, c]]

    sums = lax.fori_loop(0, tables.shape[1], add, jnp.zeros((queries, vectors), jnp.int32))
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
      ValueError: shapes do not match, there are more than `MAX_CODEBOOKS` codebooks, or `k` is negative.
    """
    _, pairs, block = codes.shape
    if block != BLOCK or tables.shape[1:] not in ((2 * pairs, LEAVES), (2 * pairs - 1, LEAVES)):
        raise ValueError(
            f"`codes` have the shape {codes.shape} and `tables` {tables.shape}; expected [blocks, pairs, {BLOCK}] and "
            f"[queries, codebooks, {LEAVES}] with two codebooks a pair. `pack` makes such codes."
        )
    if tables.shape[1] > MAX_CODEBOOKS or k < 0:
        raise ValueError(
            f"`tables` have {tables.shape[1]} codebooks, and `k` is {k}; expected at most {MAX_CODEBOOKS}, and at "
            "least 0."
        )
    return definition(codes, tables, jnp.asarray(count, jnp.int32), k)
