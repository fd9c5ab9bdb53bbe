"""For your own tests: force a backend or a tier, and check that a function of yours lowers for other platforms.

For example:

    from jax_maddness import testing

    with testing.force_backend("jax"):
        expected = model(x)                      # what TPU and GPU run
    for tier in jax_maddness.supported_tiers():
        with testing.force_tier(tier):
            np.testing.assert_allclose(model(x), expected, rtol=1e-5)
    testing.assert_portable(model, x, platforms=("tpu", "cuda"))

Codes and sums are identical on all of them; outputs agree up to the last rounding of the rescaling.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import export

from jax_maddness.core import ffi


def force_backend(backend: str) -> contextlib.AbstractContextManager:
    """Runs `jax` (the pure JAX definition), `ffi` (the kernels, or an error) or `auto` inside the context.

    The choice is made while tracing, and is part of the key of `jax.jit`'s cache: a function that was compiled
    outside is traced again, and both versions stay. It holds for the calling thread.

    Raises:
      ValueError: `backend` is none of the three.
    """
    return ffi.force_backend(backend)


@contextlib.contextmanager
def force_tier(tier: str) -> Iterator[None]:
    """Runs every kernel on `tier` inside the context, in functions compiled earlier too; for the whole process.

    Raises:
      ValueError: the tier is unknown, or this CPU does not support it.
      RuntimeError: the kernels are missing.
    """
    before = ffi.forced_tier()
    ffi.set_tier(tier)
    try:
        yield
    finally:
        ffi.set_tier(before)


def custom_calls(lowered_text: str) -> list[str]:
    """Names of the targets of all custom calls in a StableHLO text, in order, repeated as they occur."""
    return re.findall(r"stablehlo\.custom_call @([\w.$-]+)", lowered_text)


def assert_portable(
    function: Callable[..., Any], *args: Any, platforms: Sequence[str] = ("tpu", "cuda"), **kwargs: Any
) -> None:
    """Checks that `jit(function)(*args, **kwargs)` lowers for `platforms` without any custom call of this package.

    Works on a machine that has none of them: the function is exported (`jax.export`), not run. Custom calls of
    others (a sharding annotation, a linear-algebra routine) are their business.

    Args:
      function: traceable, or jitted already.
      args, kwargs: arrays, or `jax.ShapeDtypeStruct` in their place.
      platforms: any of `tpu`, `cuda`, `rocm`, `cpu`. On `cpu` the kernels are custom calls, and this raises.

    Raises:
      ValueError: `platforms` is empty or a string.
      AssertionError: names the platform and the custom calls.
    """
    if isinstance(platforms, str) or not platforms:
        raise ValueError(f"`platforms` is {platforms!r}; expected a sequence of names, such as ('tpu', 'cuda').")
    jitted = jax.jit(lambda *args, **kwargs: function(*args, **kwargs))
    for platform in platforms:
        exported = export.export(
            jitted,
            platforms=[platform],
            disabled_checks=[export.DisabledSafetyCheck.custom_call(name) for name in ffi.targets()],
        )(*args, **kwargs)
        ours = [name for name in custom_calls(exported.mlir_module()) if name.startswith(ffi.TARGET_PREFIX)]
        if ours:
            raise AssertionError(f"lowered for {platform}, the function calls {', '.join(sorted(set(ours)))}.")
