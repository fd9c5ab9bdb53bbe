"""The C++ kernels: load, version check, register, call, tiers. The only file that knows `jax.ffi`.

Environment:
  JAX_MADDNESS_BACKEND: `auto` (default: the kernels on CPU where they can be loaded), `ffi` (the same, but an error
    where they cannot), or `jax` (pure JAX everywhere).
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
TARGET_PREFIX = "jax_maddness_"
"""The names of all custom calls of this package, as StableHLO shows them, begin with this."""

_context = jax.make_user_context(default_value=None)
"""What `force_backend` chose. Part of the key of JAX's caches: another backend means another trace."""

_forced_tier: str | None = None


class FFIUnavailableError(RuntimeError):
    """The kernels were asked for by name and cannot be used; the message says why."""


def enabled() -> bool:
    """Whether calls traced now use the kernels on CPU."""
    choice = backend()
    if choice == "jax":
        return False
    module, why = _load()
    if module is None and choice == "ffi":
        raise FFIUnavailableError(f"JAX_MADDNESS_BACKEND=ffi, but the kernels cannot be used: {why}")
    if module is None:
        _warn_once(why)
    return module is not None


def backend() -> str:
    """The backend chosen by the user: `auto`, `ffi` or `jax`."""
    choice = _context.value or os.environ.get("JAX_MADDNESS_BACKEND") or "auto"
    if choice not in BACKENDS:
        raise ValueError(f"JAX_MADDNESS_BACKEND is {choice!r}; expected one of {', '.join(BACKENDS)}.")
    return choice


def force_backend(choice: str) -> contextlib.AbstractContextManager:
    """A context in which calls are traced for `choice` instead of what the environment says; per thread."""
    if choice not in BACKENDS:
        raise ValueError(f"`backend` is {choice!r}; expected one of {', '.join(BACKENDS)}.")
    return _context(choice)


def call(target: str, result: Any, *args: Array) -> Any:
    """Calls the kernel `target` on the CPU; `result` is the `ShapeDtypeStruct` of its result, or a tuple of several."""
    return jax.ffi.ffi_call(target, result)(*args)


def targets() -> tuple[str, ...]:
    """The names of all custom calls of this build; none where the extension is missing."""
    module, _ = _import()
    return tuple(module.registrations()) if module else ()


def why_unavailable() -> str | None:
    """Why the kernels cannot be used in this process, or None where they can."""
    return _load()[1]


def tiers() -> tuple[str, ...]:
    """The tiers that the extension was built with, best first; none where it is missing."""
    module, _ = _load()
    return tuple(module.tiers()) if module else ()


def supported_tiers() -> tuple[str, ...]:
    """The tiers that this CPU can run, best first; none where the extension is missing."""
    module, _ = _load()
    return tuple(module.supported_tiers()) if module else ()


def active_tier() -> str | None:
    """The tier that runs now; None where the extension is missing.

    Raises:
      ValueError: JAX_MADDNESS_TIER names a tier that is unknown or that this CPU does not support.
    """
    module, _ = _load()
    return module.active_tier() if module else None


def set_tier(name: str | None) -> None:
    """Makes every later call, compiled ones too, run on the tier `name`; None: back to the default.

    Raises:
      FFIUnavailableError: the extension is missing.
      ValueError: the tier is unknown or not supported by this CPU; the message names the choices.
    """
    module, why = _load()
    if module is None:
        raise FFIUnavailableError(f"There are no tiers to choose from: {why}")
    global _forced_tier
    module.set_tier(name)
    _forced_tier = name


def forced_tier() -> str | None:
    """What `set_tier` was last called with."""
    return _forced_tier


def api_versions() -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """XLA FFI API versions (major, minor): that of the extension, and that of the running jaxlib."""
    module, _ = _import()
    return (tuple(module.api_version()) if module else None), _runtime_api_version()


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The extension with its handlers registered; or None and the reason."""
    module, why = _import()
    if module is None:
        return None, why
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
    """The extension, not registered yet; or None and the reason."""
    try:
        return importlib.import_module("jax_maddness._ffi"), None
    except ModuleNotFoundError:
        return None, "the extension `jax_maddness._ffi` is not installed (build it with `pip install .`)"
    except ImportError as error:
        return None, f"the extension `jax_maddness._ffi` could not be loaded: {error}"


@functools.cache
def _runtime_api_version() -> tuple[int, int] | None:
    """Read from the header that the running jaxlib ships."""
    header = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    if not header.is_file():
        return None
    found = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header.read_text()))
    return (int(found["MAJOR"]), int(found["MINOR"])) if len(found) == 2 else None


@functools.cache
def _warn_once(why: str) -> None:
    warnings.warn(f"jax_maddness runs in pure JAX, much slower on CPU: {why}.", stacklevel=2)
