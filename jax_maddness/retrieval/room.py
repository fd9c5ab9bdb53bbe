"""The room of an index whose vectors come and go without new shapes, for which programs would be compiled anew.

Arrays have more rows than there are vectors. How many rows are in use, and whose vectors were removed, are numbers in
arrays, so that a compiled search serves all states:

    position    0 ... used - 1                       used ... capacity - 1
    ids         ascending; some vectors are removed  -1: no vector yet

A removed vector keeps its position until the index is compacted, and every search excludes it, as if the caller did.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from jax_maddness.core.pytrees import pytree

REMOVED = 64
"""Number of removed vectors that may keep their positions: so many more candidates are proposed, and then filtered."""


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Room:
    """Which positions of an index have vectors. A pytree.

    Attributes:
      used: number of positions that have, or had, a vector. The last of them has one.
      removed: positions whose vectors were removed, in any order; -1 where there is none.
      gram: what encodes new vectors, beside the prototypes (`quantizer.gram_of`): 256 numbers for each pair of
        codebooks. None: `trees` encode them.

    Example:
      >>> Room.of(10, np.array([3, 5])).count
      8
    """

    used: Int32[Array, ""]
    removed: Int32[Array, " removed"]
    gram: Float[Array, "codes codes"] | None = None

    @classmethod
    def of(cls, used: int, removed: Int32[np.ndarray, " removed"], gram: Array | None = None) -> Room:
        """Returns a room with so many positions in use, at some of which vectors were removed."""
        places = np.full(REMOVED, -1, np.int32)
        places[: len(removed)] = removed
        arrays = jax.device_put((np.int32(used), places))
        return cls(arrays[0], arrays[1], gram)

    @property
    def count(self) -> Any:
        """Number of vectors: an int, or an array if the room is traced or a batch of several."""
        number = self.used - (self.removed >= 0).sum(-1, dtype=jnp.int32)
        return number if isinstance(number, jax.core.Tracer) or number.ndim else int(number)

    def on_host(self) -> tuple[int, Int32[np.ndarray, " removed"]]:
        """Returns the number of positions in use, and those at which vectors were removed."""
        removed = np.asarray(self.removed)
        return int(self.used), removed[removed >= 0]


def among(
    positions: Int32[np.ndarray, " positions"], others: Int32[np.ndarray, " others"]
) -> Bool[np.ndarray, " positions"]:
    """Returns whether each position is one of a few others; `np.isin` takes longer than the rest of a change."""
    return (positions[:, None] == others).any(1)


def trimmed(used: int, removed: Int32[np.ndarray, " removed"]) -> tuple[int, Int32[np.ndarray, " removed"]]:
    """Returns the positions in use and those of removed vectors, if the last vector's position is the last in use.

    Example:
      >>> used, removed = trimmed(10, np.array([9, 3, 8]))
      >>> used, removed.tolist()
      (8, [3])
    """
    removed = np.sort(removed)[::-1]
    last = int(np.cumprod(removed == used - 1 - np.arange(len(removed))).sum())
    return used - last, removed[last:]
