"""Look up, then rescore, inside a layer: rows of abnormal scale stay exact, and exact products decide a maximum.

Look-ups are worst on rows unlike those that they were learned from, and a few of these can decide a maximum over
positions. Both remedies need the kernel beside the tables, and cost a fixed share of the exact product.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from jax_maddness.nn.layers.form import Form, RowView
from jax_maddness.retrieval.outlier_rows import fit_outlier_rows
from jax_maddness.retrieval.rescore import rescore

Greatest = Callable[["Array", int], "tuple[Array, Array]"]
PREFIX = "rescore_"
"""Prefix of the names of an `ExactKernel`'s arrays among those of a module."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExactKernel:
    """The arrays that exact products in a replaced layer need.

    Attributes:
      kernel: the weights, transposed, as outputs are read one by one. A run is a stretch of a row that is contiguous
        in the input: all taps along the last dimension, or one tap where the kernel is dilated in it.
      bias: zeros where the layer has none.
      center, scale: mean and standard deviation of each feature at a position.
    """

    kernel: Float[Array, "runs outputs run*features"]
    bias: Float[Array, " outputs"]
    center: Float[Array, " features"]
    scale: Float[Array, " features"]

    def distance(self, x: Float[Array, "... features"]) -> Float[Array, "..."]:
        """Returns the mean square distance from the center, in standard deviations; infinity where `x` has NaN."""
        square = jnp.square((x.astype(jnp.float32) - self.center) * (1 / self.scale)).mean(-1)
        return jnp.where(jnp.isnan(square), jnp.inf, square)


def fit_exact_kernel(
    rows: Float[np.ndarray, "rows patch"],
    w: Float[np.ndarray, "patch outputs"],
    bias: Float[np.ndarray, " outputs"],
    form: Form,
    exact_rows: float,
) -> tuple[ExactKernel, Bool[np.ndarray, " rows"]]:
    """Fits the statistics that tell outlier rows, and lays the weights out for exact products.

    Args:
      rows: captured rows of the layer.
      w, bias: its exact product.
      form: its form.
      exact_rows: the share of the rows that stay exact.

    Returns:
      The exact kernel, and a mask of the rows that are left to look-ups: all but the `exact_rows` farthest.
    """
    taps, run = form.taps, form.run
    positions = rows.reshape(-1, rows.shape[1] // taps)
    outliers = fit_outlier_rows(positions, exact_rows or 0.5)  # any share: only the statistics are used here
    kernel = jnp.asarray(w.reshape(taps // run, run * positions.shape[1], -1).swapaxes(1, 2))
    exact_kernel = ExactKernel(kernel, jnp.asarray(bias), outliers.center, outliers.scale)
    distances = np.asarray(exact_kernel.distance(jnp.asarray(positions))).reshape(len(rows), taps).mean(1)
    looked_up = np.ones(len(rows), bool)
    looked_up[np.argsort(-distances, kind="stable")[: round(exact_rows * len(rows))]] = False
    return exact_kernel, looked_up


def to_arrays(exact_kernel: ExactKernel | None) -> dict[str, Array]:
    """Returns the arrays by name, as modules hold them; none for None."""
    fields = dataclasses.fields(ExactKernel) if exact_kernel is not None else ()
    return {f"{PREFIX}{field.name}": getattr(exact_kernel, field.name) for field in fields}


def of_arrays(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], ExactKernel | None]:
    """Splits a module's arrays into all others and the exact kernel, if there is one; the inverse of `to_arrays`."""
    fields = {name[len(PREFIX) :]: array for name, array in arrays.items() if name.startswith(PREFIX)}
    others = {name: array for name, array in arrays.items() if not name.startswith(PREFIX)}
    return others, ExactKernel(**fields) if fields else None


def num_exact(share: float, rows: int) -> int:
    """Returns how many of `rows` rows stay exact: their `share`, rounded up."""
    return min(rows, math.ceil(share * rows)) if share else 0


def with_exact_rows(x: Array, y: Array, form: Form, exact_kernel: ExactKernel, share: float) -> Array:
    """Replaces the outputs of the farthest rows by exact products, in each example that has several rows.

    Args:
      x: the layer's prepared input.
      y: outputs by look-ups, [*row_shape, outputs].
      form: the layer's form.
      exact_kernel: the exact product.
      share: the share of the rows that are exact.

    Returns:
      The outputs, shape and dtype as `y`.
    """
    view = form.row_view(x, y.shape[:-1])
    farthest = _farthest(view, exact_kernel, share)
    flat = y.reshape(*view.shape, -1)
    exact = _products_of_rows(view, farthest, exact_kernel)
    flat = flat.at[jnp.arange(len(flat))[:, None], farthest].set(exact.astype(y.dtype), unique_indices=True)
    return flat.reshape(y.shape)


def maximum(
    x: Float[Array, "batch ... features"],
    row_shape: tuple[int, ...],
    greatest: Greatest,
    value: Callable[[Array], Array],
    form: Form,
    exact_kernel: ExactKernel,
    share: float,
    num_candidates: int,
) -> Float[Array, "batch outputs"]:
    """Computes the maximum of each output over all positions.

    Gradients: float tables get the gradient of the look-ups' values, `x` that of the exact products.

    Args:
      x: the layer's prepared input.
      row_shape: [batch, *positions] of the layer's rows.
      greatest: maps a mask of positions to skip [batch, positions] and k to the k greatest scores by look-ups over
        the other positions, and to these positions, both [batch, k, outputs].
      value: maps scores [..., outputs] to outputs.
      form: the layer's form.
      exact_kernel: the exact product.
      share: the share of the positions that are exact, which look-ups skip.
      num_candidates: the number of candidates that look-ups propose for each output, and exact products decide
        between; 0: look-ups decide.
    """
    view = form.row_view(x, row_shape)
    farthest = _farthest(view, exact_kernel, share)
    skipped = (jnp.arange(view.shape[1]) == farthest[..., None]).any(1)
    best, candidates = greatest(skipped, max(num_candidates, 1))
    training = not jnp.issubdtype(best.dtype, jnp.integer)
    y = looked_up = value(best[:, 0])
    # `a - stop_gradient(a)` is zero, but has the gradient of `a`.
    if num_candidates:
        y = _products_of_outputs(view, candidates, exact_kernel).max(1)
        y = y + looked_up - lax.stop_gradient(looked_up) if training else y
    elif training:
        exact = _products_of_outputs(view, candidates, exact_kernel)[:, 0]
        y = looked_up + exact - lax.stop_gradient(exact)
    return jnp.maximum(y, _products_of_rows(view, farthest, exact_kernel).max(1)) if share else y


def _farthest(view: RowView, exact_kernel: ExactKernel, share: float) -> Int32[Array, "batch rows"]:
    """Returns the rows of each example that stay exact."""
    count = num_exact(share, view.shape[1])
    if not count:
        return jnp.zeros((view.shape[0], 0), jnp.int32)
    distances = view.by_tap(exact_kernel.distance(view.vectors)).reshape(*view.shape, -1).mean(-1)
    return lax.top_k(lax.stop_gradient(distances), count)[1]


def _products_of_rows(
    view: RowView, rows: Int32[Array, "batch k"], exact_kernel: ExactKernel
) -> Float[Array, "batch k outputs"]:
    """Computes all outputs of a few rows."""
    runs, _, length = exact_kernel.kernel.shape
    places = view.run_starts(rows[..., None])[..., 0, :, None] + jnp.arange(length // view.vectors.shape[-1])
    read = jax.vmap(lambda vectors, at: vectors[at])(view.vectors, places).reshape(*rows.shape, runs, length)
    parts = [
        # HIGHEST: these products replace those of float32 layers, on TPUs, too.
        jnp.einsum("bkd,md->bkm", read[:, :, run], kernel, precision=lax.Precision.HIGHEST)
        for run, kernel in enumerate(exact_kernel.kernel)
    ]
    return sum(parts[1:], parts[0]) + exact_kernel.bias


def _products_of_outputs(
    view: RowView, rows: Int32[Array, "batch k outputs"], exact_kernel: ExactKernel
) -> Float[Array, "batch k outputs"]:
    """Computes one product for each output, each of another row; -inf where the row is negative, which is none."""
    batch, num_places, features = view.vectors.shape
    vectors = view.vectors.reshape(batch * num_places, features)
    places = view.run_starts(rows) + (num_places * jnp.arange(batch, dtype=jnp.int32))[:, None, None, None]
    places = jnp.where(rows[..., None] < 0, -1, places)
    by_output = jnp.moveaxis(places, 2, 0).reshape(rows.shape[2], batch * rows.shape[1], places.shape[-1])
    parts = [rescore(kernel, vectors, by_output[..., run]) for run, kernel in enumerate(exact_kernel.kernel)]
    products = sum(parts[1:], parts[0]).reshape(rows.shape[2], batch, rows.shape[1])
    return jnp.moveaxis(products, 0, 2) + exact_kernel.bias
