"""int8 and low rank in place of a layer: what look-ups are measured against, and what may replace it instead.

Both multiply: int8 with a step per row of `x`, found as it comes, and one per output; low rank by the product of that
rank that is closest on captured rows. Arrays are by name, as `Learned.arrays` has those of look-ups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.learn.tables.exact_term import principal
from jax_maddness.nn.layers.contraction import Contraction
from jax_maddness.nn.layers.convolution import Convolution
from jax_maddness.nn.planning.verdict import INT8

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int8

_PREFIX = "product_"
_COVARIANCE_ROWS = 2**12


class Product(NamedTuple):
    """What stands in for layers, in place of look-ups.

    Attributes:
      kind: `"int8"` or `"low rank"`.
      held: arrays by name, stacked over the steps of a scan.
    """

    kind: str
    held: dict[str, Array]

    def arrays(self) -> dict[str, Array]:
        """By name, as modules hold them."""
        return {_PREFIX + name: array for name, array in self.held.items()}


def learn_product(
    kind: str, rank: int, rows: Sequence[np.ndarray], w: np.ndarray, bias: np.ndarray, steps: int
) -> Product:
    """The product of a unit.

    Args:
      kind: `"int8"` or `"low rank"`.
      rank: of the latter.
      rows: `[rows, 1, D]` for each step of a scan; they count for low rank only.
      w: `[steps or 1, 1, D, M]`.
      bias: `[steps or 1, 1, M]`.
      steps: of a scan; 0: there is none.
    """
    found: list[dict[str, np.ndarray]] = []
    for x, one_w, one_bias in zip(rows, w[:, 0], bias[:, 0], strict=True):
        if kind == INT8:
            w8, step = to_int8(one_w)
            found.append({"w": w8, "step": step, "bias": one_bias})
        else:
            down, up, offset = low_rank(x[:, 0], one_w, rank)
            found.append({"down": down, "up": up, "bias": offset + one_bias})
    stacked = {name: np.stack([one[name] for one in found]) for name in found[0]}
    return Product(kind, {name: jnp.asarray(a if steps else a[0]) for name, a in stacked.items()})


def multiply(x: Array, form: Contraction | Convolution, arrays: Mapping[str, Any]) -> Array:
    """All outputs of the unit for its layers' input; of a convolution's, int8 forms patches, a block at a time."""
    held = {name.removeprefix(_PREFIX): a for name, a in arrays.items()}
    if isinstance(form, Contraction):
        return of_rows(form.rows(x), held)
    if "down" in held:
        down, up, bias = (held[name].astype(x.dtype) for name in ("down", "up", "bias"))
        return form.product(form.padded(x), down) @ up + bias
    return form.map_patches(lambda rows: of_rows(rows[..., 0, :], held), x)


def of_rows(x: Float[Array, "... features"], held: Mapping[str, Any]) -> Float[Array, "... outputs"]:
    """The same of rows."""
    bias = held["bias"].astype(x.dtype)
    if "down" in held:
        return x @ held["down"].astype(x.dtype) @ held["up"].astype(x.dtype) + bias
    return int8_dynamic(x, held["w"], held["step"]) + bias


@jax.custom_vjp
def int8_dynamic(x: Array, w8: Array, w_step: Array) -> Array:
    """`x @ w` with a step per row of `x`, found as it comes, and one per column of `w`.

    The derivative with respect to `x` is that of the product with the rounded `w`.
    """
    step = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-30) / 127
    product = jnp.matmul(jnp.round(x / step).astype(jnp.int8), w8, preferred_element_type=jnp.int32)
    return (product * (step * w_step)).astype(x.dtype)


def _backward(held: tuple[Array, Array], dy: Array) -> tuple[Array, np.ndarray, Array]:
    w8, w_step = held
    none = np.zeros(w8.shape, jax.dtypes.float0)
    return (dy * w_step) @ w8.T.astype(dy.dtype), none, jnp.zeros_like(w_step)


int8_dynamic.defvjp(lambda x, w8, w_step: (int8_dynamic(x, w8, w_step), (w8, w_step)), _backward)


def to_int8(
    w: Float[np.ndarray, "features outputs"],
) -> tuple[Int8[np.ndarray, "features outputs"], Float[np.ndarray, " outputs"]]:
    """What `int8_dynamic` takes: `w` in steps of its columns' 127th parts."""
    step = np.maximum(np.abs(w).max(0), 1e-30) / 127
    return np.round(w / step).astype(np.int8), step.astype(np.float32)


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
