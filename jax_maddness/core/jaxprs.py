"""Calls in a jaxpr that a reader may open: what they call is computed in their place."""

from __future__ import annotations

from typing import Any

from jax.extend import core

# JAX has renamed some of them from version to version.
_CALLS = "jit pjit closed_call core_call checkpoint remat2 custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr"
_OPENED = frozenset(_CALLS.split())


def opened(eqn: Any) -> core.ClosedJaxpr | None:
    """Returns the jaxpr that an equation calls, or None if it is no call that may be opened."""
    if eqn.primitive.name not in _OPENED:
        return None
    return next((closed for param in eqn.params.values() if (closed := as_closed(param)) is not None), None)


def as_closed(param: Any) -> core.ClosedJaxpr | None:
    """Returns the jaxpr that a parameter of an equation is, or None if it is none or lacks its constants."""
    if isinstance(param, core.Jaxpr) and not param.constvars:
        return core.ClosedJaxpr(param, ())
    return param if isinstance(param, core.ClosedJaxpr) else None
