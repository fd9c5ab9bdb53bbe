"""The noun of retrieval: vectors, their codes, and what the codes stand for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from jax_maddness.core.types import ObliqueTrees
from jax_maddness.retrieval.quantizer import Quantizer

METRICS = ("ip", "l2", "cosine")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class VectorIndex:
    """What `search` needs besides queries, as `build_index` makes it.

    A vector's position is its place in `ids`, `vectors` and `bias`. Positions are in the order of ids.

    Attributes:
      codes: in the order of `scan.pack`.
      quantizer: what they stand for.
      ids: names, ascending.
      bias: what is added to products; for "l2" it is minus half the squared length. None: nothing.
      vectors: for exact products, for "cosine" of length 1; None: only approximate ones are to be had.
      trees: encode the vectors that are added, if the index was built with `method="trees"`.
      metric: "ip", "l2" or "cosine".
      count: how many vectors there are; a sharded index has more places than that.
      recall: what was measured when it was built: rows of a number of candidates and, for each of `calibrate.TOPS`,
        the share of the true neighbours among them.
      mesh, axis: over which devices the vectors are spread; None: over none.
    """

    codes: UInt8[Array, "blocks pairs 64"]
    quantizer: Quantizer
    ids: Int32[Array, " vectors"]
    bias: Float[Array, " vectors"] | None
    vectors: Float[Array, "vectors features"] | None
    trees: ObliqueTrees | None
    metric: str = dataclasses.field(metadata={"static": True})
    count: int = dataclasses.field(metadata={"static": True})
    recall: tuple[tuple[float, ...], ...] = dataclasses.field(default=(), metadata={"static": True})
    mesh: jax.sharding.Mesh | None = dataclasses.field(default=None, metadata={"static": True})
    axis: str | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def num_features(self) -> int:
        return self.quantizer.prototypes.shape[-1]

    @property
    def num_codebooks(self) -> int:
        return self.quantizer.prototypes.shape[-3]

    @property
    def nbytes(self) -> int:
        """Size in bytes of all arrays."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def __repr__(self) -> str:
        if not hasattr(self.quantizer, "prototypes") or getattr(self.quantizer.prototypes, "ndim", 0) < 3:
            return f"VectorIndex(metric={self.metric!r}, count={self.count})"
        kept = "none" if self.vectors is None else self.vectors.dtype.name
        return (
            f"VectorIndex({self.count:,} x {self.num_features}, {self.metric}, {self.num_codebooks} codebooks, "
            f"exact vectors: {kept}, {self.nbytes:,} bytes)"
        )


def whole(index: VectorIndex) -> VectorIndex:
    """`index` on one device, without places that are not taken. Outside of `jax.jit`."""
    if not isinstance(index, VectorIndex):
        raise TypeError(f"`index` is {type(index).__name__}; expected a VectorIndex. `build_index` makes one.")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(index)):
        raise TypeError("`index` is traced: this looks at values, so it cannot run inside of jax.jit or jax.vmap.")
    if index.mesh is None:
        return index
    blocks = -(-index.count // index.codes.shape[-1])

    def cut(a: Array | None, size: int) -> Any:
        return None if a is None else jax.device_put(np.asarray(a)[:size])

    return dataclasses.replace(
        index,
        codes=cut(index.codes, blocks),
        quantizer=jax.tree.map(lambda a: jax.device_put(np.asarray(a)), index.quantizer),
        trees=jax.tree.map(lambda a: jax.device_put(np.asarray(a)), index.trees),
        ids=cut(index.ids, index.count),
        bias=cut(index.bias, index.count),
        vectors=cut(index.vectors, index.count),
        mesh=None,
        axis=None,
    )
