"""Runs one definition on every platform: the transformations around an FFI call, outermost first.

    custom_vmap > custom_partitioning > platform_dependent(cpu=FFI call, default=definition)

- custom_vmap: a batch of rows is folded into the rows and a batch of ops into the ops; tables are never expanded.
- custom_partitioning: rows and outputs may be sharded, everything else is replicated. No collective is needed, except
  where a result sums over rows: then the sums of all shards are added.
- platform_dependent: the C++ kernels run on CPU, the pure JAX definition on TPU and GPU and in exports for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jax_maddness.core import ffi, products
from jax_maddness.core.epilogue import Epilogue

_SHARDS_FROM = (0, 10)
"""The oldest version of JAX whose shard_map can be used on every mesh with Explicit axes."""


class Target(NamedTuple):
    """A kernel, with what follows its product in the same call (`Epilogue`)."""

    name: str
    activation: str | None = None
    residual: int | None = None
    """Place of the argument that is the residual. The kernel takes it last; None, if there is none."""

    def call(self, result: Any, *args: Array) -> Any:
        """Calls the kernel; `result` is as in `ffi.call`."""
        if self.residual is not None:
            args = (*args[: self.residual], *args[self.residual + 1 :], args[self.residual])
        attributes = {} if self.activation is None else {"activation": self.activation}
        return ffi.call(self.name, result, *args, **attributes)


def on_platform(definition: Callable[..., Any], target: str | Target, *args: Array) -> Any:
    """Computes `definition(*args)`, an array or a tuple: by the kernel `target` on CPU, by itself elsewhere."""
    definition = _jitted(definition)
    return lax.platform_dependent(*args, cpu=functools.partial(_ffi_call, definition, target), default=definition)


@functools.cache
def _jitted(definition: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the definition as a jitted function, which is traced once for all calls with the same shapes.

    Without it, each call would trace the definition twice: for the shapes of its results, and for other platforms.
    """
    return jax.jit(definition)


def _ffi_call(definition: Callable[..., Any], target: str | Target, *args: Array) -> Any:
    mesh = jax.sharding.get_abstract_mesh()

    def in_mesh(result: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if mesh.manual_axes and result.sharding is None:
            # eval_shape knows the manual axes over which the result varies, but does not record their mesh.
            return result.update(sharding=NamedSharding(mesh, PartitionSpec()))
        return result

    target = Target(target) if isinstance(target, str) else target
    return target.call(jax.tree.map(in_mesh, jax.eval_shape(definition, *args)), *args)


class Stacked:
    """A definition in pure JAX, together with the FFI target that computes the same on CPU.

    The first arguments of the definition have rows, `[ops, ..., last]`; the others have the shapes that `rule` names.

    Args:
      definition: the function in pure JAX, for a batch of ops.
      target: the name of the FFI target.
      rule: an einsum-like string of the dimensions of all arguments and of the result, with `{rows}` for the row
        dimensions. The dimensions of the result may be sharded.
      sums_rows: whether the result sums over rows. Then the other arguments have rows, too, and a batch of rows is
        treated as a batch of ops.
      num_rows: how many of the first arguments have rows.
      row_axis: the place of the dimensions of rows in the arguments that have rows: 2 in `[ops, features, ...]`.
      result_row_axis: the same in the result.
      before_rounding: the definition of a product with its result in float32, which an epilogue may follow; None where
        none can.
    """

    def __init__(
        self,
        definition: Callable[..., Array],
        target: str | Target,
        rule: str,
        sums_rows: bool = False,
        num_rows: int = 1,
        row_axis: int = 1,
        result_row_axis: int = 1,
        before_rounding: Callable[..., Array] | None = None,
    ):
        self._definition = definition
        self._target = target
        self._rule = rule
        self._sums_rows = sums_rows
        self._num_rows = num_rows
        self._row_axis = row_axis
        self._result_row_axis = result_row_axis
        self._before_rounding = before_rounding
        self._vmapped = custom_vmap(self._dispatch)
        self._vmapped.def_vmap(self._batch)
        # Outside of any `jit`, a call is compiled as one function; inside of one, it becomes a part of the caller.
        self._one_op = jax.jit(lambda *args: self._vmapped(*(a[None] for a in args))[0], inline=True)

    @functools.cache  # noqa: B019 -- instances live as long as the module
    def followed_by(self, activation: str | None, has_residual: bool) -> Stacked:
        """Returns the same for a product that an epilogue follows, in one call of the kernel.

        Args:
          activation: the name of an activation, or None.
          has_residual: whether the first argument is a residual, of the shape and dtype of the result.
        """
        if self._before_rounding is None or not isinstance(self._target, str):
            raise TypeError(f"{self._target} is no product that an epilogue could follow.")
        definition = functools.partial(_followed, self._definition, self._before_rounding, activation, has_residual)
        result = self._rule.split(" -> ")[1]
        return Stacked(
            definition,
            Target(self._target, activation, 0 if has_residual else None),
            f"{result}, {self._rule}" if has_residual else self._rule,
            num_rows=self._num_rows + has_residual,
            row_axis=self._row_axis,
            result_row_axis=self._result_row_axis,
        )

    def __call__(self, *args: Array) -> Array:
        """Computes the result for one op: the arguments and the result have no leading dimension `ops`."""
        if self._before_rounding is not None and products.is_recorded():
            return products.product.bind(*args, stacked=self)
        return self._one_op(*args)

    def unrecorded(self, *args: Array) -> Array:
        """Computes the same, even where products are recorded."""
        return self._one_op(*args)

    def _batch(self, axis_size: int, in_batched: list[bool], *args: Array) -> tuple[Array, bool]:
        def batched(some: slice) -> list[Array]:
            pairs = zip(args[some], in_batched[some], strict=True)
            return [a if is_batched else jnp.broadcast_to(a, (axis_size, *a.shape)) for a, is_batched in pairs]

        if not any(in_batched[self._num_rows :]) and not self._sums_rows:
            rows = [jnp.moveaxis(a, 0, self._row_axis) for a in batched(slice(self._num_rows))]
            return jnp.moveaxis(self._vmapped(*rows, *args[self._num_rows :]), self._result_row_axis, 0), True
        num_ops = args[0].shape[int(in_batched[0])]
        result = self._vmapped(*(a.reshape(axis_size * num_ops, *a.shape[2:]) for a in batched(slice(None))))
        return result.reshape(axis_size, num_ops, *result.shape[1:]), True

    def _dispatch(self, *args: Array) -> Array:
        if not ffi.enabled():
            return self._definition(*args)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.explicit_axes and jax.__version_info__ >= _SHARDS_FROM:
            return self._on_shards(*args)
        if mesh.manual_axes:
            return self._on_platform(*args)  # inside shard_map the arguments are shards already
        return self._partitioned(args[0].ndim - 2)(*args)

    @functools.cache  # noqa: B019 -- instances live as long as the module
    def _partitioned(self, num_row_dims: int) -> Callable[..., Array]:
        rule = self._rule.format(rows=" ".join(f"r{i}" for i in range(num_row_dims)))
        call = custom_partitioning(self._on_platform)
        call.def_partition(partition=functools.partial(self._partition, rule), sharding_rule=rule)
        return call

    def _on_platform(self, *args: Array) -> Array:
        return on_platform(self._definition, self._target, *args)

    def _on_shards(self, *args: Array) -> Array:
        """Runs on the shards of a mesh with Explicit axes, over which the shardings are known while tracing.

        From JAX 0.11 on, custom_partitioning does not work on such a mesh; before 0.10, shard_map does not work there
        under a vmap over a sharded dimension.
        """
        rule = self._rule.format(rows=" ".join(f"r{i}" for i in range(args[0].ndim - 2)))
        operands, result = rule.split("->")
        factors = result.split()
        axes: dict[str, Any] = {}
        for operand, arg in zip(operands.split(","), args, strict=True):
            for factor, axis in zip(operand.split(), jax.typeof(arg).sharding.spec, strict=False):
                free = axis is not None and not set(jax.tree.leaves(axis)) & set(jax.tree.leaves(tuple(axes.values())))
                if free and factor not in axes and (factor in factors or (self._sums_rows and factor.startswith("r"))):
                    axes[factor] = axis
        names = jax.tree.leaves(tuple(axis for factor, axis in axes.items() if factor not in factors))
        specs = tuple(PartitionSpec(*(axes.get(f) for f in operand.split())) for operand in operands.split(","))
        out = PartitionSpec(*(axes.get(f) for f in factors))
        on_shard = (lambda *args: lax.psum(self._on_platform(*args), names)) if names else self._on_platform
        sharded = set(jax.tree.leaves(tuple(axes.values())))  # an axis that vmap maps over is none of shard_map's
        shards = jax.shard_map(on_shard, in_specs=specs, out_specs=out, axis_names=sharded)
        return shards(*(jax.sharding.reshard(arg, spec) for arg, spec in zip(args, specs, strict=True)))

    def _partition(
        self, rule: str, mesh: jax.sharding.Mesh, arg_shapes: Any, result_shape: Any
    ) -> tuple[jax.sharding.Mesh, Callable[..., Array], NamedSharding, tuple[NamedSharding, ...]]:
        """Keeps the sharding of the dimensions of the result and replicates all others, which needs no collective."""
        operands, result = rule.split("->")
        factors = result.split()
        spec = tuple(getattr(result_shape.sharding, "spec", ()))  # a single device has none, even in a mesh context
        axes = dict(zip(factors, spec + (None,) * (len(factors) - len(spec)), strict=True))
        summed = self._summed(operands, axes, arg_shapes[0])
        axes |= summed
        arg_specs = [[axes.get(f) for f in operand.split()] for operand in operands.split(",")]
        arg_shardings = tuple(NamedSharding(mesh, PartitionSpec(*s)) for s in arg_specs)
        result_sharding = NamedSharding(mesh, PartitionSpec(*(axes[f] for f in factors)))
        names = jax.tree.leaves(tuple(summed.values()))
        on_shard = (lambda *args: lax.psum(self._on_platform(*args), names)) if names else self._on_platform
        return mesh, on_shard, result_sharding, arg_shardings

    def _summed(self, operands: str, axes: Mapping[str, Any], rows: Any) -> dict[str, Any]:
        """Returns the mesh axes over which summed rows stay sharded, by dimension; none unless the result sums rows."""
        if not self._sums_rows:
            return {}
        taken = set(jax.tree.leaves(tuple(axes.values())))
        spec = tuple(getattr(rows.sharding, "spec", ()))
        factors = zip(operands.split(",")[0].split(), spec, strict=False)
        return {f: axis for f, axis in factors if f not in axes and not taken & set(jax.tree.leaves(axis))}


def in_float32(definition: Callable[..., Array]) -> Callable[..., Array]:
    """Returns the definition of a product for rows of any dtype whose result has that dtype: with it in float32."""
    return lambda x, *rest: definition(x.astype(jnp.float32), *rest)


def _followed(
    definition: Callable[..., Array],
    before_rounding: Callable[..., Array],
    activation: str | None,
    has_residual: bool,
    *args: Array,
) -> Array:
    """Computes a product and its epilogue in float32, rounded once."""
    residual, args = (args[0], args[1:]) if has_residual else (None, args)
    dtype = jax.eval_shape(definition, *args).dtype
    return Epilogue(activation, residual).of(before_rounding(*args)).astype(dtype)
