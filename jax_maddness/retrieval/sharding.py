"""Shards an index: spreads its vectors over devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jax_maddness.core import arguments
from jax_maddness.retrieval import scan
from jax_maddness.retrieval.capacity import with_capacity
from jax_maddness.retrieval.index import VectorIndex


def shard_index(index: VectorIndex, mesh: jax.sharding.Mesh, axis: str) -> VectorIndex:
    """Spreads the vectors of `index` over the devices of `mesh` along `axis`, in blocks of 64; prototypes are copied.

    In `search`, every shard proposes and rescores as many candidates as an unsharded index would, so that the recall is
    at least as high. Only the best `k` of each shard are communicated. Call the function outside of `jax.jit`.

    Args:
      index: an index that `build_index` made. One that is sharded already is gathered first, and room
        (`with_capacity`) is taken away.
      mesh: the mesh of devices.
      axis: name of the axis of `mesh` along which the vectors are spread.

    Returns:
      The sharded index. Its arrays of vectors are padded to the same number of blocks on every device.

    Raises:
      TypeError: `index` is not an index, or is traced.
      ValueError: `mesh` has no such axis, `index` has lists, or `index` is sharded over several processes already.

    Example:
      >>> import numpy as np
      >>> from jax_maddness import build_index
      >>> index = build_index(np.random.default_rng(0).standard_normal((1000, 8)), 4)
      >>> shard_index(index, jax.make_mesh((1,), ("devices",)), "devices").ids.shape
      (1024,)
    """
    index = with_capacity(index, None)
    if index.lists is not None:
        raise ValueError("`index` has lists, which cannot be sharded. Build it without `num_lists`.")
    arguments.instance(mesh, "mesh", jax.sharding.Mesh, "`jax.make_mesh` returns one")
    arguments.choice(axis, "axis", mesh.axis_names)
    shards = mesh.shape[axis]
    blocks = max(-(-len(index.codes) // shards), 1) * shards
    rows = blocks * scan.BLOCK

    def spread(a: jax.Array | None, size: int) -> Any:
        if a is None:
            return None
        padded = jnp.pad(a, [(0, size - len(a))] + [(0, 0)] * (a.ndim - 1))
        return _placed(padded, NamedSharding(mesh, PartitionSpec(axis)))

    everywhere = NamedSharding(mesh, PartitionSpec())
    copied = jax.tree.map(lambda a: _placed(a, everywhere), (index.quantizer, index.trees, index.origin))
    return dataclasses.replace(
        index,
        codes=spread(index.codes, blocks),
        quantizer=copied[0],
        trees=copied[1],
        origin=copied[2],
        ids=spread(index.ids, rows),
        bias=spread(index.bias, rows),
        vectors=spread(index.vectors, rows),
        mesh=mesh,
        axis=axis,
    )


def _placed(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Puts an array on the devices of `sharding`; those of other processes get theirs from these processes.

    `device_put` would gather the array from all processes first, to compare, which takes the memory of all copies.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    values = np.asarray(array)
    # A view would keep all values in memory: arrays of JAX may be made of NumPy's without a copy.
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part].copy())
