"""The lists of an index (an inverted file): vectors near the same center are in one list, and a search scans some.

A vector is its center plus a residual, of which codes are made, so that its product with a query is that of the center
plus a sum of look-ups. The tables of a query are the same for all lists, and the product with the center is one number
for the whole list:

    q . v  is about  q . center(list)  +  sum_c q . prototypes[c, code_c(v)]

The codes of a list are contiguous, and begin at a block of their own. Everything else in an index is in ascending order
of ids, as without lists; `positions` says which vector has which codes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from jax_maddness.core.pytrees import pytree
from jax_maddness.retrieval import scan


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Lists:
    """The lists of an index. A pytree.

    Attributes:
      centers: the center of each list in the frame of the index, and the number that is added to its products: minus
        half the squared length of the center for "l2", the mean bias of the vectors of the list otherwise.
      ranges: the first block of codes of each list, and the number of its vectors. Lists follow each other.
      positions: the position of the vector that has these codes, for each place in the blocks; -1 where there is none.
      probe: number of lists that a search scans unless it is told otherwise.
      longest: number of blocks of the longest list.

    Example:
      >>> from jax_maddness import build_index
      >>> index = build_index(np.random.default_rng(0).standard_normal((1000, 8)), 4, num_lists=10)
      >>> index.lists.num_lists, index.lists.centers.shape
      (10, (10, 9))
    """

    centers: Float[Array, "lists features+1"]
    ranges: Int32[Array, "lists 2"]
    positions: Int32[Array, " places"]
    probe: int = dataclasses.field(metadata={"static": True})
    longest: int = dataclasses.field(metadata={"static": True})

    @property
    def num_lists(self) -> int:
        """Number of lists."""
        return self.ranges.shape[0]


class Bases(NamedTuple):
    """The centers of lists, of which the vectors in the lists are residuals.

    Attributes:
      centers: as in `Lists`.
      of_vectors: the list of each vector.
    """

    centers: Float[np.ndarray, "lists features+1"]
    of_vectors: Int32[np.ndarray, " vectors"]

    def at(self, rows: slice | np.ndarray) -> Float[np.ndarray, "rows features+1"]:
        """Returns the centers of some vectors."""
        return self.centers[self.of_vectors[rows]]

    def of(self, rows: slice | np.ndarray) -> Bases:
        """Returns the bases of some vectors."""
        return Bases(self.centers, self.of_vectors[rows])


def arranged(
    codes: UInt8[np.ndarray, "vectors codebooks"], bases: Bases, probe: int
) -> tuple[UInt8[np.ndarray, "places codebooks"], Lists]:
    """Puts the codes of each list in blocks of its own, in ascending order of positions.

    Returns:
      The codes, zeros where no vector is, and the lists.
    """
    counts = np.bincount(bases.of_vectors, minlength=len(bases.centers))
    blocks = -(-counts // scan.BLOCK)
    first = np.concatenate([[0], np.cumsum(blocks)])
    order = np.argsort(bases.of_vectors, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    of_order = bases.of_vectors[order]
    places = first[of_order] * scan.BLOCK + np.arange(len(order)) - starts[of_order]
    arranged_codes = np.zeros((first[-1] * scan.BLOCK, codes.shape[1]), np.uint8)
    arranged_codes[places] = codes[order]
    positions = np.full(len(arranged_codes), -1, np.int32)
    positions[places] = order
    ranges = np.stack([first[:-1], counts], 1).astype(np.int32)
    on_device = [jnp.asarray(a) for a in (bases.centers, ranges, positions)]
    return arranged_codes, Lists(on_device[0], on_device[1], on_device[2], probe, longest_of(counts))


def longest_of(counts: Int32[np.ndarray, " lists"]) -> int:
    """Returns the number of blocks of the longest list, given the numbers of vectors.

    Example:
      >>> longest_of(np.array([0, 65, 64]))
      2
    """
    return -(-int(counts.max(initial=0)) // scan.BLOCK)


def places(lists: Lists, count: int) -> Int32[np.ndarray, " vectors"]:
    """Returns the place in the blocks of codes of each of `count` vectors, in the order of positions."""
    positions = np.asarray(lists.positions)
    known = np.flatnonzero(positions >= 0)
    result = np.zeros(count, np.int32)
    result[positions[known]] = known
    return result


def bases_of(lists: Lists, count: int) -> Bases:
    """Returns the list of each of `count` vectors, in the order of positions."""
    of_blocks = np.searchsorted(np.asarray(lists.ranges)[:, 0], places(lists, count) // scan.BLOCK, side="right") - 1
    return Bases(np.asarray(lists.centers), of_blocks.astype(np.int32))


def validate_lists(arrays: dict[str, np.ndarray], probe: Any, count: int, width: int) -> None:
    """Raises unless `arrays`, the fields of `Lists` by name, are lists of `count` vectors of an index.

    Args:
      arrays: `centers`, `ranges` and `positions`.
      probe: number of lists that a search scans.
      count: number of vectors.
      width: number of features of a center, with that of its number.

    Raises:
      ValueError: they are not; the message says why.
    """
    centers, ranges, positions = (arrays[name] for name in ("centers", "ranges", "positions"))
    expected: dict[str, tuple[str, tuple[int, ...]]]
    expected = {"centers": ("float32", (len(centers), width)), "ranges": ("int32", (len(centers), 2))}
    expected["positions"] = "int32", (positions.size // scan.BLOCK * scan.BLOCK,)
    for name, described in expected.items():
        if (arrays[name].dtype.name, arrays[name].shape) != described:
            raise ValueError(f"lists.{name} is {(arrays[name].dtype.name, arrays[name].shape)}; expected {described}.")
    if not len(centers) or type(probe) is not int or not 1 <= probe <= len(centers):
        raise ValueError(f"its searches scan {probe!r} of {len(centers)} lists.")
    counts = ranges[:, 1].astype(np.int64)
    ends = np.cumsum(-(-counts // scan.BLOCK))
    if (
        counts.min() < 0
        or ends[-1] * scan.BLOCK != len(positions)
        or np.any(ranges[1:, 0] != ends[:-1])
        or ranges[0, 0]
    ):
        raise ValueError("the ranges of its lists do not follow each other, or do not fit the codes.")
    within = np.arange(len(positions)) - np.repeat(ranges[:, 0] * scan.BLOCK, -(-counts // scan.BLOCK) * scan.BLOCK)
    filled = within < np.repeat(counts, -(-counts // scan.BLOCK) * scan.BLOCK)
    known = positions[filled]
    if len(known) != count or np.any(positions[~filled] != -1) or not np.array_equal(np.sort(known), np.arange(count)):
        raise ValueError("its lists do not have each vector once.")
