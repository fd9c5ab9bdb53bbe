"""A unit of layers -> the time and error of every way to compute it, on this machine and at the user's batch size.

Times are of compiled calls with inputs of the shape that the model gave the layer, taken in turns, so that what
disturbs the machine disturbs all of them. What is added and multiplied does not depend on the values: random inputs do.
Errors are those of captured rows that nothing was learned from.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.nn.calibrate import StandIn, Unit, specs_of
from jax_maddness.nn.layers.approximate import apply, promoted
from jax_maddness.nn.layers.kinds import EXACT
from jax_maddness.nn.planning.verdict import Option

if TYPE_CHECKING:
    from jaxtyping import Array, Float

SECONDS = 0.5
"""For the times of one unit, beyond the fewest rounds."""
_ROUNDS, _MOST = 7, 300
_LEAST = 1e-3  # milliseconds: what is left of a call that takes no longer than an empty one


def interleaved(calls: Sequence[Callable[[], Any]], seconds: float = SECONDS) -> list[tuple[float, float]]:
    """Median milliseconds of each call, less those of an empty one, and half their quartiles' distance as a share."""
    empty = jax.jit(lambda x: x + 1)
    one = jnp.zeros(1)
    every = [lambda: empty(one), *calls]
    for call in every:  # compiles
        jax.block_until_ready(call())
    taken: list[list[float]] = [[] for _ in every]
    start = time.perf_counter()
    while len(taken[0]) < _ROUNDS or (time.perf_counter() - start < seconds and len(taken[0]) < _MOST):
        for times, call in zip(taken, every, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(call())
            times.append(1000 * (time.perf_counter() - begin))
    low, median, high = np.quantile(np.array(taken), [0.25, 0.5, 0.75], axis=1)
    net = np.maximum(median - median[0], _LEAST)
    return list(zip(net[1:].tolist(), ((high - low) / 2 / net)[1:].tolist(), strict=True))


def nmse(y: Float[np.ndarray, "rows outputs"], exact: Float[np.ndarray, "rows outputs"]) -> float:
    """|y - exact|^2 / |exact - mean|^2, with each output's mean; 0 if nothing varies and nothing is wrong."""
    wrong, varies = float(np.square(y - exact).sum()), float(np.square(exact - exact.mean(0)).sum())
    return wrong / varies if varies else float(wrong > 0)


def ranks(shape: tuple[int, int]) -> list[int]:
    """The ranks that are measured for a product [D, M]."""
    least = min(shape)
    return sorted({max(1, least // share) for share in (16, 8, 4)})


def measured(
    unit: Unit,
    held_out: Sequence[np.ndarray],
    learned: Mapping[tuple[str, int], StandIn],
    seconds: float = SECONDS,
) -> tuple[Option, ...]:
    """Every option of a unit.

    Args:
      unit: the layers.
      held_out: rows that nothing was learned from, `[rows, groups, D]` for each step of a scan.
      learned: by kind and size.
      seconds: for the times.
    """
    first = unit.layers[0]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(first.calls[0].x.shape, np.float32))
    x = promoted(x.astype(first.calls[0].x.dtype), first.dtype, first.param_dtype)
    errors = [0.0, *(error_of(unit, one, held_out) for one in learned.values())]
    times = interleaved([_exact(unit, x), *(_stand_in(unit, one, x) for one in learned.values())], seconds)
    of_model = calls_of(unit)
    return tuple(
        Option(kind, size, ms * of_model, noise, error)
        for (kind, size), error, (ms, noise) in zip([(EXACT, 0), *learned], errors, times, strict=True)
    )


def calls_of(unit: Unit) -> float:
    """How much work one run of the model gives the layer, in calls like the first."""
    first = unit.layers[0]
    assert first.form is not None
    rows = [first.form.num_rows(call.x) for call in first.calls]
    return max(first.steps, 1) * sum(rows) / max(rows[0], 1)


def _exact(unit: Unit, x: Array) -> Callable[[], Any]:
    """A call of the layers as they are."""
    kernels = tuple(jnp.asarray(layer.weights()[0], x.dtype) for layer in unit.layers)
    biases = tuple(jnp.asarray(layer.biases()[0], x.dtype) for layer in unit.layers)

    @jax.jit
    def run(x: Array, kernels: tuple[Array, ...], biases: tuple[Array, ...]) -> list[Array]:
        outputs = []
        for layer, w, b in zip(unit.layers, kernels, biases, strict=True):
            form = layer.form
            assert form is not None
            outputs.append(form.output(form.exact_product(x, w) + b.reshape(-1), x))
        return outputs

    return lambda: run(x, kernels, biases)


def _stand_in(unit: Unit, learned: StandIn, x: Array) -> Callable[[], Any]:
    """A call of what stands in for the layers."""
    specs = [dataclasses.replace(spec, steps=0) for spec in specs_of(unit, learned).values()]
    run = jax.jit(lambda x, arrays: [apply(x, spec, arrays) for spec in specs])
    arrays = {name: a for name, a in _of_step(unit, learned, 0).items() if name != "weights"}
    return lambda: run(x, arrays)


def _of_step(unit: Unit, learned: StandIn, step: int) -> dict[str, Array]:
    """One step's arrays of a scan."""
    return {name: a[step] if unit.layers[0].steps else a for name, a in learned.arrays().items()}


def error_of(unit: Unit, learned: StandIn, held_out: Sequence[np.ndarray]) -> float:
    """NMSE on rows, the mean over the steps of a scan; of look-ups alone, where the rule has them checked."""
    errors = []
    for step, rows in enumerate(held_out):
        y = _outputs(unit, learned, _of_step(unit, learned, step), rows)
        exact = np.einsum("ngd,gdm->ngm", rows, unit.w[step]) + unit.bias[step]
        errors.append(nmse(y, exact.reshape(len(rows), -1)))
    return float(np.mean(errors))


def _outputs(
    unit: Unit, learned: StandIn, arrays: Mapping[str, Array], rows: Float[np.ndarray, "rows groups features"]
) -> np.ndarray:
    """[rows, outputs]; a patch is an input with one output position."""
    form = unit.layers[0].form
    assert form is not None
    spec = next(iter(specs_of(unit, learned).values()))
    single, x = form.single_rows(rows, unit.shape[1])
    spec = dataclasses.replace(
        spec, form=single, dtype="float32", steps=0, part=None, exact_rows=0.0, num_candidates=None
    )
    run = jax.jit(lambda x, arrays: apply(x, spec, arrays))
    return np.asarray(run(jnp.asarray(x), dict(arrays))).reshape(len(rows), -1)
