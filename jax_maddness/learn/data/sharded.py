"""Sums over rows that are sharded over several devices or hosts, without moving the rows.

Each device sums over its own rows, and only these sums, and the few rows that `rows_at` names, leave it. Where several
processes share the rows, all of them call the same functions in the same order with the same arguments, and get the
same results.
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
_PIECE = 2**22  # elements of the rows that are reduced, or sent, at once: it limits the memory for temporaries


def is_sharded(x: Any) -> bool:
    """Returns whether `x` is an array that is divided over devices, so that none of them has all of it."""
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and not x.sharding.is_fully_replicated


def validated_magnitude(x: Array, name: str) -> float:
    """Returns the largest magnitude in `x`, the argument called `name`.

    Raises:
      TypeError: `x` is not real.
      ValueError: `x` has values that are not finite, or is not sharded over rows only, on a mesh.
    """
    validate.rows(x, name)
    hint = f"Shard its rows only: `jax.device_put({name}, NamedSharding(mesh, PartitionSpec('rows')))`."
    if not isinstance(x.sharding, NamedSharding):
        raise ValueError(f"`{name}` has a {type(x.sharding).__name__}; expected rows on a `jax.sharding.Mesh`. {hint}")
    if x.sharding.shard_shape(x.shape)[-1] != x.shape[-1]:
        raise ValueError(f"`{name}` is sharded over features, but every tree may look at any of them. {hint}")
    magnitude = float(fetch(_largest(x.sharding, x)))
    if not np.isfinite(magnitude):
        raise validate.not_finite(name, int(fetch(_not_finite(x.sharding, x))))
    return magnitude


def _names(sharding: NamedSharding, ndim: int) -> list[tuple[str, ...]]:
    """Returns, for each leading dimension, the names of the mesh's axes that it is sharded over."""
    # A partition spec may be shorter than the array's dimensions, and an entry may be a name or a tuple of names.
    entries = [*sharding.spec, *[None] * ndim][: ndim - 1]
    return [() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in entries]


def over_shards(
    local: Callable[..., T], reduce: Callable[..., T], sharding: NamedSharding, x: Array, *others: Any
) -> T:
    """Computes `local(rows of a device, *others)` on every device, and reduces the results over devices.

    Args:
      local: function of a device's part of `x`, and of `others`.
      reduce: collective over named axes, such as `lax.psum`.
      sharding: the sharding of `x`.
      x: rows, `[..., features]`.
      *others: arguments that every device gets whole.
    """
    # Devices along the mesh's other axes have copies of the same rows, which must not be summed twice.
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
    """Returns the largest magnitude as float32, infinite if an entry is not finite."""

    def local(x: Array) -> Array:
        # XLA's maximum on CPU drops NaN, so values that are not finite are looked for explicitly. Rows that a block
        # repeats from the one before do no harm to a maximum, so `counted` is not needed.
        def add(total: Array, rows: Array, counted: Array) -> Array:
            return jnp.maximum(total, jnp.where(jnp.isfinite(rows).all(), jnp.abs(rows).max(), jnp.inf))

        return over_blocks(x, _at_once(x), add, jnp.float32(0))

    return over_shards(local, lax.pmax, sharding, x)


@functools.partial(jax.jit, static_argnums=0)
def _not_finite(sharding: NamedSharding, x: Array) -> Int[Array, ""]:
    """Returns the number of entries that are NaN or infinite as float32."""

    def local(x: Array) -> Array:
        def add(total: Array, rows: Array, counted: Array) -> Array:
            return total + (~jnp.isfinite(rows) & counted[:, None]).sum()

        return over_blocks(x, _at_once(x), add, jnp.int32(0))

    return over_shards(local, lax.psum, sharding, x)


@functools.partial(jax.jit, static_argnums=0)
def _sums(sharding: NamedSharding, x: Array, factor: Array, center: Array) -> Float[Array, " features"]:
    """Returns the sum of `x * factor - center` over all rows."""

    def local(x: Array, factor: Array, center: Array) -> Array:
        return (_flat(x).astype(jnp.float32) * factor - center).sum(0)

    return over_shards(local, lax.psum, sharding, x, factor, center)


def mean(x: Array, exponent: int) -> Float[np.ndarray, " features"]:
    """Returns the mean of all rows in float64, for rows with a largest magnitude of about `2**exponent`."""
    # Devices sum in float32, whose rounding grows with the mean. A second pass about the rough mean sums small numbers,
    # and so measures what the first one lost.
    count, factor = np.prod(x.shape[:-1]), np.ldexp(np.float32(1), -exponent)
    rough = (fetch(_sums(x.sharding, x, factor, np.zeros(x.shape[-1], np.float32))) / count).astype(np.float32)
    correction = fetch(_sums(x.sharding, x, factor, rough)).astype(np.float64) / count
    return np.ldexp(rough + correction, exponent)


@functools.partial(jax.jit, static_argnums=(0, 1))
def statistics(sharding: NamedSharding, size: int, x: Array, trees: Trees, factor: Array, center: Array) -> Statistics:
    """Returns the `Statistics` of `x * factor - center` over all rows, summed in blocks of `size` rows."""

    def local(x: Array, trees: Trees, factor: Array, center: Array) -> Statistics:
        def add(total: Statistics, rows: Array, counted: Array) -> Statistics:
            return total.add(rows * factor - center, encode(rows, trees), counted)

        return over_blocks(x, size, add, Statistics.zeros(trees.num_codebooks, x.shape[-1]))

    return over_shards(local, lax.psum, sharding, x, trees, factor, center)


def over_blocks(x: Array, size: int, add: Callable[..., T], start: T) -> T:
    """Applies `add(total, block, counted)` to blocks of `size` rows in turn, beginning with `start`.

    All blocks have the same size, as compiled loops need it. So the last one begins early, with rows that the block
    before has had already; `counted` is False for these.
    """
    x = _flat(x)
    size = min(size, len(x))

    def step(i: Array, total: T) -> T:
        first = jnp.minimum(i * size, len(x) - size)
        rows = lax.dynamic_slice_in_dim(x, first, size).astype(jnp.float32)
        return add(total, rows, first + jnp.arange(size) >= i * size)

    return lax.fori_loop(0, -(-len(x) // size), step, start)


def rows_at(x: Array, numbers: Int[np.ndarray, " wanted"]) -> Float[np.ndarray, "wanted features"]:
    """Returns the rows with the given numbers as float32, on every process.

    Rows are sent piece by piece: the device that has a row adds it to a sum to which all others add zeros.
    """
    places = np.stack(np.unravel_index(numbers, x.shape[:-1]), axis=1).astype(np.int32)
    size = min(len(places), _at_once(x))
    rows = np.empty((len(places), x.shape[-1]), np.float32)
    for start in range(0, len(places), size):
        piece = places[start : start + size]
        # The last piece is padded, so that all pieces share one compiled function.
        bits = fetch(_bits_at(x.sharding, x, shapes.pad(piece, size, piece.shape[1])))
        rows[start : start + size] = bits[: len(piece)].view(np.float32)
    return rows


@functools.partial(jax.jit, static_argnums=0)
def _bits_at(sharding: NamedSharding, x: Array, places: Int[Array, "wanted leading"]) -> Int[Array, "wanted features"]:
    """Returns the rows at `places` in the leading dimensions, as the bits of their float32 values.

    Integer sums with zeros keep -0 and denormals, which float sums would not.
    """

    def local(x: Array, places: Array) -> Array:
        sizes = np.array(x.shape[:-1], np.int32)
        position = [lax.axis_index(names) if names else 0 for names in _names(sharding, x.ndim)]
        # Places relative to this device's part; those outside of it are clipped into it, and masked below.
        local_places = places - jnp.stack(position).astype(jnp.int32)[None] * sizes[None]
        inside = ((local_places >= 0) & (local_places < sizes[None])).all(1)
        rows = x[tuple(jnp.clip(local_places, 0, sizes[None] - 1).T)].astype(jnp.float32)
        return jnp.where(inside[:, None], lax.bitcast_convert_type(rows, jnp.int32), 0)

    return over_shards(local, lax.psum, sharding, x, places)


def fetch(replicated: Any) -> Any:
    """Copies a replicated result to the host as NumPy arrays."""
    return jax.tree.map(np.asarray, replicated)


def from_first(value: T, x: Array) -> T:
    """Returns the `value` of the process with the first device of `x`, on all processes that share `x`.

    Processes on equal machines with equal numbers of threads learn the same from the same rows; with this function,
    results agree on others too. `value` must be one that can be pickled.
    """
    if x.is_fully_addressable:
        return value
    mesh = cast("Mesh", cast("NamedSharding", x.sharding).mesh)
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    # Pickles of different processes may differ in size, and a sum needs one shape: so the first one's size goes first.
    (size,) = _from_first(np.array([len(data)], np.int32), mesh)
    return pickle.loads(_from_first(np.resize(data, size), mesh).tobytes())  # noqa: S301  a process of this program


def _from_first(a: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Returns the array `a` of the first device's process: a sum to which all other devices add zeros."""
    one_per_device = NamedSharding(mesh, P(mesh.axis_names))
    device = mesh.devices.flat[0]
    own_devices = one_per_device.addressable_devices
    shards = [jax.device_put((a if d == device else np.zeros_like(a))[None], d) for d in own_devices]
    stacked = jax.make_array_from_single_device_arrays((mesh.size, *a.shape), one_per_device, shards)
    total = jax.jit(lambda stacked: stacked.sum(0, dtype=a.dtype), out_shardings=NamedSharding(mesh, P()))
    return np.asarray(total(stacked))


def _at_once(x: Array) -> int:
    """Returns the number of rows of `x` that are reduced, or sent, at once."""
    return max(1, _PIECE // x.shape[-1])


def _flat(x: Array) -> Float[Array, "rows features"]:
    """Flattens the leading dimensions of a device's part of `x` to rows."""
    return x.reshape(-1, x.shape[-1])
