"""The data type of retrieval: vectors, their codes, and the prototypes that the codes stand for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from jax_maddness.core.arguments import instance
from jax_maddness.core.pytrees import pytree
from jax_maddness.core.types import ObliqueTrees
from jax_maddness.retrieval.lists import Lists
from jax_maddness.retrieval.quantizer import Quantizer
from jax_maddness.retrieval.room import Room

METRICS = ("ip", "l2", "cosine")
"""Inner product, Euclidean distance and cosine."""


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class VectorIndex:
    """An index that `build_index` made: everything that `search` needs besides queries. A pytree.

    The position of a vector is its row in `ids`, `vectors` and `bias`. Positions are in ascending order of ids.

    Attributes:
      codes: two 4-bit codes per byte, in the order that `scan.pack` describes.
      quantizer: the prototypes that the codes stand for.
      ids: ids of the vectors, ascending.
      bias: number that is added to the products of each vector. None: nothing. An index for "l2" of file version 1
        has minus half the squared length of each vector here.
      vectors: the vectors for rescoring, of length 1 for "cosine"; None: scores can only be approximate.
      trees: split trees that encode vectors, if the index was built with `method="trees"`; otherwise None.
      metric: "ip", "l2" or "cosine".
      capacity: number of positions: that of the vectors, or, in an index with room, that for which arrays have rows;
        the arrays of a sharded index are padded to more than that.
      recall: recall that was measured when the index was built: rows of a number of candidates and, for each of
        `calibrate.TOPS`, the share of the true neighbors among them; with lists, the number of lists that are scanned
        is the last number of a row, and rows that take longer follow.
      measured: number of vectors when `recall` was measured, if it was another than `capacity` is; 0: the same.
      origin: for "l2", the mean vector, which is subtracted from vectors and queries before codes and tables are made;
        None: zeros.
      exponent: codes and tables are made of vectors divided by `2**exponent`.
      lists: the lists into which the codes are sorted; None: codes are in the order of positions.
      criterion: the numbers of the criterion by which codes are chosen; see `criterion.py`. Empty: by the error of
        products alone, as in files of version 1 and 2, or by `trees`.
      mesh, axis: the devices over which the vectors are sharded, and the axis of the mesh; None: it is not sharded.
      room: which positions have vectors, in an index that `with_capacity` made: `ids` has -1 where there is none yet,
        and keeps the id of a removed vector. None: all.

    Example:
      >>> from jax_maddness import build_index
      >>> index = build_index(np.random.default_rng(0).standard_normal((1000, 8)), 4)
      >>> index.num_features, index.num_codebooks, index.codes.shape
      (8, 4, (16, 2, 64))
    """

    codes: UInt8[Array, "blocks pairs 64"]
    quantizer: Quantizer
    ids: Int32[Array, " vectors"]
    bias: Float[Array, " vectors"] | None
    vectors: Float[Array, "vectors features"] | None
    trees: ObliqueTrees | None
    metric: str = dataclasses.field(metadata={"static": True})
    capacity: int = dataclasses.field(metadata={"static": True})
    recall: tuple[tuple[float, ...], ...] = dataclasses.field(default=(), metadata={"static": True})
    origin: Float[Array, " features"] | None = None
    exponent: int = dataclasses.field(default=0, metadata={"static": True})
    criterion: tuple[float, ...] = dataclasses.field(default=(), metadata={"static": True})
    mesh: jax.sharding.Mesh | None = dataclasses.field(default=None, metadata={"static": True})
    axis: str | None = dataclasses.field(default=None, metadata={"static": True})
    lists: Lists | None = None
    room: Room | None = None
    measured: int = dataclasses.field(default=0, metadata={"static": True})

    def with_size(self, capacity: int, **arrays: Any) -> VectorIndex:
        """Returns the index with another number of positions and the arrays that have them."""
        measured = self.measured or self.capacity
        return dataclasses.replace(self, capacity=capacity, measured=measured * (measured != capacity), **arrays)

    @property
    def count(self) -> int:
        """Number of vectors; an array if the index has room and is traced."""
        return self.capacity if self.room is None else self.room.count

    @property
    def in_use(self) -> int | Int32[Array, ""]:
        """Number of positions that have, or had, a vector: an array if the index has room."""
        return self.capacity if self.room is None else self.room.used

    @property
    def num_features(self) -> int:
        """Number of features of a vector, D."""
        return self.quantizer.prototypes.shape[-1]

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks, C."""
        return self.quantizer.prototypes.shape[-3]

    @property
    def sums_squares(self) -> bool:
        """Whether distances are sums of squared differences, for "l2".

        An index that version 1 of the file format holds has lengths of vectors in place of an origin. Its answers stay
        as they were, which lose digits where the lengths exceed the distances: build a new index.
        """
        return self.metric == "l2" and self.origin is not None

    @property
    def nbytes(self) -> int:
        """Size in bytes of all arrays."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def __repr__(self) -> str:
        if not hasattr(self.quantizer, "prototypes") or getattr(self.quantizer.prototypes, "ndim", 0) < 3:
            return f"VectorIndex(metric={self.metric!r}, capacity={self.capacity})"
        kept = "none" if self.vectors is None else self.vectors.dtype.name
        lists = "" if self.lists is None else f"{self.lists.num_lists:,} lists, "
        known = self.room is None or (isinstance(self.room.used, jax.Array) and isinstance(self.count, int))
        count = f"{self.count:,} " if known else ""
        room = "" if self.room is None else f"room for {self.capacity:,}, "
        return (
            f"VectorIndex({count}x {self.num_features}, {room}{self.metric}, {self.num_codebooks} codebooks, {lists}"
            f"exact vectors: {kept}, {self.nbytes:,} bytes)"
        )


def validated(index: Any) -> VectorIndex:
    """Returns `index`, if it is an index that can be used.

    Raises:
      TypeError: it is something else.
      ValueError: its arrays were donated.
    """
    instance(index, "index", VectorIndex, "`build_index` makes one")
    if isinstance(index.ids, jax.Array) and not isinstance(index.ids, jax.core.Tracer) and index.ids.is_deleted():
        raise ValueError(
            "`index` was donated: its arrays are those of the index that `add_vectors` or `remove_vectors` returned. "
            "Use that one, or leave out `donate=True`."
        )
    return index


def whole(index: VectorIndex) -> VectorIndex:
    """Gathers `index` to one device and removes its padding; returns `index` itself if it is not sharded.

    Raises:
      TypeError: `index` is not an index, or is traced.
      ValueError: `index` was donated, or is sharded over several processes.
    """
    validated(index)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(index)):
        raise TypeError("`index` is traced: this looks at values, so it cannot run inside of jax.jit or jax.vmap.")
    if index.mesh is None:
        return index
    if not index.codes.is_fully_addressable:
        raise ValueError(
            "`index` is sharded over several processes, and this one has only its own vectors. It can be searched; to "
            "change, save or reshard it, use the index that was passed to `shard_index`."
        )
    blocks = -(-index.capacity // index.codes.shape[-1])

    def cut(a: Array | None, size: int) -> Any:
        return None if a is None else jax.device_put(np.asarray(a)[:size])

    return dataclasses.replace(
        index,
        codes=cut(index.codes, blocks),
        quantizer=jax.tree.map(lambda a: jax.device_put(np.asarray(a)), index.quantizer),
        trees=jax.tree.map(lambda a: jax.device_put(np.asarray(a)), index.trees),
        origin=jax.tree.map(lambda a: jax.device_put(np.asarray(a)), index.origin),
        ids=cut(index.ids, index.capacity),
        bias=cut(index.bias, index.capacity),
        vectors=cut(index.vectors, index.capacity),
        mesh=None,
        axis=None,
    )
