"""Look up, then rescore, inside a layer: rows of abnormal scale stay exact, and exact products decide a maximum.

Look-ups are worst on rows unlike those that they were learned from, and a few of these can decide a maximum over
positions. Both remedies need the kernel beside the tables, and cost a fixed share of the exact product.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_maddness.nn.layers.contraction import Contraction
from jax_maddness.nn.layers.convolution import Convolution
from jax_maddness.retrieval.outlier_rows import fit_outlier_rows
from jax_maddness.retrieval.rescore import rescore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Array, Bool, Float, Int32

Greatest = Callable[["Array", int], "tuple[Array, Array]"]
PREFIX = "rescore_"
"""Names of the arrays of an `ExactKernel` among those of a module begin with this."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExactKernel:
    """What exact products in a replaced layer need.

    Attributes:
      kernel: rows are outputs, as they are read one by one; a run is what lies in a row in the input: the features of
        all taps along the last dimension, or of one where it is dilated.
      bias: zeros where the layer has none.
      center, scale: mean and standard deviation of each feature at a position.
    """

    kernel: Float[Array, "runs outputs run*features"]
    bias: Float[Array, " outputs"]
    center: Float[Array, " features"]
    scale: Float[Array, " features"]

    def distance(self, x: Float[Array, "... features"]) -> Float[Array, "..."]:
        """Mean square, in standard deviations, of a position's distance from the mean; infinite where there is NaN."""
        square = jnp.square((x.astype(jnp.float32) - self.center) * (1 / self.scale)).mean(-1)
        return jnp.where(jnp.isnan(square), jnp.inf, square)


def fit_exact_kernel(
    rows: Float[np.ndarray, "rows patch"],
    w: Float[np.ndarray, "patch outputs"],
    bias: Float[np.ndarray, " outputs"],
    form: Contraction | Convolution,
    exact_rows: float,
) -> tuple[ExactKernel, Bool[np.ndarray, " rows"]]:
    """What to check with, and which of the rows will be left to look-ups: all but the `exact_rows` farthest."""
    taps, run = (form.taps, form.run) if isinstance(form, Convolution) else (1, 1)
    positions = rows.reshape(-1, rows.shape[1] // taps)
    rule = fit_outlier_rows(positions, exact_rows or 0.5)
    kernel = jnp.asarray(w.reshape(taps // run, run * positions.shape[1], -1).swapaxes(1, 2))
    exact_kernel = ExactKernel(kernel, jnp.asarray(bias), rule.center, rule.scale)
    far = np.asarray(exact_kernel.distance(jnp.asarray(positions))).reshape(len(rows), taps).mean(1)
    usual = np.ones(len(rows), bool)
    usual[np.argsort(-far, kind="stable")[: round(exact_rows * len(rows))]] = False
    return exact_kernel, usual


def to_arrays(exact_kernel: ExactKernel | None) -> dict[str, Array]:
    """By name, as modules hold them."""
    fields = dataclasses.fields(ExactKernel) if exact_kernel is not None else ()
    return {f"{PREFIX}{field.name}": getattr(exact_kernel, field.name) for field in fields}


def of_arrays(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], ExactKernel | None]:
    """The other arrays, and what `to_arrays` took apart."""
    mine = {name[len(PREFIX) :]: array for name, array in arrays.items() if name.startswith(PREFIX)}
    others = {name: array for name, array in arrays.items() if not name.startswith(PREFIX)}
    return others, ExactKernel(**mine) if mine else None


def num_exact(share: float, rows: int) -> int:
    """How many of so many rows stay exact."""
    return min(rows, math.ceil(share * rows)) if share else 0


def with_exact_rows(
    x: Array, y: Array, form: Contraction | Convolution, exact_kernel: ExactKernel, share: float
) -> Array:
    """`y`, with the products of the farthest rows exact: of each example, where an example has several rows.

    Args:
      x: rows [..., features], or a convolution's padded input.
      y: by look-ups, [..., outputs].
      form: how x becomes rows.
      exact_kernel: the exact product.
      share: of the rows.
    """
    view = _view(x, y.shape[:-1], form)
    where = view.farthest(exact_kernel, share)
    flat = y.reshape(*view.shape, -1)
    exact = view.products_of(where, exact_kernel)
    flat = flat.at[jnp.arange(len(flat))[:, None], where].set(exact.astype(y.dtype), unique_indices=True)
    return flat.reshape(y.shape)


def maximum(
    x: Float[Array, "batch ... features"],
    rows: tuple[int, ...],
    greatest: Greatest,
    value: Callable[[Array], Array],
    form: Convolution,
    exact_kernel: ExactKernel,
    share: float,
    num_candidates: int,
) -> Float[Array, "batch outputs"]:
    """The greatest output over all positions.

    Gradients: tables of floats have that of what look-ups say, `x` that of the exact products.

    Args:
      x: padded.
      rows: the shape of what there is of them, [batch, *positions].
      greatest: (positions that do not count [batch, positions], k) -> the greatest scores by look-ups over the others,
        and where they are, [batch, k, outputs].
      value: of the scores [..., outputs].
      form: the convolution.
      exact_kernel: the exact product.
      share: of the positions that are exact; no look-up decides about them.
      num_candidates: so many of the others are multiplied exactly for every output; 0: look-ups have the last word.
    """
    view = _view(x, rows, form)
    where = view.farthest(exact_kernel, share)
    skipped = (jnp.arange(view.shape[1]) == where[..., None]).any(1)
    best, at = greatest(skipped, max(num_candidates, 1))
    training = not jnp.issubdtype(best.dtype, jnp.integer)
    y = said = value(best[:, 0])
    if num_candidates:
        y = view.products_at(at, exact_kernel).max(1)
        y = y + said - lax.stop_gradient(said) if training else y
    elif training:
        found = view.products_at(at, exact_kernel)[:, 0]
        y = said + found - lax.stop_gradient(found)
    return jnp.maximum(y, view.products_of(where, exact_kernel).max(1)) if share else y


@dataclasses.dataclass(frozen=True)
class _View:
    """An input as [batch, places, features], and the places that each row reads: where each run of it begins."""

    x: Float[Array, "batch places features"]
    shape: tuple[int, int]
    read: Callable[[Array], Array]
    by_tap: Callable[[Array], Array]

    def farthest(self, exact_kernel: ExactKernel, share: float) -> Int32[Array, "batch rows"]:
        """Which rows stay exact."""
        count = num_exact(share, self.shape[1])
        if not count:
            return jnp.zeros((self.shape[0], 0), jnp.int32)
        far = self.by_tap(exact_kernel.distance(self.x)).reshape(*self.shape, -1).mean(-1)
        return lax.top_k(lax.stop_gradient(far), count)[1]

    def products_of(self, rows: Int32[Array, "batch k"], exact_kernel: ExactKernel) -> Float[Array, "batch k outputs"]:
        """All outputs of few rows."""
        runs, _, length = exact_kernel.kernel.shape
        places = self.read(rows[..., None])[..., 0, :, None] + jnp.arange(length // self.x.shape[-1])
        read = jax.vmap(lambda x, at: x[at])(self.x, places).reshape(*rows.shape, runs, length)
        parts = [
            jnp.einsum("bkd,md->bkm", read[:, :, run], kernel, precision=lax.Precision.HIGHEST)
            for run, kernel in enumerate(exact_kernel.kernel)
        ]
        return sum(parts[1:], parts[0]) + exact_kernel.bias

    def products_at(
        self, at: Int32[Array, "batch k outputs"], exact_kernel: ExactKernel
    ) -> Float[Array, "batch k outputs"]:
        """An exact product for every output, each of another row."""
        batch, places, features = self.x.shape
        vectors = self.x.reshape(batch * places, features)
        rows = self.read(at) + (places * jnp.arange(batch, dtype=jnp.int32))[:, None, None, None]
        rows = jnp.where(at[..., None] < 0, -1, rows)  # no such row: the product is -inf
        by_output = jnp.moveaxis(rows, 2, 0).reshape(
            at.shape[2], batch * at.shape[1], rows.shape[-1]
        )  # [outputs, batch * k, runs]
        parts = [rescore(kernel, vectors, by_output[..., run]) for run, kernel in enumerate(exact_kernel.kernel)]
        return jnp.moveaxis(sum(parts[1:], parts[0]).reshape(at.shape[2], batch, at.shape[1]), 0, 2) + exact_kernel.bias


def _view(x: Array, rows: tuple[int, ...], form: Contraction | Convolution) -> _View:
    """`rows` is the shape of the rows that there are."""
    if isinstance(form, Convolution):
        batch, *positions = x.shape[:-1]
        out = rows[1:]
        return _View(
            x.reshape(batch, -1, x.shape[-1]),
            (batch, math.prod(out)),
            lambda at: form.places(at, out, tuple(positions))[..., :: form.run],
            lambda of: form.gathered(of.reshape(batch, *positions), out),
        )
    examples = rows[0] if len(rows) > 1 else 1
    shape = (examples, math.prod(rows) // max(examples, 1))
    return _View(x.reshape(*shape, x.shape[-1]), shape, lambda at: at[..., None], lambda of: of)
