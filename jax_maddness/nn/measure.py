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

from jax_maddness.core.amm import amm
from jax_maddness.core.types import MaddnessOp
from jax_maddness.learn.terms import principal
from jax_maddness.nn.approximate import approximate, promoted
from jax_maddness.nn.calibrate import Learned, Unit, specs_of
from jax_maddness.nn.convolution import Convolution
from jax_maddness.nn.forms import Contraction
from jax_maddness.nn.verdict import CODES, EXACT, INT8, LOW_RANK, Option

if TYPE_CHECKING:
    from jaxtyping import Array, Float

SECONDS = 0.5
"""For the times of one unit, beyond the fewest rounds."""
_ROUNDS, _MOST = 7, 300
_COVARIANCE_ROWS = 2**12
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


def int8_dynamic(x: Array, w8: Array, w_step: Array) -> Array:
    """`x @ w` with a step per row of `x`, found as it comes, and one per column of `w`."""
    step = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-30) / 127
    product = jnp.matmul(jnp.round(x / step).astype(jnp.int8), w8, preferred_element_type=jnp.int32)
    return (product * (step * w_step)).astype(x.dtype)


def to_int8(w: Float[np.ndarray, "features outputs"]) -> tuple[Array, Array]:
    """What `int8_dynamic` takes: `w` in steps of its columns' 127th parts."""
    w_step = np.maximum(np.abs(w).max(0), 1e-30) / 127
    return jnp.asarray(np.round(w / w_step), jnp.int8), jnp.asarray(w_step, jnp.float32)


def low_rank(
    x: Float[np.ndarray, "rows features"], w: Float[np.ndarray, "features outputs"], rank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """down, up, offset: `x @ down @ up + offset` is as close to `x @ w` as a rank can be: reduced-rank regression."""
    x, w = x[:_COVARIANCE_ROWS].astype(np.float64), w.astype(np.float64)
    mean = x.mean(0)
    v = principal((x - mean).T @ (x - mean) / len(x), w, rank)
    down = w @ v
    offset = mean @ w - mean @ down @ v.T
    return down.astype(np.float32), v.T.astype(np.float32), offset.astype(np.float32)


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
    train: Sequence[np.ndarray],
    aside: Sequence[np.ndarray],
    learned: Mapping[int, Learned],
    seconds: float = SECONDS,
) -> tuple[Option, ...]:
    """Every option of a unit.

    Args:
      unit: the layers.
      train: `[rows, groups, D]` for each step of a scan, to learn low ranks from.
      aside: the same of rows that nothing was learned from.
      learned: ops by C, learned from `train`.
      seconds: for the times.
    """
    first, w = unit.layers[0], unit.w
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(first.calls[0].x.shape, np.float32))
    x = promoted(x.astype(first.calls[0].x.dtype), first.dtype, first.param_dtype)
    found: list[tuple[str, int, Callable[[], Any], float]] = [(EXACT, 0, _exact(unit, x), 0.0)]
    if w.shape[1] == 1:
        errors = [_int8_error(rows[:, 0], one[0]) for rows, one in zip(aside, w, strict=True)]
        found.append((INT8, 0, _timed(unit, x, INT8, to_int8(w[0, 0])), float(np.mean(errors))))
        for rank in ranks(w.shape[2:]):
            by_step = [low_rank(rows[:, 0], one[0], rank) for rows, one in zip(train, w, strict=True)]
            errors = [nmse(_low_rank(r[:, 0], *p), r[:, 0] @ o[0]) for r, p, o in zip(aside, by_step, w, strict=True)]
            found.append((LOW_RANK, rank, _timed(unit, x, LOW_RANK, by_step[0]), float(np.mean(errors))))
    for c, one in learned.items():
        found.append((CODES, c, _codes(unit, one, x), codes_error(unit, one, aside)))
    times = interleaved([call for _, _, call, _ in found], seconds)
    of_model = calls_of(unit)
    return tuple(
        Option(kind, size, ms * of_model, noise, error)
        for (kind, size, _, error), (ms, noise) in zip(found, times, strict=True)
    )


def calls_of(unit: Unit) -> float:
    """How much work one run of the model gives the layer, in calls like the first."""
    first = unit.layers[0]
    assert first.form is not None
    rows = [first.form.num_rows(call.x) for call in first.calls]
    return max(first.steps, 1) * sum(rows) / max(rows[0], 1)


def _int8_error(rows: np.ndarray, w: np.ndarray) -> float:
    return nmse(np.asarray(int8_dynamic(jnp.asarray(rows), *to_int8(w))), rows @ w)


def _low_rank(x: Any, down: Any, up: Any, offset: Any) -> Any:
    return x @ down @ up + offset


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
            y = form.rows(x) @ w[0] if isinstance(form, Contraction) else form.product(form.padded(x), w)
            outputs.append(form.output(y + b.reshape(-1), x))
        return outputs

    return lambda: run(x, kernels, biases)


def _timed(unit: Unit, x: Array, kind: str, arrays: Sequence[Any]) -> Callable[[], Any]:
    """A call of a rival, for all layers of the unit at once; int8 convolutions form patches, a block at a time."""
    form, bias = unit.layers[0].form, jnp.asarray(unit.bias[0, 0], x.dtype)

    def run(x: Array, arrays: Sequence[Array], bias: Array) -> Array:
        if isinstance(form, Contraction):
            rows = form.rows(x)
            return (int8_dynamic(rows, *arrays) if kind == INT8 else _low_rank(rows, *arrays)) + bias
        assert isinstance(form, Convolution)
        if kind == INT8:
            return form.map_patches(lambda rows: int8_dynamic(rows[..., 0, :], *arrays), x) + bias
        down, up, offset = arrays
        return form.product(form.padded(x), down) @ up + offset + bias

    compiled = jax.jit(run)
    held = tuple(jnp.asarray(a, x.dtype) if kind == LOW_RANK else a for a in arrays)
    return lambda: compiled(x, held, bias)


def _codes(unit: Unit, learned: Learned, x: Array) -> Callable[[], Any]:
    """A call of what stands in for the layers."""
    specs = specs_of(unit, learned).values()
    run = jax.jit(lambda x, op, checked: [approximate(x, spec, op, checked) for spec in specs])
    op = _of_step(learned.op, unit.layers[0].steps, 0)
    return lambda: run(x, op, learned.checked)


def _of_step(op: MaddnessOp, steps: int, step: int) -> MaddnessOp:
    """One op of a stack, without its kernel."""
    op = dataclasses.replace(op, weights=None)
    return jax.tree.map(lambda a: a[step], op) if steps else op


def codes_error(unit: Unit, learned: Learned, aside: Sequence[np.ndarray]) -> float:
    """NMSE of an op on rows, the mean over the steps of a scan; of look-ups alone, where the rule has them checked."""
    layer, errors = unit.layers[0], []
    for step, rows in enumerate(aside):
        y = _outputs(unit, learned._replace(op=_of_step(learned.op, layer.steps, step)), rows)
        exact = np.einsum("ngd,gdm->ngm", rows, unit.w[step]) + unit.bias[step]
        errors.append(nmse(y, exact.reshape(len(rows), -1)))
    return float(np.mean(errors))


def _outputs(unit: Unit, learned: Learned, rows: Float[np.ndarray, "rows groups features"]) -> np.ndarray:
    """[rows, outputs]; a patch is an input with one output position."""
    form = unit.layers[0].form
    if not isinstance(form, Convolution):
        return np.asarray(jax.jit(amm)(jnp.asarray(rows[:, 0]), learned.op))
    one = len(form.size) * (1,)
    alone = dataclasses.replace(form, strides=one, dilation=one, padding="VALID")
    by_tap = np.moveaxis(rows.reshape(*rows.shape[:2], form.taps, -1), 1, 2)
    x = jnp.asarray(by_tap.reshape(len(rows), *form.size, -1))
    spec = next(iter(specs_of(unit, learned).values()))
    spec = dataclasses.replace(spec, form=alone, dtype="float32", exact_rows=0.0, maximum=None)
    return np.asarray(approximate(x, spec, learned.op)).reshape(len(rows), -1)
