"""A traced function as steps, with rules for the axes along which each step keeps features apart. Pure JAX, no Flax.

Nested calls (jit, remat, custom derivatives) are opened; scans and branches are not. Steps that no result needs are
left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jax_maddness.core.jaxprs import opened

MIXED = -1
"""Takes the place of an axis where elements are not kept apart."""
# Elementwise primitives. One that is missing here counts as mixing features, so that layers before it stay.
_ONE_BY_ONE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos cosh
    digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max
    min mul name ne neg nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square sub tan
    tanh xor
"""
_ELEMENTWISE = frozenset(_ONE_BY_ONE.split())
_REDUCE = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or")
_WINDOWS = ("reduce_window_sum", "reduce_window_max", "reduce_window_min")


@dataclasses.dataclass(eq=False)
class Value:
    """An array of the trace.

    Attributes:
      shape: its shape.
      place: the name of the argument, if it is a named one.
    """

    shape: tuple[int, ...]
    place: str | None = None


@dataclasses.dataclass(eq=False)
class Step:
    """One application of a primitive.

    Attributes:
      name: of the primitive.
      params: its static parameters.
      inputs, outputs: the arrays.
      needed: it has effects, so that it cannot be left out.
    """

    name: str
    params: Mapping[str, Any]
    inputs: list[Value]
    outputs: list[Value]
    needed: bool

    @property
    def known(self) -> bool:
        """Whether `axes_into` and `axis_out` know this primitive."""
        return self.name in _ELEMENTWISE or self.name in _RULES

    def axes_into(self, axis: int) -> list[int | None]:
        """Returns, for each input, the axis whose elements correspond one to one to the output's along `axis`.

        It is None where the input is the same for all elements, and `MIXED` where neither is true.
        """
        if self.name in _ELEMENTWISE:
            size = self.outputs[0].shape[axis]
            return [axis if given.shape and given.shape[axis] == size else None for given in self.inputs]
        return _RULES[self.name](self, axis)

    def axis_out(self, value: Value, axis: int) -> int:
        """Returns the axis of the output that `axis` of an input becomes, or `MIXED`."""
        for out in range(len(self.outputs[0].shape)):
            axes = {at for given, at in zip(self.inputs, self.axes_into(out), strict=True) if given is value}
            if axes == {axis}:
                return out
        return MIXED


@dataclasses.dataclass
class Trace:
    """The steps that the results of a function need.

    Attributes:
      steps: in the order of the program: each after the steps that make its inputs.
      results: the values that the function returns.
      arguments: the named arguments.
      made_by: the step that makes a value.
      used_by: the steps that use a value.
    """

    steps: list[Step]
    results: list[Value]
    arguments: dict[str, Value]
    made_by: dict[Value, Step] = dataclasses.field(init=False)
    used_by: dict[Value, list[Step]] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        needed, steps = set(self.results), []
        for step in reversed(self.steps):
            if step.needed or not needed.isdisjoint(step.outputs):
                steps.append(step)
                needed.update(step.inputs)
        self.steps = steps[::-1]
        self.made_by = {made: step for step in self.steps for made in step.outputs}
        self.used_by = {}
        for step in self.steps:
            for given in dict.fromkeys(step.inputs):
                self.used_by.setdefault(given, []).append(step)

    def at(self, value: Value) -> Iterator[Step]:
        """Yields the steps that make or use a value."""
        if value in self.made_by:
            yield self.made_by[value]
        yield from self.used_by.get(value, ())


def trace(function: Callable[[Mapping[str, Any], Any], Any], named: Mapping[str, Any], batch: Any) -> Trace:
    """Traces `function(named, batch)`.

    Args:
      function: is only traced.
      named: arrays by name, whose values are marked with their names.
      batch: a pytree of arrays.
    """
    closed = jax.make_jaxpr(function)(named, batch)
    names = [*sorted(named), *[None] * len(jax.tree.leaves(batch))]  # JAX sorts a dict's keys
    inputs = [Value(_shape(var), name) for var, name in zip(closed.jaxpr.invars, names, strict=True)]
    steps: list[Step] = []
    results = _open(closed.jaxpr, [Value(np.shape(c)) for c in closed.consts], inputs, steps)
    return Trace(steps, results, {value.place: value for value in inputs if value.place is not None})


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(getattr(atom.aval, "shape", ()))


def _open(jaxpr: Any, constants: list[Value], inputs: list[Value], steps: list[Step]) -> list[Value]:
    """Appends the steps of `jaxpr`, with nested ones in their places, and returns its results."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True))

    def value(atom: Any) -> Value:
        return Value(_shape(atom)) if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        given = [value(atom) for atom in eqn.invars]
        inner = opened(eqn)
        if inner is None:
            made = [Value(_shape(var)) for var in eqn.outvars]
            steps.append(Step(eqn.primitive.name, eqn.params, given, made, bool(eqn.effects)))
        else:
            made = _open(inner.jaxpr, [Value(np.shape(c)) for c in inner.consts], given, steps)
        values.update(zip(eqn.outvars, made, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _broadcast(step: Step, axis: int) -> list[int | None]:
    (given, *sizes), dims = step.inputs, step.params["broadcast_dimensions"]
    same = axis in dims and given.shape[dims.index(axis)] == step.outputs[0].shape[axis]
    return [dims.index(axis) if same else None, *[MIXED] * len(sizes)]


def _reshape(step: Step, axis: int) -> list[int | None]:
    old, new = step.inputs[0].shape, step.outputs[0].shape
    # An axis survives a reshape if it has the same size, and as many elements before it.
    for at, size in enumerate(old):
        if size == new[axis] and np.prod(old[:at]) == np.prod(new[:axis]):
            return [at, *[MIXED] * (len(step.inputs) - 1)]
    return [MIXED] * len(step.inputs)


def _reduce(step: Step, axis: int) -> list[int | None]:
    kept = [at for at in range(len(step.inputs[0].shape)) if at not in step.params["axes"]]
    return [kept[axis]]


def _window(step: Step, axis: int) -> list[int | None]:
    alone = step.params["window_dimensions"][axis] == 1 and step.inputs[0].shape[axis] == step.outputs[0].shape[axis]
    return [axis if alone and step.params["padding"][axis] == (0, 0) else MIXED]


def _squeeze(step: Step, axis: int) -> list[int | None]:
    ndim = len(step.inputs[0].shape)
    gone = {at % ndim for at in step.params["dimensions"]}
    return [[at for at in range(ndim) if at not in gone][axis]]


def _whole(step: Step, axis: int) -> list[int | None]:
    """The rule of steps that only move elements: along an axis whose size stays, they keep all of them in order."""
    alone = step.inputs[0].shape[axis] == step.outputs[0].shape[axis]
    return [axis if alone else MIXED, *[None] * (len(step.inputs) - 1)]


def _pad(step: Step, axis: int) -> list[int | None]:
    return [axis if tuple(step.params["padding_config"][axis]) == (0, 0, 0) else MIXED, None]


# Each rule is the `axes_into` of a primitive.
_RULES: Mapping[str, Callable[[Step, int], list[int | None]]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": lambda step, axis: [step.params["permutation"][axis]],
    "slice": _whole,
    "pad": _pad,
    "concatenate": lambda step, axis: [MIXED if axis == step.params["dimension"] else axis] * len(step.inputs),
    **dict.fromkeys(_REDUCE, _reduce),
    **dict.fromkeys(_WINDOWS, _window),
}
