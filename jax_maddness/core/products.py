"""Products in a jaxpr: while one is traced in `recorded`, each product that an epilogue may follow is one step of it.

Elsewhere a product is what it becomes: a kernel call inside of the transformations of `Stacked`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array

_recording = jax.make_user_context(default_value=None)
"""Part of the key of JAX's caches, so that nothing that was traced before is taken for a recorded product."""

product = Primitive("jax_maddness_product")
"""A product of one op. Its parameter `stacked` is its `Stacked`; its operands are that one's. It is never compiled."""


def recorded() -> contextlib.AbstractContextManager:
    """Returns a context in which products are traced as steps of `product`."""
    return _recording("products")


def is_recorded() -> bool:
    """Returns whether products are recorded now: not on axes of a mesh that types of arrays name."""
    if _recording.value is None:
        return False
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.explicit_axes and not mesh.manual_axes


def _batched(args: Any, dims: Any, *, stacked: Any) -> tuple[Array, int]:
    return jax.vmap(stacked.unrecorded, in_axes=tuple(dims))(*args), 0


def _shape(*args: Any, stacked: Any) -> Any:
    result = jax.eval_shape(stacked.unrecorded, *args)
    return jax.core.ShapedArray(result.shape, result.dtype)


def _refuse(*args: Any, **params: Any) -> Any:
    raise NotImplementedError(
        "A product in a fused function is inside of a call that `fuse` cannot open, or is to be computed while the "
        "function is traced, as in `jax.ensure_compile_time_eval`. Compute it before, or fuse what is in the call."
    )


product.def_abstract_eval(_shape)
mlir.register_lowering(product, _refuse)
batching.primitive_batchers[product] = _batched
