"""A traced function, in which activations and residuals that follow a product join its kernel call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from jax_maddness.core.epilogue import ACTIVATIONS, Epilogue
from jax_maddness.core.jaxprs import as_closed, opened
from jax_maddness.core.products import product

Uses = dict["Value", list["Step | None"]]
"""The steps that read a value, in order; None stands for the results of the program."""
_RESHAPES = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim")


@dataclasses.dataclass(eq=False)
class Value:
    """An array of the program; `constant` is its value, where that is known while tracing."""

    aval: Any
    constant: Any = None


@dataclasses.dataclass(eq=False)
class Step:
    """One equation, with the values that it takes and makes."""

    eqn: Any
    inputs: list[Value]
    outputs: list[Value]

    def run(self, *args: Any) -> Sequence[Any]:
        """Computes the outputs."""
        primitive, params = self.eqn.primitive, self.eqn.params
        if primitive is product:
            return [params["stacked"].unrecorded(*args)]
        params = {name: _inside(param) for name, param in params.items()}
        bound = primitive.get_bind_params(params)
        functions, params = bound if isinstance(bound, tuple) else ((), bound)  # the latter from JAX 0.10 on
        with self.eqn.ctx.manager:
            made = primitive.bind(*functions, *args, **params)
        return made if primitive.multiple_results else [made]


@dataclasses.dataclass(eq=False)
class Fused:
    """A product and the steps that its kernel call computes, too. It takes the place of the last one of these."""

    product: Step
    activation: str | None = None
    residual: Value | None = None
    steps: list[Step] = dataclasses.field(default_factory=list)

    @property
    def inputs(self) -> list[Value]:
        """The operands of the product, and the residual."""
        return [*self.product.inputs, *([] if self.residual is None else [self.residual])]

    @property
    def outputs(self) -> list[Value]:
        """The outputs of the last step."""
        return self.steps[-1].outputs

    def run(self, *args: Array) -> Sequence[Array]:
        """Computes the output."""
        of_product, residual = args[: len(self.product.inputs)], None
        if self.residual is not None:
            residual = args[-1].reshape(self.product.outputs[0].aval.shape)
        y = Epilogue(self.activation, residual).after(self.product.eqn.params["stacked"], *of_product)
        return [y.reshape(self.outputs[0].aval.shape)]


@dataclasses.dataclass
class Program:
    """The steps of a function in order, its arguments and its results."""

    steps: list[Step | Fused]
    arguments: list[Value]
    results: list[Value]

    def __call__(self, *args: Array) -> list[Array]:
        """Computes the results."""
        known = dict(zip(self.arguments, args, strict=True))

        def array(value: Value) -> Any:
            return value.constant if value.constant is not None else known[value]

        for step in self.steps:
            known.update(zip(step.outputs, step.run(*map(array, step.inputs)), strict=True))
        return [array(value) for value in self.results]


def fused(closed: core.ClosedJaxpr) -> Program:
    """Returns the program of a jaxpr from `products.recorded`, with what follows products in their calls."""
    arguments = [Value(var.aval) for var in closed.jaxpr.invars]
    steps: list[Step] = []
    results = _open(closed, arguments, steps)
    used: Uses = {}
    for step in steps:
        for value in step.inputs:
            used.setdefault(value, []).append(step)
    for value in results:
        used.setdefault(value, []).append(None)
    taken: set[Step] = set()
    found = [
        one for step in steps if step.eqn.primitive is product and (one := _follow(step, steps, used, taken)).steps
    ]
    last = {one.steps[-1]: one for one in found}
    joined = {step for one in found for step in (one.product, *one.steps)}
    order: list[Step | Fused] = [last.get(step, step) for step in steps if step in last or step not in joined]
    return Program(order, arguments, results)


def _open(closed: core.ClosedJaxpr, inputs: Sequence[Value], steps: list[Step]) -> list[Value]:
    """Appends the steps of `closed`, with those of calls that have products in their places; returns its results."""
    jaxpr = closed.jaxpr
    values = {var: Value(var.aval, constant) for var, constant in zip(jaxpr.constvars, closed.consts, strict=True)}
    values |= zip(jaxpr.invars, inputs, strict=True)

    def value(atom: Any) -> Value:
        return Value(atom.aval, atom.val) if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        given, inner = [value(atom) for atom in eqn.invars], opened(eqn)
        if inner is not None and _has_product(inner):
            made = _open(inner, given, steps)
        else:
            made = [Value(var.aval) for var in eqn.outvars]
            steps.append(Step(eqn, given, made))
        values.update(zip(eqn.outvars, made, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _has_product(closed: core.ClosedJaxpr) -> bool:
    return any(
        eqn.primitive is product or any(_has_product(one) for param in eqn.params.values() for one in _jaxprs(param))
        for eqn in closed.jaxpr.eqns
    )


def _jaxprs(param: Any) -> list[core.ClosedJaxpr]:
    """Returns the jaxprs in a parameter: of a loop, of branches, of a call."""
    parts = param if isinstance(param, (tuple, list)) else [param]
    return [closed for part in parts if (closed := as_closed(part)) is not None]


def _inside(param: Any) -> Any:
    """Returns a parameter with the jaxprs in it fused: of loops and branches, which hold their constants."""
    if isinstance(param, (tuple, list)):
        return type(param)(map(_inside, param)) if any(map(_has_product, _jaxprs(param))) else param
    if not isinstance(param, core.ClosedJaxpr) or not _has_product(param):
        return param
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type) for v in param.jaxpr.invars]
    return jax.make_jaxpr(fused(param))(*shapes)


def _follow(start: Step, steps: Sequence[Step], used: Uses, taken: set[Step]) -> Fused:
    """Returns a product with all that its call may compute of what follows and nothing else reads."""
    one, pending, value = Fused(start), list[Step](), start.outputs[0]
    while one.activation is None:
        users = used.get(value, [None])
        step = users[0]
        if step is None or step in taken:
            break
        if (found := _activation(value, steps, used)) is not None:
            one.activation, pieces = found
            one.steps += [*pending, *pieces]
            break
        if len(users) > 1 or len(step.outputs) != 1:
            break
        pending.append(step)
        name = step.eqn.primitive.name
        residual = next((v for v in step.inputs if v is not value), None)
        if name == "add" and one.residual is None and residual is not None and _alike(residual, step.outputs[0]):
            one.residual = residual
            one.steps += pending
            pending.clear()
        elif not (_keeps_order(step) and step.outputs[0].aval.size == value.aval.size):
            break  # a change of shape alone is no gain, but something may follow
        value = step.outputs[0]
    taken.update(one.steps)
    return one


def _keeps_order(step: Step) -> bool:
    """Returns whether a step gives elements another shape, if their number stays: `reshape` may transpose them, too."""
    name, transposed = step.eqn.primitive.name, step.eqn.params.get("dimensions") is not None
    return name in _RESHAPES and len(step.inputs) == 1 and not (name == "reshape" and transposed)


def _alike(value: Value, other: Value) -> bool:
    return value.aval.shape == other.aval.shape and value.aval.dtype == other.aval.dtype


def _activation(value: Value, steps: Sequence[Step], used: Uses) -> tuple[str, Sequence[Step]] | None:
    """Returns the activation that all uses of a value are, word by word as `jax.nn` writes it, and its steps."""
    aval = value.aval
    if not jnp.issubdtype(aval.dtype, jnp.floating) or not all(isinstance(n, int) for n in aval.shape):
        return None
    begin = steps.index(used[value][0])
    for name in ACTIVATIONS:
        reference = _reference(name, aval.shape, aval.dtype)
        pieces = steps[begin : begin + len(reference.eqns)]
        if _is_written_as(reference, pieces, value) and _is_closed(pieces, value, used):
            return name, pieces
    return None


@functools.lru_cache(maxsize=4096)
def _reference(name: str, shape: tuple[int, ...], dtype: Any) -> core.Jaxpr:
    return jax.make_jaxpr(ACTIVATIONS[name])(jax.ShapeDtypeStruct(shape, dtype)).jaxpr


def _is_written_as(reference: core.Jaxpr, pieces: Sequence[Step], value: Value) -> bool:
    """Returns whether steps are the equations of a jaxpr of one argument, one by one."""
    values: dict[Any, Value] = {reference.invars[0]: value}
    if len(pieces) < len(reference.eqns) or reference.constvars:
        return False
    for eqn, step in zip(reference.eqns, pieces, strict=True):
        if eqn.primitive is not step.eqn.primitive or _params(eqn) != _params(step.eqn):
            return False
        for atom, given in zip(eqn.invars, step.inputs, strict=True):
            if isinstance(atom, core.Literal):
                if given.constant is None or not _equal(given, atom):
                    return False
            elif values[atom] is not given:
                return False
        values.update(zip(eqn.outvars, step.outputs, strict=True))
    return values[reference.outvars[0]] is pieces[-1].outputs[0]


def _equal(value: Value, literal: core.Literal) -> bool:
    return _alike(value, Value(literal.aval)) and bool(np.array_equal(value.constant, literal.val))


def _params(eqn: Any) -> dict[str, str]:
    """Returns the parameters of an equation as JAX writes them, without functions: jaxprs beside them say the same."""
    return {name: str(param) for name, param in eqn.params.items() if not callable(param)}


def _is_closed(pieces: Sequence[Step], value: Value, used: Uses) -> bool:
    """Returns whether nothing else reads the value, nor what the steps make of it on the way."""
    inside = [value, *(made for step in pieces[:-1] for made in step.outputs)]
    return all(user in pieces for made in inside for user in used.get(made, []))
