"""Rows that are sharded over a mesh with Explicit axes, where each operation must know the sharding of its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
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


def taken(a: Array, indices: Array, axis: int) -> Array:
    """Returns `jnp.take(a, indices, axis)`, where `jax.vmap` may map `indices` over an Explicit axis of the mesh."""
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return jnp.take(a, indices, axis=axis)
    # JAX asks for the sharding of what is gathered by sharded indices. It adds the axis over which vmap maps.
    return a.at[(*[slice(None)] * axis, indices)].get(out_sharding=PartitionSpec())


def refuse_mapped_axes(name: str) -> None:
    """Raises if `jax.vmap` maps the function `name` over an Explicit axis of the mesh.

    Each device would have to gather from arrays that are not mapped, and JAX does not know how such a result is
    sharded: its own error proposes an argument that no caller of ours can pass.

    Raises:
      ValueError: `jax.vmap` maps over a dimension that is sharded over an Explicit axis.
    """
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return
    mapped: list[str] = []

    def look(a: Array) -> Array:
        mapped.extend(jax.sharding.get_abstract_mesh().explicit_axes)
        return a

    # By default, shard_map takes all axes but those that vmap maps over; no other public function tells these apart.
    jax.eval_shape(
        jax.shard_map(look, in_specs=PartitionSpec(), out_specs=PartitionSpec()), jax.ShapeDtypeStruct((), jnp.float32)
    )
    if mapped:
        raise ValueError(
            f"`jax.vmap` maps `{name}` over a dimension that is sharded over {', '.join(mapped)}, an Explicit axis of "
            f"the mesh. Call `{name}` without `jax.vmap`: it takes rows with any leading dimensions, sharded or not."
        )
