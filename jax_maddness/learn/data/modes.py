"""The JAX settings under which learning runs, independent of those of the caller."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np


@contextlib.contextmanager
def modes() -> Iterator[None]:
    """Sets 32-bit types, standard promotion of dtypes and ranks, and no mesh, until the context is left.

    NaN does not stop the program: a system that float32 cannot factorize is solved again with a larger penalty.

    Learning adds counts to floats and vectors to matrices, which a caller's strict promotion would refuse. It runs on
    one device: only computations on sharded rows use a mesh, which they take from the rows.
    """
    mesh_is_set = not jax.sharding.get_abstract_mesh().empty
    no_mesh = jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())) if mesh_is_set else contextlib.nullcontext()
    with (
        no_mesh,
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.debug_nans(False),
        jax.debug_infs(False),
    ):
        yield
