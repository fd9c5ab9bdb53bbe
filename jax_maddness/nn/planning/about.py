"""Descriptions of what a plan was measured on: batch, versions, machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import jax

from jax_maddness.core.ffi import active_tier


def abstract(a: Any) -> Any:
    """Returns the shape and dtype of an array; other values as they are."""
    return jax.ShapeDtypeStruct(a.shape, a.dtype) if hasattr(a, "shape") and hasattr(a, "dtype") else a


def shapes(batch: Any) -> str:
    """Returns the dtypes and shapes of a batch's arrays in words."""
    arrays = [a for a in jax.tree.leaves(batch) if hasattr(a, "shape") and hasattr(a, "dtype")]
    words = [f"{a.dtype}[{', '.join(map(str, a.shape))}]" for a in arrays[:3]]
    return " ".join(words) + (" ..." if len(arrays) > 3 else "")


def versions() -> str:
    """Returns the versions of what decides times."""
    return ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "jax_maddness"))


def machine() -> str:
    """Returns the kind of machine, by which plans are told apart."""
    return f"{platform.machine()}, {os.cpu_count()} CPUs, {jax.default_backend()}, tier {active_tier()}"
