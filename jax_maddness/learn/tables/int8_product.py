"""Learns a whole product in int8: rounds weights per output, and chooses on held-out rows how rows are rounded.

Candidates are fixed steps per feature (`Int8Product`), and steps that fit each row (`Int8ProductByRow`), with features
as they are or balanced against their weights: a feature of large values and small weights is divided, its weights are
multiplied, so that neither spends the eight bits of the others. Which is best differs from layer to layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_maddness.core import int8
from jax_maddness.core.amm import amm
from jax_maddness.core.terms.int8_product import Int8Product, Int8ProductByRow
from jax_maddness.core.types import LEAVES, LookupTables, MaddnessOp, SplitTrees
from jax_maddness.learn import validate
from jax_maddness.learn.config import HELD_OUT_SHARE
from jax_maddness.learn.data.held_out import split
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.tables.factors import rounding, sample

MOST_HELD_OUT = 1024
"""Largest number of held-out rows on which the rounding is chosen."""


def learn(rows: Rows, w: Float[np.ndarray, "features outputs"], bias: Float[np.ndarray, " outputs"]) -> MaddnessOp:
    """Returns the op of the whole product whose rounding of rows has the least squared error on held-out rows.

    The range of a feature is that of the other rows only while the choice is made; then all rows of the sample count.
    """
    x = sample(rows)
    held_out, others = split(len(x), HELD_OUT_SHARE, MOST_HELD_OUT)
    names = list(_candidates(x[:1], w, bias))
    if not len(held_out):
        return dict(_candidates(x, w, bias))[names[0][0]]
    y = x[held_out].astype(np.float64) @ w + bias
    unit = np.abs(y).max() or 1.0  # squares of large or tiny outputs stay within float64

    def error(op: MaddnessOp) -> float:
        return float(np.square((np.asarray(jax.jit(amm)(x[held_out], op), np.float64) - y) / unit).sum())

    errors = {name: error(op) for name, op in _candidates(x[others], w, bias)}
    best = min(errors, key=lambda name: errors[name])
    return dict(_candidates(x, w, bias))[best]


def _candidates(
    x: Float[np.ndarray, "rows features"], w: Float[np.ndarray, "features outputs"], bias: np.ndarray
) -> Iterator[tuple[str, MaddnessOp]]:
    """Yields an op for each way of rounding rows, with its name."""
    center, scale = rounding(x)
    yield "fixed", _op(Int8Product, center, scale, 1.0, w, bias)
    varies = scale > 0
    largest = np.where(varies, np.abs(w).max(1), 0.0)
    powers = {"by row": np.where(varies, 1.0, 0.0), "balanced, by row": np.sqrt(largest * np.where(varies, scale, 0.0))}
    for name, weight in powers.items():
        # Only ratios matter: the greatest is a power of two near the middle of the range.
        weight = weight / (weight.max() or 1.0)
        weight = np.where(weight >= 2.0**-90, weight, 0.0)
        unit = np.ldexp(1.0, int(np.frexp(scale.max())[1]))  # rows are of magnitudes near 127 then
        yield name, _op(Int8ProductByRow, center, (weight * unit).astype(np.float32), 1 / int8.LIMIT, w, bias)


def _op(
    kind: type[Int8Product],
    center: Float[np.ndarray, " features"],
    scale: Float[np.ndarray, " features"],
    step: float,
    w: Float[np.ndarray, "features outputs"],
    bias: np.ndarray,
) -> MaddnessOp:
    """Rounds the weights to int8 for rows that are `step * q / scale + center`."""
    weights = w * np.divide(step, scale, where=scale > 0, out=np.zeros(len(scale)), dtype=np.float64)[:, None]
    unit = np.abs(weights).max(0) / int8.LIMIT
    up = np.rint(np.divide(weights, unit, where=unit > 0, out=np.zeros_like(weights))).astype(np.int8)
    out_scale, offset = validate.in_range(unit, center.astype(np.float64) @ w + bias)
    values = jnp.zeros((w.shape[1], 0, LEAVES), jnp.uint8)
    term = kind(jax.device_put(center), jax.device_put(scale), int8.grouped(up))
    return MaddnessOp(SplitTrees.placeholder(len(w), 0, 0), LookupTables(values, out_scale, offset), term=term)
