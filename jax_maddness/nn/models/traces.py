"""Traces of functions under `jax.jit` that a model calls: a run with hooks or replacements has traces of its own."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Iterator

import jax

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # in JAX 0.8
    from jax.core import get_opaque_trace_state

_context = jax.make_user_context(default_value=())
"""The keys of all `apart` around a call. They are part of the keys of JAX's caches."""
_numbers = itertools.count()


@contextlib.contextmanager
def apart(key: Hashable = None) -> Iterator[None]:
    """Lets functions under `jax.jit` be traced anew inside of the block, unless they were in one with the same key.

    A model may call such a function, and a user's `call` may be one. Its trace from before has no hooks of this run,
    and no replacements; and one that is made in this run must not serve after it.

    Args:
      key: of the hooks or replacements; None: of this run alone.
    """
    with _context((*_context.value, next(_numbers) if key is None else key)):
        yield


def current_trace() -> Hashable:
    """Returns the innermost trace: it differs inside of a scan, jit or remat, whose values must not leave it."""
    state: Hashable = get_opaque_trace_state(convention="nnx")
    return state
