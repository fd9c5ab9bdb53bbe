"""`Watch`: brings arrays from inside of a compiled run to the host, in an order that depends on the program alone.

The order of JAX's own callbacks depends on the runtime: under vmap, or of calls that do not depend on each other, it
may be any. Here a vmapped call arrives as one array with the axis of the vmap in front. On a single device, callbacks
are ordered; on several, they are sorted by their places in the program and by device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_Delivery = tuple[str, tuple[int, ...], int, Any, tuple[Any, ...]]


class Watch:
    """Receives arrays that a compiled function sends.

    Callbacks only store what they are given. They must not look at the values: where the runtime has one thread, which
    is in the callback, reading an array there would wait for ever.
    """

    def __init__(self) -> None:
        self._ordered = True
        self._numbers = itertools.count()
        self._waiting: list[_Delivery] = []

    def send(self, name: str, *arrays: Any) -> None:
        """Sends arrays to the host each time that the traced code is run; called while a function is traced."""
        number, arrays = next(self._numbers), tuple(map(jnp.asarray, arrays))
        ranks = tuple(array.ndim for array in arrays)

        def receive(device: Any, *received: Any) -> None:
            self._waiting.append((name, ranks, number, device, received))

        # Nothing comes back, so a model may be differentiated through this.
        _sender(receive, self._ordered)(_device_number(), *jax.lax.stop_gradient(arrays))

    def compiled(self, function: Callable[..., None]) -> Callable[..., None]:
        """Compiles a function that sends arrays, and computes nothing else."""
        ordered, unordered = (jax.jit(lambda *args: function(*args)) for _ in range(2))

        def run(*args: Any) -> None:
            if self._ordered:
                try:
                    ordered(*args)
                    return
                except (NotImplementedError, ValueError) as error:
                    # JAX orders no callbacks of several devices, nor in some transformations of loops.
                    if not any(words in str(error).lower() for words in ("ordered effect", "io effect")):
                        raise
                self._ordered = False
            unordered(*args)

        return run

    def received(self) -> dict[str, list[tuple[np.ndarray, ...]]]:
        """Waits for all that was sent, and returns it by name, call by call.

        Each array has one more axis than it was sent with, in front: the members of vmaps that the call was in.
        """
        jax.effects_barrier()
        deliveries, self._waiting = self._waiting, []
        if not self._ordered:  # calls from one place on one device arrive in their order
            deliveries = sorted(deliveries, key=lambda delivery: (delivery[2], int(np.max(delivery[3]))))
        calls: dict[str, list[tuple[np.ndarray, ...]]] = {}
        for name, ranks, _, _, arrays in deliveries:
            calls.setdefault(name, []).append(tuple(map(_members_first, map(np.asarray, arrays), ranks)))
        return calls


def _members_first(array: np.ndarray, rank: int) -> np.ndarray:
    """Makes the axes of all vmaps one axis."""
    lead = array.ndim - rank
    return array.reshape(math.prod(array.shape[:lead]), *array.shape[lead:])


def _sender(receive: Callable[..., None], ordered: bool) -> Callable[..., Any]:
    """Returns a function that hands its arguments to the host; under vmap, all members at once."""

    @jax.custom_batching.custom_vmap
    def send(*arrays: Array) -> tuple[()]:
        jax.debug.callback(receive, *arrays, ordered=ordered)
        return ()

    @send.def_vmap
    def send_all(size: int, batched: list[bool], *arrays: Array) -> tuple[tuple[()], tuple[()]]:
        pairs = zip(arrays, batched, strict=True)
        whole = [a if is_batched else jnp.broadcast_to(a, (size, *a.shape)) for a, is_batched in pairs]
        _sender(receive, ordered)(*whole)
        return (), ()

    return send


def _device_number() -> Array:
    """Returns the number of the device in a `shard_map`, where each device makes a call of its own; else -1."""
    axes = tuple(getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ()))
    return jax.lax.axis_index(axes) if axes else jnp.int32(-1)
