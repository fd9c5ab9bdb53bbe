"""What learning needs of JAX, whatever the caller has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np


@contextlib.contextmanager
def modes() -> Iterator[None]:
    """Learning mixes counts with floats, and vectors with matrices, all of 32 bits, whatever a caller's modes say.

    It runs on one device, whatever mesh is set: only what is computed from sharded rows names theirs.
    """
    somewhere = not jax.sharding.get_abstract_mesh().empty
    nowhere = jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())) if somewhere else contextlib.nullcontext()
    with nowhere, jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
