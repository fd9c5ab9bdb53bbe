"""Access to the C++ kernels: loading, comparing versions, registering, calling, tiers.

This is the only file that uses `jax.ffi`.

The kernels are registered when the package is imported: a module or executable that another process exported calls
them by name, and nothing of it is traced here. That takes milliseconds and starts no backend. Where they cannot be
used, importing says nothing; the first call warns.

Environment:
  JAX_MADDNESS_BACKEND: `auto` (default: the kernels on CPU if they can be loaded), `ffi` (the same, but an error
    if they cannot), or `jax` (pure JAX everywhere; the extension is not even loaded).
  JAX_MADDNESS_TIER: a tier to use in place of the best one that this CPU supports (see `supported_tiers`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pathlib
import re
import warnings
from types import ModuleType
from typing import Any

import jax
from jaxtyping import Array

BACKENDS = ("auto", "ffi", "jax")
"""The values of JAX_MADDNESS_BACKEND."""
TARGET_PREFIX = "jax_maddness_"
"""Prefix of the names of all custom calls of this package, as StableHLO shows them."""

_context = jax.make_user_context(default_value=None)
"""The backend that `force_backend` chose. It is part of the key of JAX's caches, so that another backend retraces."""

_forced_tier: str | None = None


class FFIUnavailableError(RuntimeError):
    """Raised when the kernels were requested explicitly and cannot be used; the message gives the reason."""


def enabled() -> bool:
    """Returns whether calls that are traced now use the kernels on CPU.

    Raises:
      FFIUnavailableError: the backend is `ffi`, and the kernels cannot be used.
    """
    choice = backend()
    if choice == "jax":
        return False
    module, reason = _load()
    if module is None and choice == "ffi":
        raise FFIUnavailableError(f"JAX_MADDNESS_BACKEND=ffi, but the kernels cannot be used: {reason}")
    if module is None:
        _warn_once(reason)
    return module is not None


def backend() -> str:
    """Returns the backend that the user chose: `auto`, `ffi` or `jax`.

    Raises:
      ValueError: JAX_MADDNESS_BACKEND is none of these.
    """
    choice = _context.value or os.environ.get("JAX_MADDNESS_BACKEND") or "auto"
    if choice not in BACKENDS:
        raise ValueError(f"JAX_MADDNESS_BACKEND is {choice!r}; expected one of {', '.join(BACKENDS)}.")
    return choice


def force_backend(choice: str) -> contextlib.AbstractContextManager:
    """Returns a context in which the calling thread traces for `choice`, whatever the environment says.

    Raises:
      ValueError: `choice` is not one of `BACKENDS`.
    """
    if choice not in BACKENDS:
        raise ValueError(f"`backend` is {choice!r}; expected one of {', '.join(BACKENDS)}.")
    return _context(choice)


def call(target: str, result: Any, *args: Array, **attributes: str) -> Any:
    """Calls the kernel `target` on the CPU.

    Args:
      target: name of the custom call.
      result: the `ShapeDtypeStruct` of its result, or a tuple of several.
      args: its operands.
      attributes: its attributes.
    """
    return jax.ffi.ffi_call(target, result)(*args, **attributes)


def targets() -> tuple[str, ...]:
    """Returns the names of all custom calls of this build; none if the extension is missing."""
    module, _ = _import()
    return tuple(module.registrations()) if module else ()


def why_unavailable() -> str | None:
    """Returns the reason why the kernels cannot be used in this process, or None if they can."""
    return _load()[1]


def tiers() -> tuple[str, ...]:
    """Returns the tiers that the extension was built with, best first; none if it is missing."""
    module, _ = _load()
    return tuple(module.tiers()) if module else ()


def supported_tiers() -> tuple[str, ...]:
    """Returns the tiers that this CPU can run, best first.

    A tier is one instruction-set variant of all kernels, named after its instruction set. The first of those returned
    runs, unless the environment variable JAX_MADDNESS_TIER or `testing.force_tier` names another one.

    Returns:
      Names of tiers, such as `("avx2", "scalar")`; an empty tuple if the extension with the kernels is missing.

    Example:
      >>> supported_tiers()  # doctest: +SKIP
      ('avx512vnni', 'avx512bw', 'avx2', 'scalar')
    """
    module, _ = _load()
    return tuple(module.supported_tiers()) if module else ()


def active_tier() -> str | None:
    """Returns the tier that the kernels of this process run on.

    Returns:
      The name of the tier, one of `supported_tiers`; None if the extension with the kernels is missing.

    Raises:
      ValueError: JAX_MADDNESS_TIER names a tier that is unknown or that this CPU does not support.

    Example:
      >>> active_tier()  # doctest: +SKIP
      'avx512vnni'
    """
    module, _ = _load()
    return module.active_tier() if module else None


def set_tier(name: str | None) -> None:
    """Makes every later call run on the tier `name`, compiled functions included; None restores the default.

    Raises:
      FFIUnavailableError: the extension is missing.
      ValueError: the tier is unknown or not supported by this CPU; the message names the choices.
    """
    module, reason = _load()
    if module is None:
        raise FFIUnavailableError(f"There are no tiers to choose from: {reason}")
    global _forced_tier
    module.set_tier(name)
    _forced_tier = name


def forced_tier() -> str | None:
    """Returns the argument of the last call of `set_tier`; None if there was none."""
    return _forced_tier


def api_versions() -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Returns the XLA FFI API versions (major, minor) of the extension and of the running jaxlib; None if unknown."""
    module, _ = _import()
    return (tuple(module.api_version()) if module else None), _runtime_api_version()


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    """Returns the extension with its handlers registered and None, or None and the reason."""
    module, reason = _import()
    if module is None:
        return None, reason
    built, running = tuple(module.api_version()), _runtime_api_version()
    if running is None or built[0] != running[0] or built > running:
        # Registering a handler that is newer than the runtime would take the whole CPU backend down.
        return None, (
            f"it was built for XLA FFI {built}, the running jaxlib {jax.lib.__version__} has {running} "
            "(upgrade jaxlib, or rebuild jax_maddness against it)"
        )
    for name, handler in module.registrations().items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return module, None


@functools.cache
def _import() -> tuple[ModuleType | None, str | None]:
    """Returns the extension, not registered yet, and None, or None and the reason."""
    try:
        return importlib.import_module("jax_maddness._ffi"), None
    except ModuleNotFoundError:
        return None, "the extension `jax_maddness._ffi` is not installed (build it with `pip install .`)"
    except ImportError as error:
        return None, f"the extension `jax_maddness._ffi` could not be loaded: {error}"


@functools.cache
def _runtime_api_version() -> tuple[int, int] | None:
    """Reads the XLA FFI API version from the header that the running jaxlib ships; None if there is no such header."""
    header = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    if not header.is_file():
        return None
    numbers = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header.read_text()))
    return (int(numbers["MAJOR"]), int(numbers["MINOR"])) if len(numbers) == 2 else None


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"jax_maddness runs in pure JAX, much slower on CPU: {reason}.", stacklevel=2)


if os.environ.get("JAX_MADDNESS_BACKEND") != "jax":
    _load()
