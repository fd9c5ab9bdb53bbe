"""Times and errors of every way to compute a unit of layers, on this machine and at the user's batch size.

Times are of compiled calls with inputs of the shape that the model gave the layer. The calls are interleaved, so that
whatever disturbs the machine disturbs all of them. The time of these products does not depend on the values, so inputs
are random. Errors are those of captured rows that nothing was learned from.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_maddness.nn.layers.approximate import apply, promoted
from jax_maddness.nn.layers.kinds import EXACT
from jax_maddness.nn.nmse import nmse
from jax_maddness.nn.planning.verdict import Option
from jax_maddness.nn.replacement import Replacement, specs_of
from jax_maddness.nn.units import Unit

SECONDS = 0.5
"""Seconds spent on the times of one unit, unless the fewest rounds take longer."""
_MIN_ROUNDS, _MAX_ROUNDS = 7, 300
_LEAST_MS = 1e-3
"""Time of a call that takes no longer than an empty one."""


def interleaved(calls: Sequence[Callable[[], Any]], seconds: float = SECONDS) -> list[tuple[float, float]]:
    """Measures calls in turns.

    Returns:
      For each call its median milliseconds, less those of an empty call, and half the interquartile range as a share.
    """
    empty = jax.jit(lambda x: x + 1)
    zero = jnp.zeros(1)
    timed = [lambda: empty(zero), *calls]
    for call in timed:  # compiles
        jax.block_until_ready(call())
    taken: list[list[float]] = [[] for _ in timed]
    start = time.perf_counter()
    while len(taken[0]) < _MIN_ROUNDS or (time.perf_counter() - start < seconds and len(taken[0]) < _MAX_ROUNDS):
        for times, call in zip(taken, timed, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(call())
            times.append(1000 * (time.perf_counter() - begin))
    low, median, high = np.quantile(np.array(taken), [0.25, 0.5, 0.75], axis=1)
    net = np.maximum(median - median[0], _LEAST_MS)
    return list(zip(net[1:].tolist(), ((high - low) / 2 / net)[1:].tolist(), strict=True))


def ranks(shape: tuple[int, int]) -> list[int]:
    """Returns the ranks that are measured for a product [D, M]."""
    least = min(shape)
    return sorted({max(1, least // share) for share in (16, 8, 4)})


def measured(
    unit: Unit,
    held_out: Sequence[np.ndarray],
    replacements: Mapping[tuple[str, int], Replacement],
    seconds: float = SECONDS,
) -> tuple[Option, ...]:
    """Measures every option of a unit.

    Args:
      unit: the layers.
      held_out: rows that nothing was learned from, `[rows, groups, D]` for each step of a scan.
      replacements: by kind and size.
      seconds: spent on the times.

    Returns:
      The exact layers first, then an option for each replacement; no drops are measured.
    """
    first = unit.first
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(first.calls[0].x.shape, np.float32))
    x = promoted(x.astype(first.calls[0].x.dtype), first.dtype, first.param_dtype)
    errors = [0.0, *(error_of(unit, replacement, held_out) for replacement in replacements.values())]
    calls = [_exact_call(unit, x), *(_call(unit, replacement, x) for replacement in replacements.values())]
    times = interleaved(calls, seconds)
    calls_per_run = calls_of(unit)
    return tuple(
        Option(kind, size, ms * calls_per_run, noise, error)
        for (kind, size), error, (ms, noise) in zip([(EXACT, 0), *replacements], errors, times, strict=True)
    )


def calls_of(unit: Unit) -> float:
    """Returns how much work one run of the model gives the layer, in calls like the first."""
    rows = [unit.form.num_rows(call.x) for call in unit.first.calls]
    return max(unit.steps, 1) * sum(rows) / max(rows[0], 1)


def _exact_call(unit: Unit, x: Array) -> Callable[[], Any]:
    """Returns a function that runs the layers as they are on `x`."""
    kernels = tuple(jnp.asarray(layer.weights()[0], x.dtype) for layer in unit.layers)
    biases = tuple(jnp.asarray(layer.biases()[0], x.dtype) for layer in unit.layers)

    @jax.jit
    def run(x: Array, kernels: tuple[Array, ...], biases: tuple[Array, ...]) -> list[Array]:
        outputs = []
        for layer, w, b in zip(unit.layers, kernels, biases, strict=True):
            assert layer.form is not None
            outputs.append(layer.form.output(layer.form.exact_product(x, w) + b.reshape(-1), x))
        return outputs

    return lambda: run(x, kernels, biases)


def _call(unit: Unit, replacement: Replacement, x: Array) -> Callable[[], Any]:
    """Returns a function that runs the replacement of the layers on `x`."""
    specs = [dataclasses.replace(spec, steps=0) for spec in specs_of(unit, replacement).values()]
    run = jax.jit(lambda x, arrays: [apply(x, spec, arrays) for spec in specs])
    arrays = {name: a for name, a in _arrays_of_step(unit, replacement, 0).items() if name != "weights"}
    return lambda: run(x, arrays)


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
        spec, form=form, dtype="float32", steps=0, part=None, exact_rows=0.0, num_candidates=None
    )
    run = jax.jit(lambda x, arrays: apply(x, spec, arrays))
    return np.asarray(run(jnp.asarray(x), dict(arrays))).reshape(len(rows), -1)
