"""Writes vectors into the room of an index, and takes them out, without new shapes: little is compiled, once.

The functions run outside of `jax.jit`. Numbers of vectors are padded to powers of two, so that few programs serve all.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Integer, UInt8

from jax_maddness.retrieval import scan
from jax_maddness.retrieval.capacity import living, moved, with_capacity
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.rearrange import Added
from jax_maddness.retrieval.restrict import Restrictions
from jax_maddness.retrieval.room import REMOVED, Room, among, trimmed


class Places(NamedTuple):
    """Positions of ids in an index with room, and those that new ones can have.

    Attributes:
      positions: the position of each id; -1 if it has none.
      greatest: the greatest id of all vectors; -1 if there are none.
      used: number of positions in use.
      removed: positions whose vectors were removed.
    """

    positions: Int32[np.ndarray, " ids"]
    greatest: int
    used: int
    removed: Int32[np.ndarray, " removed"]

    def known(self) -> Bool[np.ndarray, " ids"]:
        """Returns whether the index has a vector with each id."""
        return (self.positions >= 0) & ~among(self.positions, self.removed)

    def free(self, names: Int32[np.ndarray, " ids"]) -> tuple[Int32[np.ndarray, " ids"], bool]:
        """Returns positions, possibly beyond the capacity, for vectors with these ids, which ascend and are not known.

        The second result says whether the ids of all vectors then ascend. If some are between those of others, all
        follow the others.
        """
        later = names > self.greatest
        in_order = bool((later | (self.positions >= 0)).all())
        appended = later | (not in_order)
        return np.where(appended, self.used + np.cumsum(appended) - 1, self.positions).astype(np.int32), in_order


def places(index: VectorIndex, names: Integer[np.ndarray, " ids"]) -> Places:
    """Finds ids in an index with room."""
    assert index.room is not None
    padded = np.full(_power_of_two(len(names)), -1, np.int32)
    padded[: len(names)] = np.where((names < 0) | (names > np.iinfo(np.int32).max), -1, names)
    positions, greatest = _look_up(index.ids, index.room.used, padded)
    return Places(np.asarray(positions)[: len(names)], int(greatest), *index.room.on_host())


@jax.jit
def _look_up(ids: Array, used: Array, names: Array) -> tuple[Any, Array]:
    positions = Restrictions(exclude=names).positions(ids, used).exclude
    return positions, jnp.where(used > 0, ids[jnp.maximum(used - 1, 0)], -1)


def written(index: VectorIndex, added: Added, own: Places, donate: bool) -> VectorIndex:
    """Returns an index with new vectors.

    Args:
      index: an index with room. If it has too little, the capacity of the result is doubled.
      added: the new vectors, whose ids no vector has.
      own: the places of their ids.
      donate: whether to write into the arrays of `index`.
    """
    at, in_order = own.free(added.ids)
    if at[-1] >= index.capacity:
        index, donate = with_capacity(index, _enough(index, len(at))), True  # its arrays are copies
        own = places(index, added.ids)
        at, in_order = own.free(added.ids)
    size = _power_of_two(len(at))
    beyond = np.full(size - len(at), len(index.codes) * scan.BLOCK)  # is dropped
    vectors = None if index.vectors is None else added.vectors.astype(index.vectors.dtype)
    new = [None if a is None else _padded(a, size) for a in (_packed(added.codes), added.ids, added.bias, vectors)]
    arrays = _write(_arrays(index, donate), np.concatenate([at, beyond]).astype(np.int32), new)
    index = _replaced(index, arrays, max(own.used, int(at[-1]) + 1), own.removed[~among(own.removed, at)])
    if in_order:
        return index
    kept = living(index)
    return moved(index, kept[np.argsort(np.asarray(index.ids)[kept])])


def without(index: VectorIndex, positions: Int32[np.ndarray, " removed"], donate: bool) -> VectorIndex:
    """Returns an index without the vectors at some positions.

    Args:
      index: an index with room.
      positions: the positions, which have vectors.
      donate: whether to use the arrays of `index`.
    """
    assert index.room is not None
    used, removed = index.room.on_host()
    left, removed = trimmed(used, np.concatenate([removed, positions]))
    if len(removed) > REMOVED:
        return moved(index, np.setdiff1d(living(index), positions))
    codes, ids, bias, vectors = _arrays(index, donate)
    ids = _forget(ids, np.int32(left))  # anew in any case: an index that was donated must not seem to be usable
    return _replaced(index, (codes, ids, bias, vectors), left, removed)


def _enough(index: VectorIndex, number: int) -> int:
    """Returns the capacity, doubled until there is room for so many vectors more."""
    capacity = index.capacity
    while capacity < index.count + number:
        capacity *= 2
    return capacity


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _packed(codes: UInt8[np.ndarray, "rows codebooks"]) -> UInt8[np.ndarray, "rows pairs"]:
    """Puts the codes of two codebooks into a byte, as `scan.pack` does."""
    codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return codes[:, ::2] | codes[:, 1::2] << 4


def _padded(a: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([a, np.zeros((size - len(a), *a.shape[1:]), a.dtype)])


def _arrays(index: VectorIndex, donate: bool) -> tuple[Any, ...]:
    """Returns the arrays that change, or copies of them, which may be donated."""
    arrays = index.codes, index.ids, index.bias, index.vectors
    return arrays if donate else jax.tree.map(lambda a: jnp.array(a, copy=True), arrays)


def _replaced(
    index: VectorIndex, arrays: tuple[Any, ...], used: int, removed: Int32[np.ndarray, " removed"]
) -> VectorIndex:
    assert index.room is not None
    room = Room.of(used, removed, index.room.gram)
    codes, ids, bias, vectors = arrays
    return dataclasses.replace(index, codes=codes, ids=ids, bias=bias, vectors=vectors, room=room)


@functools.partial(jax.jit, donate_argnums=0)
def _write(arrays: tuple[Any, ...], at: Int32[Array, " rows"], new: list[Any]) -> tuple[Any, ...]:
    """Writes vectors at positions; those beyond all blocks are dropped."""
    codes = arrays[0].at[at // scan.BLOCK, :, at % scan.BLOCK].set(new[0], mode="drop")
    others = (
        None if a is None else a.at[at].set(rows, mode="drop") for a, rows in zip(arrays[1:], new[1:], strict=True)
    )
    return codes, *others


@functools.partial(jax.jit, donate_argnums=0)
def _forget(ids: Int32[Array, " vectors"], used: Int32[Array, ""]) -> Int32[Array, " vectors"]:
    return jnp.where(jnp.arange(len(ids), dtype=jnp.int32) < used, ids, -1)
