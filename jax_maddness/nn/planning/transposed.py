"""Finds products of one row with a transposed array of the model, which XLA computes slowly on CPUs.

`nnx.Embed.attend`, the usual way to tie an output layer to an embedding, is `query @ embedding.T`. For one row XLA
reads the transposed array column by column, which takes several times as long as the same `einsum` without a transpose.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import jax

from jax_maddness.nn.models.model import Model

_LEAST_SIZE = 2**16
"""Elements below which a product takes no time to speak of."""
_KEEPS_ARRAY = ("convert_element_type", "copy", "sharding_constraint")
"""Operations whose result is the array that they are given."""


def transposed_products(model: Model, batch: Any) -> tuple[tuple[int, int], ...]:
    """Returns the shapes of the model's large arrays that are transposed before one row is multiplied by them."""
    arrays = model.arrays()
    closed = jax.make_jaxpr(model.outputs)(arrays, batch)
    own: dict[Hashable, str] = dict.fromkeys(closed.jaxpr.constvars, "array")
    own |= dict.fromkeys(closed.jaxpr.invars[: len(jax.tree.leaves(arrays))], "array")
    return tuple(dict.fromkeys(_found(closed.jaxpr, own)))


def _found(jaxpr: Any, own: Mapping[Hashable, str]) -> Iterator[tuple[int, int]]:
    """Yields shapes; `own` tells which variables are arrays of the model, or transposed arrays of it."""
    known = dict(own)

    def kind(var: Any) -> str | None:
        return None if hasattr(var, "val") else known.get(var)  # literals cannot be hashed

    for eqn in jaxpr.eqns:
        kinds, name = [kind(var) for var in eqn.invars], eqn.primitive.name
        if name in _KEEPS_ARRAY and kinds[0]:
            known[eqn.outvars[0]] = kinds[0]
        elif name == "transpose" and kinds[0] == "array" and eqn.invars[0].aval.ndim == 2:
            known[eqn.outvars[0]] = "transposed"
        elif name == "dot_general" and kinds[1] == "transposed" and _is_slow(eqn):
            rows, columns = eqn.invars[1].aval.shape
            yield columns, rows
        for inner in _inner(eqn):
            if len(inner.invars) == len(eqn.invars):
                yield from _found(inner, {v: k for v, k in zip(inner.invars, kinds, strict=True) if k})


def _is_slow(eqn: Any) -> bool:
    """Whether a product of one row contracts its features with the first axis of a large array."""
    (lhs_axes, rhs_axes), _ = eqn.params["dimension_numbers"]
    x, w = (var.aval for var in eqn.invars)
    rows = math.prod(size for axis, size in enumerate(x.shape) if axis not in lhs_axes)
    return rows == 1 and tuple(rhs_axes) == (0,) and w.size >= _LEAST_SIZE


def _inner(eqn: Any) -> Iterator[Any]:
    """Yields the programs inside of an operation, such as those of a jit, a scan or a cond."""
    for param in eqn.params.values():
        for one in param if isinstance(param, list | tuple) else [param]:
            program = getattr(one, "jaxpr", one)
            if hasattr(program, "eqns"):
                yield program
