"""The exemption that `jax.export` needs for modules that call the kernels."""

from __future__ import annotations

from jax.export import DisabledSafetyCheck

from jax_maddness.core import ffi


def disabled_export_checks() -> list[DisabledSafetyCheck]:
    """Returns the safety checks that must be disabled to export a function that calls the kernels of this package.

    A module that is exported for CPU calls the kernels by name, and JAX does not know how stable the calls of a package
    are. This package keeps the names and the arguments of its kernels within a minor version. A process that runs such
    a module needs to import `jax_maddness`, which registers the kernels, and nothing else of it. Modules for TPU and
    GPU contain no such calls and need no exemption.

    Returns:
      One check for each kernel, whichever the function calls; none if the extension with the kernels is missing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_maddness import SplitTrees, encode
      >>> trees = SplitTrees(jnp.zeros((1, 4), int), jnp.zeros((1, 15)), 1)
      >>> checks = disabled_export_checks()
      >>> exported = jax.export.export(jax.jit(encode), disabled_checks=checks)(jnp.array([[1.0]]), trees)
      >>> exported.call(jnp.array([[1.0]]), trees).tolist()
      [[15]]
    """
    return [DisabledSafetyCheck.custom_call(name) for name in ffi.targets()]
