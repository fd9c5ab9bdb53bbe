"""Helpers for tests of code that uses this package: force a backend or a tier, and assert portability.

For example:

    from jax_maddness import testing

    with testing.force_backend("jax"):
        expected = model(x)                      # the code that TPU and GPU run
    for tier in jax_maddness.supported_tiers():
        with testing.force_tier(tier):
            np.testing.assert_allclose(model(x), expected, rtol=1e-5)
    testing.assert_portable(model, x, platforms=("tpu", "cuda"))

Codes and sums are identical on all backends and tiers; outputs agree up to the last rounding of the rescaling.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from jax_maddness.core import ffi

_PARTITIONED = "CustomSPMDPartitioning"
"""Custom call that stands for a function which XLA calls back while it partitions a module."""


def force_backend(backend: str) -> contextlib.AbstractContextManager:
    """Returns a context that selects the backend of all operations of this package.

    The backend is chosen while a function is traced, and it is part of the key of the cache of `jax.jit`: a function
    that was compiled outside of the context is traced again, and both versions are kept. The choice holds for the
    calling thread.

    Args:
      backend: `jax` for the definitions in pure JAX, `ffi` for the kernels, with an error if they cannot be used, or
        `auto` for the kernels if they can be used.

    Returns:
      The context manager.

    Raises:
      ValueError: `backend` is none of the three.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax_maddness import SplitTrees, encode
      >>> trees = SplitTrees(jnp.zeros((1, 4), int), jnp.zeros((1, 15)))
      >>> with force_backend("jax"):
      ...     encode(jnp.array([[1.0]]), trees).tolist()
      [[15]]
    """
    return ffi.force_backend(backend)


@contextlib.contextmanager
def force_tier(tier: str) -> Iterator[None]:
    """Returns a context in which every kernel of the process runs on `tier`, in functions compiled earlier too.

    Args:
      tier: the name of a tier, one of `jax_maddness.supported_tiers()`.

    Raises:
      ValueError: the tier is unknown, or this CPU does not support it.
      RuntimeError: the kernels are missing.

    Example:
      >>> for tier in ffi.supported_tiers():
      ...     with force_tier(tier):
      ...         assert ffi.active_tier() == tier
    """
    before = ffi.forced_tier()
    ffi.set_tier(tier)
    try:
        yield
    finally:
        ffi.set_tier(before)


def custom_calls(lowered_text: str) -> list[str]:
    """Returns the names of the targets of all custom calls in a StableHLO text, in order, with repetitions.

    Args:
      lowered_text: the text of a module, such as `jax.jit(f).lower(x).as_text()`.

    Example:
      >>> custom_calls("%0 = stablehlo.custom_call @jax_maddness_encode(%arg0)")
      ['jax_maddness_encode']
    """
    return re.findall(r"stablehlo\.custom_call @([\w.$-]+)", lowered_text)


def assert_portable(
    function: Callable[..., Any], *args: Any, platforms: Sequence[str] = ("tpu", "cuda"), **kwargs: Any
) -> None:
    """Asserts that `jit(function)(*args, **kwargs)` lowers for `platforms` without any custom call of this package.

    The machine needs none of the platforms: the function is lowered, not run. Other custom calls, such as a sharding
    annotation or a linear-algebra routine, are ignored.

    Rows that are sharded over a mesh whose axes are Auto are partitioned by a function of the process that lowers, so
    that the module cannot be serialized, whatever the platform. They fail the assertion, too; on Explicit axes and
    inside of `jax.shard_map` they do not.

    Args:
      function: a function that JAX can trace, jitted or not.
      args: its positional arguments: pytrees of arrays, or of `jax.ShapeDtypeStruct` in their place.
      platforms: any of `tpu`, `cuda`, `rocm`, `cpu`. On `cpu` the kernels are custom calls, so that the assertion fails
        if they are used.
      kwargs: its keyword arguments, likewise.

    Raises:
      ValueError: `platforms` is empty or a string.
      AssertionError: on one of the platforms, the function calls a kernel or depends on this process; the message names
        both.

    Example:
      >>> import jax.numpy as jnp
      >>> assert_portable(jnp.sin, jnp.ones(3), platforms=("tpu",))
    """
    if isinstance(platforms, str) or not platforms:
        raise ValueError(f"`platforms` is {platforms!r}; expected a sequence of names, such as ('tpu', 'cuda').")
    traced = jax.jit(lambda *args, **kwargs: function(*args, **kwargs)).trace(*args, **kwargs)
    for platform in platforms:
        called = set(custom_calls(traced.lower(lowering_platforms=(platform,)).as_text()))
        if ours := sorted(name for name in called if name.startswith(ffi.TARGET_PREFIX)):
            raise AssertionError(f"lowered for {platform}, the function calls {', '.join(ours)}.")
        if _PARTITIONED in called:
            raise AssertionError(
                f"lowered for {platform}, the function calls {_PARTITIONED}: rows are sharded over Auto axes of a "
                "mesh, and partitioned by a function that no other process has. Use a mesh with Explicit axes, or "
                "`jax.shard_map`."
            )
