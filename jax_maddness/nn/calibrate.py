"""Learns replacements from captured rows: one for each layer, or one for layers that read the same array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_maddness.core.amm import amm
from jax_maddness.core.types import SMALL_BATCH, MaddnessOp, with_small_batch_tables
from jax_maddness.learn import validate
from jax_maddness.learn.config import HELD_OUT_SHARE, FitConfig
from jax_maddness.learn.data.held_out import split
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.fit_taps import first_tap, fit_taps
from jax_maddness.learn.methods.auto import method_of
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.refit import refit_tables
from jax_maddness.learn.steps import learn
from jax_maddness.nn.capture import Captured, record
from jax_maddness.nn.layers.exact_kernel import fit_exact_kernel
from jax_maddness.nn.layers.form import Form
from jax_maddness.nn.layers.int8_low_rank import learn_product, product_arrays
from jax_maddness.nn.layers.kinds import CODES, FACTORS, TOP
from jax_maddness.nn.layers.top_outputs import learn_top_outputs
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.replacement import CodesReplacement, ProductReplacement, Replacement, with_replacements
from jax_maddness.nn.units import Unit

CALIBRATIONS = ("independent", "prefix")
"""The values of `calibrate`, an argument of `replace`."""
MAX_ERROR_RATIO = 1.05
"""Codes are shared among taps if their error is at most so many times that of patches: they cost less."""


def validate_captured(captured: Captured, units: Sequence[Unit]) -> None:
    """Raises unless there are rows of the right shape for every unit, if any; see `unlearnable` for their number.

    Raises:
      ValueError: They are those of another model, or of other rules.
    """
    for unit in units:
        path, samples = unit.first.path, captured.rows.get(unit.first.path)
        expected = (max(unit.steps, 1), unit.form.groups, unit.shape[0])
        if samples is None or (len(samples), *samples[0].shape[1:]) != expected:
            given = "none" if samples is None else f"{len(samples)} samples of {list(samples[0].shape)}"
            raise ValueError(
                f"`captured` has {given} for {path!r}; expected {expected[0]} of [rows, {expected[1]}, "
                f"{expected[2]}]. Capture this model with these rules."
            )


def unlearnable(captured: Captured, units: Sequence[Unit]) -> dict[str, str]:
    """Returns, by owner, why units cannot be learned: some of their layers see no rows, or always the same one.

    A branch of a cond that never runs has no rows; an expert that no token is routed to may see zeros alone. An int8
    or rewritten product is made from the weights, whatever the rows are.
    """
    reasons = {}
    for unit in units:
        if not unit.learns:
            continue
        samples = captured.rows[unit.first.path]
        step = next((i for i, rows in enumerate(samples) if len(rows) < 2 or not (rows != rows[0]).any()), None)
        if step is None:
            continue
        where = f" in step {step}" if unit.steps else ""
        count = "fewer than two rows" if len(samples[step]) < 2 else "always the same row"
        reasons[unit.owner] = f"the batches give it {count}{where}, from which nothing can be learned"
    return reasons


def learn_units(
    model: Model,
    captured: Captured,
    units: Sequence[Unit],
    batches: Callable[[], Iterator[Any]],
    *,
    calibrate: str,
    keep_weights: bool,
    limits: tuple[int, int],
    progress: bool | None,
) -> list[Replacement]:
    """Learns a replacement for each unit.

    Args:
      model: the exact model.
      captured: samples of the inputs of the units' layers in that model.
      units: the layers to replace, in the order of their calls.
      batches: returns an iterator over the batches that `captured` is from; `"prefix"` alone reads them.
      calibrate: `"independent"` or `"prefix"`, as in `replace`.
      keep_weights: keep the exact kernels in the ops, for gradients.
      limits: the most rows of a layer, and the most bytes that they may take.
      progress: show a progress bar.
    """
    with Progress(progress, "learn") as bar:
        if calibrate == "prefix":
            return _on_prefix(model, captured, units, batches, keep_weights, limits, bar)
        return [learn_unit(unit, captured.rows[unit.first.path], keep_weights, bar) for unit in units]


def _on_prefix(
    model: Model,
    captured: Captured,
    units: Sequence[Unit],
    batches: Callable[[], Iterator[Any]],
    keep_weights: bool,
    limits: tuple[int, int],
    bar: Progress,
) -> list[Replacement]:
    """Learns each unit from what it sees where all units before it are replaced, for the exact model's values."""
    current, replacements = model, list[Replacement]()
    for unit in units:
        path = unit.first.path
        # The same batches give the same places, so these rows correspond to those of the exact model one to one.
        drifted = record(current, unit.layers[:1], batches(), *limits, progress=False).rows[path]
        replacement = learn_unit(unit, drifted, keep_weights, bar, exact=captured.rows[path])
        replacements.append(replacement)
        current = with_replacements(current, [unit], [replacement])
    return replacements


def learn_unit(
    unit: Unit, rows: Sequence[np.ndarray], keep_weights: bool, bar: Progress, exact: Sequence[np.ndarray] | None = None
) -> Replacement:
    """Learns the replacement of one unit.

    Args:
      unit: the layers.
      rows: `[rows, groups, D]` in float32, for each step of a scan.
      keep_weights: keep the exact kernel in the op, for gradients.
      bar: shows progress.
      exact: the same rows in the exact model, whose products are the targets; None: `rows` are these.
    """
    w, bias = unit.w, unit.bias
    kind, size = unit.choice
    if kind == TOP:
        product = learn_top_outputs(rows[0][:, 0], w[0, 0], bias[0, 0], size)
        if unit.first.is_table:
            del product["vectors"]  # the rows of the table, which the model keeps
        return ProductReplacement(kind, product_arrays(product))
    if kind not in (CODES, FACTORS):
        return ProductReplacement(kind, learn_product(kind, size, rows, w, bias, unit.steps))
    kernel = None
    if unit.rule.needs_kernel:
        kernel, looked_up = fit_exact_kernel(rows[0][:, 0], w[0, 0], bias[0, 0], unit.form, unit.rule.exact_rows)
        rows, exact = [rows[0][looked_up]], None if exact is None else [exact[0][looked_up]]
    shares_codes = unit.form.taps > 1 and _shares_codes(unit, rows, bar)
    ops, config = [], unit.config
    for step, group in np.ndindex(*w.shape[:2]):
        x, group_w, group_bias = rows[step][:, group], w[step, group], bias[step, group]
        op = _learn_op(x, group_w, group_bias, unit.num_codebooks, unit.form, shares_codes, config, bar)
        if exact is not None:
            op = refit_tables(op, x, exact[step][:, group] @ group_w + group_bias)
        if config.method == "auto" and op.num_codebooks:  # ops that are stacked have trees of one kind
            config = dataclasses.replace(config, method=method_of(op.trees))
        op = first_tap(op, unit.form.taps) if shares_codes else op
        ops.append(dataclasses.replace(op, weights=jnp.asarray(group_w)) if keep_weights else op)
    op = _stacked(ops, unit.stack_shape)
    if unit.num_codebooks and unit.form.taps == 1 and kernel is None and unit.rows_per_call <= SMALL_BATCH:
        op = with_small_batch_tables(op)
    return CodesReplacement(op, shares_codes, kernel)


def _stacked(ops: list[MaddnessOp], stack_shape: tuple[int, ...]) -> MaddnessOp:
    """Stacks the arrays of ops over new leading axes."""

    def stack(*arrays: jax.Array) -> jax.Array:
        return jnp.stack(arrays).reshape(*stack_shape, *arrays[0].shape)

    return jax.tree.map(stack, *ops)


def _learn_op(
    x: Float[np.ndarray, "rows features"],
    w: Float[np.ndarray, "features outputs"],
    bias: Float[np.ndarray, " outputs"],
    num_codebooks: int,
    form: Form,
    shares_codes: bool,
    config: FitConfig,
    bar: Progress,
) -> MaddnessOp:
    """Learns one op; with shared codes its trees are repeated for every tap."""
    w, bias = validate.product(x.shape[1], w, bias)
    if not shares_codes:
        return learn(Rows.of(np.ascontiguousarray(x)), w, bias, num_codebooks, config, bar)
    per_tap = min(max(min(num_codebooks, 1), num_codebooks // form.taps), x.shape[1] // form.taps)
    return fit_taps(np.ascontiguousarray(x), w, bias, form.taps, per_tap, config, bar)


def _shares_codes(unit: Unit, rows: Sequence[np.ndarray], bar: Progress) -> bool:
    """Whether codes of positions serve as well as codes of patches, by the error of the first op on held-out rows."""
    if unit.config.method == "int8" and (unit.rule.product == FACTORS or unit.rule.conv == "auto"):
        return False  # the whole product projects no positions
    if unit.rule.conv != "auto":
        return unit.rule.conv == "shared"
    x, w, bias = rows[0][:, 0], unit.w[0, 0], unit.bias[0, 0]
    held_out, train = split(len(x), HELD_OUT_SHARE)
    errors = []
    for shares_codes in (True, False):
        op = _learn_op(x[train], w, bias, unit.num_codebooks, unit.form, shares_codes, unit.config, bar)
        errors.append(float(np.mean((np.asarray(amm(jnp.asarray(x[held_out]), op)) - x[held_out] @ w - bias) ** 2)))
    return errors[0] <= MAX_ERROR_RATIO * errors[1]
