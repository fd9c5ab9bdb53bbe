"""Rows that are sharded over a mesh with Explicit axes, where each operation must know the sharding of its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

_T = TypeVar("_T")


def by_rows(function: Callable[..., _T], x: Array, row_dims: int, *others: Any, by_row: Any = None) -> _T:
    """Computes `function(x, *others)`, or `function(x, *others, by_row)`.

    Where the mesh has Explicit axes, each device does so with its rows of `x`, and the results are sharded as the rows
    are. Outside of such a mesh, this is a plain call.

    Args:
      function: treats rows independently; its results, arrays or a tuple of them, begin with the row dimensions.
      x: begins with the row dimensions; all others are replicated first.
      row_dims: number of row dimensions.
      others: pytrees of arrays, which are replicated.
      by_row: a pytree of arrays that begin with the row dimensions, and are sharded as `x` is.
    """
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return function(x, *others) if by_row is None else function(x, *others, by_row)
    spec = tuple(jax.typeof(x).sharding.spec)[:row_dims]
    rows = PartitionSpec(*spec, *[None] * (row_dims - len(spec)))
    names = set(jax.tree.leaves(spec))
    rowwise = () if by_row is None else (by_row,)
    shards = jax.shard_map(
        function,
        in_specs=(rows, *(PartitionSpec() for _ in others), *(rows for _ in rowwise)),
        out_specs=rows,
        axis_names=names,
        check_vma=False,
    )
    on_rows = (jax.tree.map(lambda a: jax.sharding.reshard(a, rows), each) for each in rowwise)
    return shards(jax.sharding.reshard(x, rows), *(replicated(other) for other in others), *on_rows)


def replicated(arrays: _T) -> _T:
    """Returns a pytree whose arrays are copied to all devices of a mesh with Explicit axes, if there is one."""
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return arrays
    return jax.tree.map(lambda a: jax.sharding.reshard(a, PartitionSpec()), arrays)
