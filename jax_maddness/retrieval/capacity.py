"""Gives an index room for more vectors, or takes it away."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32

from jax_maddness.core.arguments import integer
from jax_maddness.learn.data.modes import modes
from jax_maddness.retrieval import scan
from jax_maddness.retrieval.index import VectorIndex, whole
from jax_maddness.retrieval.quantizer import gram_of
from jax_maddness.retrieval.rearrange import rearranged
from jax_maddness.retrieval.room import Room

_LARGEST = 2**31 - scan.BLOCK
"""Greatest number of positions."""


def with_capacity(index: VectorIndex, capacity: int | None) -> VectorIndex:
    """Returns an index with the same vectors and room for `capacity` of them, which `index` is unchanged by.

    Programs are compiled for the shapes of an index. One with room keeps its shapes while `add_vectors` and
    `remove_vectors` change it, so that nothing is compiled anew, and with `donate=True` these write in place:

    - New vectors follow the others, or take the places of removed ones that had their ids. With an id between those of
      other vectors, all are moved into the order of ids.
    - More vectors than `capacity` double it, once or several times. Searches are then compiled for the new shapes.
    - Up to 64 removed vectors keep their places. One more, or a lack of places, has the others moved together, which
      takes as long as to copy them.

    Searches return what they return without room. Masks of `exclude` and `score_bias` are as long as `index.ids`, the
    capacity; what they say of positions without a vector, in finite numbers, plays no part. Those have the id -1, and
    removed vectors may keep theirs. `recall=` takes more candidates, in proportion to the capacity. Rows of arrays that
    are not in use take memory, and hardly any time of a search.

    Call the function outside of `jax.jit`.

    Args:
      index: an index that `build_index` made. A sharded index is gathered to one device, and vectors that stay in a
        file (`load_index(mmap=True)`) are read into memory.
      capacity: number of vectors, at least that of `index`. None: no room, as `build_index` and `load_index` return an
        index; `ids` are then those of the vectors. `save_index` and `shard_index` take the room away, too.

    Returns:
      The index, on one device.

    Raises:
      TypeError: an argument has the wrong type, or is traced.
      ValueError: `capacity` is less than the number of vectors or more than int32 can count, or `index` has lists.

    Example:
      >>> from jax_maddness import add_vectors, build_index
      >>> vectors = np.random.default_rng(0).standard_normal((1000, 8))
      >>> index = with_capacity(build_index(vectors, 4), 1500)
      >>> index = add_vectors(index, vectors[:3], donate=True)
      >>> index
      VectorIndex(1,003 x 8, room for 1,500, ip, 4 codebooks, exact vectors: float32, 78,360 bytes)
    """
    index = whole(index)
    if capacity is None:
        return without_room(index)
    capacity = integer(capacity, "capacity", 1, ", or None for no room")
    if index.lists is not None:
        raise ValueError("`index` has lists, which have no room. Leave it as it is, or build it without `num_lists`.")
    if capacity > _LARGEST:
        raise ValueError(f"`capacity` is {capacity}; expected at most {_LARGEST}, as positions are int32.")
    if capacity < index.count:
        raise ValueError(f"`capacity` is {capacity}, but `index` has {index.count} vectors. Take more.")
    with modes():
        if index.room is not None and len(index.room.on_host()[1]):
            index = moved(index, living(index))
        arrays = (index.codes, index.ids, index.bias, index.vectors)
        codes, ids, bias, vectors = _resized(arrays, np.int32(index.in_use), capacity)
        gram = gram_of(index.quantizer) if index.trees is None else None
        room = Room.of(int(index.in_use), np.zeros(0, np.int32), gram)
    return index.with_size(capacity, codes=codes, ids=ids, bias=bias, vectors=vectors, room=room)


def without_room(index: VectorIndex) -> VectorIndex:
    """Returns an index, which is on one device, without its room; the index itself if it has none."""
    if index.room is None:
        return index
    with modes():
        return rearranged(index, living(index))


def living(index: VectorIndex) -> Int32[np.ndarray, " vectors"]:
    """Returns the positions of the vectors of an index."""
    if index.room is None:
        return np.arange(index.capacity, dtype=np.int32)
    used, removed = index.room.on_host()
    return np.delete(np.arange(used, dtype=np.int32), removed)


def moved(index: VectorIndex, kept: Int32[np.ndarray, " kept"]) -> VectorIndex:
    """Returns an index with room and as many positions, the first of which have the vectors at positions `kept`.

    Args:
      index: an index with room.
      kept: positions, in ascending order of their ids.
    """
    assert index.room is not None
    order = np.zeros(len(index.codes) * scan.BLOCK, np.int32)
    order[: len(kept)] = kept
    arrays = _moved((index.codes, index.ids, index.bias, index.vectors), order, np.int32(len(kept)))
    codes, ids, bias, vectors = arrays
    room = Room.of(len(kept), np.zeros(0, np.int32), index.room.gram)
    return dataclasses.replace(index, codes=codes, ids=ids, bias=bias, vectors=vectors, room=room)


@jax.jit
def _moved(arrays: tuple[Any, ...], order: Int32[Array, " places"], used: Array) -> tuple[Any, ...]:
    """Returns codes, ids, biases and vectors in another order, of which so many positions are in use."""
    codes, ids, bias, vectors = arrays
    of_places = jnp.moveaxis(codes, 1, 2).reshape(order.shape[0], -1)[order]
    codes = jnp.moveaxis(of_places.reshape(codes.shape[0], scan.BLOCK, -1), 1, 2)
    order = order[: ids.shape[0]]
    names = jnp.where(jnp.arange(ids.shape[0], dtype=jnp.int32) < used, ids[order], -1)
    return codes, names, *(None if a is None else a[order] for a in (bias, vectors))


@functools.partial(jax.jit, static_argnums=2)
def _resized(arrays: tuple[Any, ...], used: Array, capacity: int) -> tuple[Any, ...]:
    """Returns copies of codes, ids, biases and vectors, cut or padded to `capacity` positions; of the ids, to -1."""

    def of(a: Any, size: int) -> Any:
        if a is None:
            return None
        blank = jnp.zeros((size, *a.shape[1:]), a.dtype)
        return lax.dynamic_update_slice_in_dim(blank, a[:size], 0, 0)

    codes, ids, bias, vectors = arrays
    names = jnp.where(jnp.arange(capacity, dtype=jnp.int32) < used, of(ids, capacity), -1)
    return of(codes, -(-capacity // scan.BLOCK)), names, of(bias, capacity), of(vectors, capacity)
