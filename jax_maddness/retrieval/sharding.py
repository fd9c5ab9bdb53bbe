"""An index whose vectors are spread over devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jax_maddness.retrieval import scan
from jax_maddness.retrieval.index import VectorIndex, whole


def shard_index(index: VectorIndex, mesh: jax.sharding.Mesh, axis: str) -> VectorIndex:
    """`index` with its vectors spread over the devices of `mesh` along `axis`, in blocks of 64; the rest is copied.

    In `search` every shard proposes, and rescores, as many candidates as a whole index would: what that finds is found,
    and mostly more. Only each shard's best `k` travel.

    Raises:
      ValueError: `mesh` has no such axis.
    """
    index = whole(index)
    if axis not in mesh.axis_names:
        raise ValueError(f"`axis` is {axis!r}; expected one of those of `mesh`: {mesh.axis_names}.")
    shards = mesh.shape[axis]
    blocks = max(-(-len(index.codes) // shards), 1) * shards
    places = blocks * scan.BLOCK

    def spread(a: jax.Array | None, size: int) -> Any:
        if a is None:
            return None
        padded = jnp.pad(a, [(0, size - len(a))] + [(0, 0)] * (a.ndim - 1))
        return jax.device_put(padded, NamedSharding(mesh, PartitionSpec(axis)))

    copied = jax.device_put((index.quantizer, index.trees), NamedSharding(mesh, PartitionSpec()))
    return dataclasses.replace(
        index,
        codes=spread(index.codes, blocks),
        quantizer=copied[0],
        trees=copied[1],
        ids=spread(index.ids, places),
        bias=spread(index.bias, places),
        vectors=spread(index.vectors, places),
        mesh=mesh,
        axis=axis,
    )
