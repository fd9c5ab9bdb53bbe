"""Rows that lie on several devices or hosts: what is computed from all of them is computed where they lie, and summed.

What leaves a device are sums over its rows, and the few rows that `rows_at` names. Where several processes share the
rows, all of them call the same functions in the same order with the same arguments, and get the same results.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jax_maddness.core.encode import encode
from jax_maddness.core.types import Trees
from jax_maddness.learn import validate
from jax_maddness.learn.data import shapes
from jax_maddness.learn.data.statistics import Statistics

T = TypeVar("T")
_PIECE = 2**22  # elements of the rows that are looked at, or sent, at once


def is_sharded(x: Any) -> bool:
    """Whether `x` is an array of which no device has all."""
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and not x.sharding.is_fully_replicated


def validated_magnitude(x: Array, name: str) -> float:
    """The largest magnitude in `x`, called `name`; raises unless it is finite and sharded over rows only."""
    validate.rows(x, name)
    hint = f"Shard its rows only: `jax.device_put({name}, NamedSharding(mesh, PartitionSpec('rows')))`."
    if not isinstance(x.sharding, NamedSharding):
        raise ValueError(f"`{name}` has a {type(x.sharding).__name__}; expected rows on a `jax.sharding.Mesh`. {hint}")
    if x.sharding.shard_shape(x.shape)[-1] != x.shape[-1]:
        raise ValueError(f"`{name}` is sharded over features, but every tree may look at any of them. {hint}")
    found = float(fetch(_largest(x.sharding, x)))
    if not np.isfinite(found):
        raise validate.not_finite(name, int(fetch(_not_finite(x.sharding, x))))
    return found


def _names(sharding: NamedSharding, ndim: int) -> list[tuple[str, ...]]:
    """The mesh's axes that each leading dimension is sharded over."""
    entries = [*sharding.spec, *[None] * ndim][: ndim - 1]
    return [() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in entries]


def over_shards(
    local: Callable[..., T], reduce: Callable[..., T], sharding: NamedSharding, x: Array, *others: Any
) -> T:
    """`reduce` of `local(rows on a device, *others)` over the devices that have different rows."""
    axes = sum(_names(sharding, x.ndim), ())
    return jax.shard_map(
        lambda *args: reduce(local(*args), axes),
        mesh=sharding.mesh,
        in_specs=(sharding.spec, *[P()] * len(others)),
        out_specs=P(),
        check_vma=False,  # loops over blocks begin with zeros that do not vary
    )(x, *others)


@functools.partial(jax.jit, static_argnums=0)
def _largest(sharding: NamedSharding, x: Array) -> Float[Array, ""]:
    """The largest magnitude as float32, infinite if an entry is not finite: XLA's maximum on CPU drops NaN."""

    def local(x: Array) -> Array:
        def add(total: Array, rows: Array, counted: Array) -> Array:
            return jnp.maximum(total, jnp.where(jnp.isfinite(rows).all(), jnp.abs(rows).max(), jnp.inf))

        return over_blocks(x, _at_once(x), add, jnp.float32(0))

    return over_shards(local, lax.pmax, sharding, x)


@functools.partial(jax.jit, static_argnums=0)
def _not_finite(sharding: NamedSharding, x: Array) -> Int[Array, ""]:
    """How many entries are NaN or infinite as float32."""

    def local(x: Array) -> Array:
        def add(total: Array, rows: Array, counted: Array) -> Array:
            return total + (~jnp.isfinite(rows) & counted[:, None]).sum()

        return over_blocks(x, _at_once(x), add, jnp.int32(0))

    return over_shards(local, lax.psum, sharding, x)


@functools.partial(jax.jit, static_argnums=0)
def _sums(sharding: NamedSharding, x: Array, factor: Array, center: Array) -> Float[Array, " features"]:
    """The sum of `x * factor - center` over all rows."""

    def local(x: Array, factor: Array, center: Array) -> Array:
        return (_flat(x).astype(jnp.float32) * factor - center).sum(0)

    return over_shards(local, lax.psum, sharding, x, factor, center)


def mean(x: Array, exponent: int) -> Float[np.ndarray, " features"]:
    """In float64: the mean in float32 of rows times `2**-exponent`, and the mean of what is left about it."""
    count, factor = np.prod(x.shape[:-1]), np.ldexp(np.float32(1), -exponent)
    rough = (fetch(_sums(x.sharding, x, factor, np.zeros(x.shape[-1], np.float32))) / count).astype(np.float32)
    rest = fetch(_sums(x.sharding, x, factor, rough)).astype(np.float64) / count
    return np.ldexp(rough + rest, exponent)


@functools.partial(jax.jit, static_argnums=(0, 1))
def statistics(sharding: NamedSharding, size: int, x: Array, trees: Trees, factor: Array, center: Array) -> Statistics:
    """`Statistics` of `x * factor - center`, in blocks of `size` rows."""

    def local(x: Array, trees: Trees, factor: Array, center: Array) -> Statistics:
        def add(found: Statistics, rows: Array, counted: Array) -> Statistics:
            return found.add(rows * factor - center, encode(rows, trees), counted)

        return over_blocks(x, size, add, Statistics.zeros(trees.num_codebooks, x.shape[-1]))

    return over_shards(local, lax.psum, sharding, x, trees, factor, center)


def over_blocks(x: Array, size: int, add: Callable[..., T], start: T) -> T:
    """`add(total, block, counted)` for blocks of `size` rows in turn: the last one also has rows of the one before."""
    x = _flat(x)
    size = min(size, len(x))

    def step(i: Array, total: T) -> T:
        first = jnp.minimum(i * size, len(x) - size)
        rows = lax.dynamic_slice_in_dim(x, first, size).astype(jnp.float32)
        return add(total, rows, first + jnp.arange(size) >= i * size)

    return lax.fori_loop(0, -(-len(x) // size), step, start)


def rows_at(x: Array, numbers: Int[np.ndarray, " wanted"]) -> Float[np.ndarray, "wanted features"]:
    """The rows of these numbers, as float32, piece by piece: the device that has a row sends it, the others zeros."""
    places = np.stack(np.unravel_index(numbers, x.shape[:-1]), axis=1).astype(np.int32)
    size = min(len(places), _at_once(x))
    rows = np.empty((len(places), x.shape[-1]), np.float32)
    for start in range(0, len(places), size):
        piece = places[start : start + size]
        bits = fetch(_bits_at(x.sharding, x, shapes.pad(piece, size, piece.shape[1])))
        rows[start : start + size] = bits[: len(piece)].view(np.float32)
    return rows


@functools.partial(jax.jit, static_argnums=0)
def _bits_at(sharding: NamedSharding, x: Array, places: Int[Array, "wanted leading"]) -> Int[Array, "wanted features"]:
    """Rows at `places` in the leading dimensions, as integers: sums with zeros then keep -0 and denormals."""

    def local(x: Array, places: Array) -> Array:
        sizes = np.array(x.shape[:-1], np.int32)
        position = [lax.axis_index(names) if names else 0 for names in _names(sharding, x.ndim)]
        here = places - jnp.stack(position).astype(jnp.int32)[None] * sizes[None]
        inside = ((here >= 0) & (here < sizes[None])).all(1)
        rows = x[tuple(jnp.clip(here, 0, sizes[None] - 1).T)].astype(jnp.float32)
        return jnp.where(inside[:, None], lax.bitcast_convert_type(rows, jnp.int32), 0)

    return over_shards(local, lax.psum, sharding, x, places)


def fetch(found: Any) -> Any:
    """What a function of this file returns, which every device has, as arrays of NumPy."""
    return jax.tree.map(np.asarray, found)


def from_first(value: T, x: Array) -> T:
    """`value`, which can be pickled, as the process of the first device of `x` has it: in all processes that share `x`.

    Processes learn the same from the same rows where their machines and numbers of threads are the same: this does not
    rely on it.
    """
    if x.is_fully_addressable:
        return value
    mesh = cast("Mesh", cast("NamedSharding", x.sharding).mesh)
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    (size,) = _from_first(np.array([len(data)], np.int32), mesh)
    return pickle.loads(_from_first(np.resize(data, size), mesh).tobytes())  # noqa: S301  a process of this program


def _from_first(a: np.ndarray, mesh: Mesh) -> np.ndarray:
    """`from_first` of an array: a sum to which all devices but one add zeros."""
    of_each = NamedSharding(mesh, P(mesh.axis_names))
    device = mesh.devices.flat[0]
    shards = [jax.device_put((a if d == device else np.zeros_like(a))[None], d) for d in of_each.addressable_devices]
    each = jax.make_array_from_single_device_arrays((mesh.size, *a.shape), of_each, shards)
    return np.asarray(jax.jit(lambda each: each.sum(0, dtype=a.dtype), out_shardings=NamedSharding(mesh, P()))(each))


def _at_once(x: Array) -> int:
    return max(1, _PIECE // x.shape[-1])


def _flat(x: Array) -> Float[Array, "rows features"]:
    return x.reshape(-1, x.shape[-1])
