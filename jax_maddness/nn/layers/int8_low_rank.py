"""int8, low-rank and rewritten products: look-ups are measured against them, and they may replace a layer instead.

int8 takes a quantization step per row of `x`, computed at run time, and one per output. A low-rank product is the one
of its rank that is closest on captured rows. A rewritten product is the same as the layer's: a depthwise convolution as
the sum over its taps of shifted inputs times weights, a 1x1 convolution as a product, which are faster on CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from jax_maddness.nn.layers.form import Form
from jax_maddness.nn.layers.kinds import INT8, REWRITTEN
from jax_maddness.nn.layers.promotion import with_standard_promotion
from jax_maddness.nn.layers.top_outputs import top_outputs

_PREFIX = "product_"
_MAX_ROWS = 2**12
"""Number of captured rows that a low-rank product is computed from."""
_SPARE, _STEPS = 8, 12
"""Further directions, and steps, of the subspace iteration."""


def learn_product(
    kind: str, rank: int, rows: Sequence[np.ndarray], w: np.ndarray, bias: np.ndarray, steps: int
) -> dict[str, Array]:
    """Learns a product for layers that read the same rows.

    Args:
      kind: `"int8"`, `"low rank"` or `"rewritten"`.
      rank: the rank of a low-rank product.
      rows: `[rows, 1, D]` for each step of a scan; only a low-rank product depends on them.
      w: `[steps or 1, groups, D, M]`; only a rewritten product has several groups.
      bias: `[steps or 1, groups, M]`.
      steps: of a scan; 0 where there is none.

    Returns:
      The product's arrays by name, as modules hold them, stacked over the steps of a scan.
    """
    by_step = [_learn_step(kind, rank, *step) for step in zip(rows, w, bias, strict=True)]
    stacked = {name: np.stack([arrays[name] for arrays in by_step]) for name in by_step[0]}
    return product_arrays({name: jnp.asarray(a if steps else a[0]) for name, a in stacked.items()})


def _learn_step(kind: str, rank: int, x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """Learns the product of one step of a scan."""
    if kind == REWRITTEN:
        return {"taps": w, "bias": bias.reshape(-1)}
    if kind == INT8:
        w8, step = to_int8(w[0])
        return {"w": w8, "step": step, "bias": bias[0]}
    down, up, offset = low_rank(x[:, 0], w[0], rank)
    return {"down": down, "up": up, "bias": offset + bias[0]}


def product_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays of a product by the names that modules hold them by."""
    return {_PREFIX + name: array for name, array in arrays.items()}


def with_table(arrays: Mapping[str, Any], table: Array) -> Mapping[str, Any]:
    """Adds the exact vectors to the arrays of `attend`: the rows of the table, which are not held twice."""
    return {**arrays, _PREFIX + "vectors": table} if _PREFIX + "codes" in arrays else arrays


def multiply(x: Array, form: Form, arrays: Mapping[str, Any], top: int = 1, num_candidates: int = 1) -> Array:
    """Computes all outputs of the product for a layer's input.

    Args:
      x: the layer's input, in the dtype in which it computes.
      form: the layer's form.
      arrays: as `learn_product` returns them, of one step.
      top, num_candidates: for a layer whose greatest outputs are exact.

    Returns:
      The outputs, [*row_shape, outputs].
    """
    product = {name.removeprefix(_PREFIX): a for name, a in arrays.items()}
    if "codes" in product:
        return top_outputs(x, form, product, top, num_candidates)
    if "taps" in product:
        taps, bias = (product[name].astype(jnp.float32) for name in ("taps", "bias"))
        return form.rewritten_product(x.astype(jnp.float32), taps) + bias
    if "down" in product:
        down, up, bias = (product[name].astype(x.dtype) for name in ("down", "up", "bias"))
        return form.exact_product(x, down) @ up + bias
    bias = product["bias"].astype(x.dtype)
    return form.map_rows(lambda rows: int8_dynamic(jnp.squeeze(rows, -2), product["w"], product["step"]) + bias, x)


@jax.custom_vjp
def int8_dynamic(x: Array, w8: Array, w_step: Array) -> Array:
    """Computes `x @ w` in int8, with a step per row of `x`, computed at run time, and one per column of `w`.

    The derivative with respect to `x` is that of the product with the rounded `w`.

    Args:
      x: [..., D], floats.
      w8: [D, M], int8, as `to_int8` returns it.
      w_step: [M], float32.

    Returns:
      The products, [..., M], in the dtype of `x`.
    """
    step = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-30) / 127
    product = jnp.matmul(jnp.round(x / step).astype(jnp.int8), w8, preferred_element_type=jnp.int32)
    return (product * (step * w_step)).astype(x.dtype)


@with_standard_promotion
def _backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, np.ndarray, Array]:
    w8, w_step = residuals
    none = np.zeros(w8.shape, jax.dtypes.float0)  # JAX's tangent of an integer array
    return (dy * w_step) @ w8.T.astype(dy.dtype), none, jnp.zeros_like(w_step)


int8_dynamic.defvjp(lambda x, w8, w_step: (int8_dynamic(x, w8, w_step), (w8, w_step)), _backward)


def to_int8(
    w: Float[np.ndarray, "features outputs"],
) -> tuple[Int8[np.ndarray, "features outputs"], Float[np.ndarray, " outputs"]]:
    """Rounds weights to int8, with a step per column that maps its largest entry to 127; returns both."""
    step = np.maximum(np.abs(w).max(0), 1e-30) / 127
    return np.round(w / step).astype(np.int8), step.astype(np.float32)


def low_rank(
    x: Float[np.ndarray, "rows features"], w: Float[np.ndarray, "features outputs"], rank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the low-rank product that is closest to `x @ w`: reduced-rank regression.

    Args:
      x: captured rows; the first 4,096 count.
      w: the weights.
      rank: of the product.

    Returns:
      down [features, rank], up [rank, outputs] and offset [outputs], in float32: `x @ down @ up + offset` has the least
      squared error on `x` of all products of this rank.
    """
    w = w.astype(np.float64)
    if rank >= min(w.shape):  # the whole product, whatever the rows are
        eye, offset = np.eye(min(w.shape), dtype=np.float32), np.zeros(w.shape[1], np.float32)
        down, up = (w, eye) if w.shape[1] <= w.shape[0] else (eye, w)
        return down.astype(np.float32), up.astype(np.float32), offset
    x = x[:_MAX_ROWS].astype(np.float64)
    mean = x.mean(0)
    v = _leading((x - mean) @ w, w, rank)
    down = w @ v
    offset = mean @ w - mean @ down @ v.T
    return down.astype(np.float32), v.T.astype(np.float32), offset.astype(np.float32)


def _leading(y: np.ndarray, w: np.ndarray, rank: int) -> np.ndarray:
    """Returns the leading principal directions of the products `y`, as orthonormal columns [outputs, rank].

    Where there are fewer of them than `rank`, directions of the weights follow. Nothing is larger than `w` or `y`:
    a covariance of the features would have D^2 entries, and the patch of a convolution has many features.
    """
    rng = np.random.default_rng(0)
    v = rng.standard_normal((w.shape[1], min(rank + _SPARE, *w.shape)))
    # A trace of the weights themselves decides between directions in which the rows do not vary.
    trace = 1e-12 * max(float(np.square(y).sum()), np.finfo(np.float64).tiny) / max(float(np.square(w).sum()), 1e-300)
    for _ in range(_STEPS):
        v = np.linalg.qr(y.T @ (y @ v) + trace * (w.T @ (w @ v)))[0]
    projected = y @ v
    _, rotation = np.linalg.eigh(projected.T @ projected)
    return v @ rotation[:, ::-1][:, :rank]
