"""Times and errors of every way to compute a unit of layers, on this machine and at the user's batch size.

Times are of compiled calls with inputs of the shape that the model gave the layer. The calls are interleaved, so that
whatever disturbs the machine disturbs all of them. The time of these products does not depend on the values, so inputs
are random. Errors are those of captured rows that nothing was learned from.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_maddness.nn.layers.approximate import Spec, apply, promoted
from jax_maddness.nn.layers.form import Form
from jax_maddness.nn.nmse import nmse
from jax_maddness.nn.replacement import Replacement, specs_of
from jax_maddness.nn.units import Unit

SECONDS = 0.1
"""Seconds spent on the times of one product, unless the fewest rounds take longer."""
MIN_ROUNDS, _MAX_ROUNDS = 5, 300
_LEAST_MS = 1e-3
"""Time of a call that takes no longer than an empty one."""


def interleaved(calls: Sequence[Callable[[], Any]], seconds: float = 0.5) -> list[tuple[float, float]]:
    """Measures calls in turns.

    Returns:
      For each call its median milliseconds, less those of an empty call, and half the interquartile range as a share.
    """
    zero = jnp.zeros(1)
    timed = [lambda: _empty(zero), *calls]
    for call in timed:  # compiles
        jax.block_until_ready(call())
    taken: list[list[float]] = [[] for _ in timed]
    start = time.perf_counter()
    while len(taken[0]) < MIN_ROUNDS or (time.perf_counter() - start < seconds and len(taken[0]) < _MAX_ROUNDS):
        for times, call in zip(taken, timed, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(call())
            times.append(1000 * (time.perf_counter() - begin))
    low, median, high = np.quantile(np.array(taken), [0.25, 0.5, 0.75], axis=1)
    net = np.maximum(median - median[0], _LEAST_MS)
    return list(zip(net[1:].tolist(), ((high - low) / 2 / net)[1:].tolist(), strict=True))


@jax.jit
def _empty(x: Array) -> Array:
    """Computes next to nothing: the time of a call itself. It is compiled once for all measurements."""
    return x + 1


def ranks(shape: tuple[int, int]) -> list[int]:
    """Returns the ranks that are measured for a product [D, M]."""
    least = min(shape)
    return sorted({max(1, least // share) for share in (16, 8, 4)})


def times(
    units: Sequence[Unit], replacements: Sequence[tuple[Unit, Replacement]], seconds: float = SECONDS
) -> list[tuple[float, float]]:
    """Measures layers as they are, and replacements of layers, in turns.

    Args:
      units: layers to be timed as they are.
      replacements: units with their replacements.
      seconds: spent on each, unless the fewest rounds take longer.

    Returns:
      For each, those of `units` first, the median milliseconds of a call like the first of the layer, and the noise.
    """
    calls = [_exact_call(unit, _input(unit)) for unit in units]
    calls += [_call(unit, replacement, _input(unit)) for unit, replacement in replacements]
    return interleaved(calls, seconds * len(calls))


def beside(calls: Sequence[Callable[[], Any]], units: Sequence[Unit]) -> list[tuple[float, float]]:
    """Measures calls of whole models, and layers as they are, in turns; see `interleaved`."""
    layers = [_exact_call(unit, _input(unit)) for unit in units]
    return interleaved([*calls, *layers], 0.5 + SECONDS * len(layers))


def _input(unit: Unit) -> Array:
    """Returns a random input of the shape of the layer's first call, in the dtype in which the layer computes."""
    first = unit.first
    x = np.random.default_rng(0).standard_normal(first.calls[0].x.shape, np.float32)
    return promoted(jnp.asarray(x).astype(first.calls[0].x.dtype), first.dtype, first.param_dtype)


def alike(unit: Unit) -> Hashable:
    """Returns a key that is equal for units whose products take the same time: of equal form, shape and dtypes."""
    first, x = unit.first, unit.first.calls[0].x
    return (
        tuple((layer.form, layer.shape, layer.dtype, layer.param_dtype) for layer in unit.layers),
        (x.shape, str(x.dtype)),
        unit.stack_shape,
        first.keeps_kernel,
    )


def calls_of(unit: Unit) -> float:
    """Returns how much work one run of the model gives the layer, in calls like the first."""
    rows = [unit.form.num_rows(call.x) for call in unit.first.calls]
    return max(unit.steps, 1) * sum(rows) / max(rows[0], 1)


def _exact_call(unit: Unit, x: Array) -> Callable[[], Any]:
    """Returns a function that runs the layers as they are on `x`."""
    kernels = tuple(jnp.asarray(layer.weights()[0], x.dtype) for layer in unit.layers)
    biases = tuple(jnp.asarray(layer.biases()[0], x.dtype) for layer in unit.layers)
    forms = tuple(layer.form for layer in unit.layers)
    return lambda: _exact(forms, x, kernels, biases)


@functools.partial(jax.jit, static_argnums=0)
def _exact(forms: tuple[Form, ...], x: Array, kernels: tuple[Array, ...], biases: tuple[Array, ...]) -> list[Array]:
    """Computes layers as they are; those of equal forms and shapes share the compiled function."""
    products = zip(forms, kernels, biases, strict=True)
    return [form.output(form.exact_product(x, w) + b.reshape(-1), x) for form, w, b in products]


def outputs(unit: Unit, replacement: Replacement, x: Array) -> list[Array]:
    """Computes the outputs of replaced layers for their input, in the first step of a scan."""
    return _call(unit, replacement, x)()


def _call(unit: Unit, replacement: Replacement, x: Array) -> Callable[[], list[Array]]:
    """Returns a function that runs the replacement of the layers on `x`."""
    specs = tuple(dataclasses.replace(spec, owner="", steps=0) for spec in specs_of(unit, replacement).values())
    arrays = {name: a for name, a in _arrays_of_step(unit, replacement, 0).items() if name != "weights"}
    return lambda: _replaced(specs, x, arrays)


@functools.partial(jax.jit, static_argnums=0)
def _replaced(specs: tuple[Spec, ...], x: Array, arrays: Mapping[str, Array]) -> list[Array]:
    """Computes replaced layers; those of equal specs and shapes share the compiled function."""
    return [apply(x, spec, arrays) for spec in specs]


def _arrays_of_step(unit: Unit, replacement: Replacement, step: int) -> dict[str, Array]:
    """Returns the arrays of one step of a scan."""
    return {name: a[step] if unit.steps else a for name, a in replacement.arrays().items()}


def error_of(unit: Unit, replacement: Replacement, held_out: Sequence[np.ndarray]) -> float:
    """Returns the NMSE on held-out rows, the mean over the steps of a scan.

    With `exact_rows` or `num_candidates`, it is the error of the look-ups alone.
    """
    errors = []
    for step, rows in enumerate(held_out):
        y = _outputs(unit, replacement, _arrays_of_step(unit, replacement, step), rows)
        exact = np.moveaxis(np.moveaxis(rows, 1, 0) @ unit.w[step], 0, 1) + unit.bias[step]
        errors.append(nmse(y, exact.reshape(len(rows), -1)))
    return float(np.mean(errors))


def _outputs(
    unit: Unit, replacement: Replacement, arrays: Mapping[str, Array], rows: Float[np.ndarray, "rows groups features"]
) -> np.ndarray:
    """Computes the replacement's outputs for captured rows, [rows, outputs]."""
    form, x = unit.form.single_rows(rows, unit.shape[1])
    spec = next(iter(specs_of(unit, replacement).values()))
    spec = dataclasses.replace(
        spec, form=form, dtype="float32", owner="", steps=0, part=None, exact_rows=0.0, num_candidates=None
    )
    (y,) = _replaced((spec,), jnp.asarray(x), dict(arrays))
    return np.asarray(y).reshape(len(rows), -1)
