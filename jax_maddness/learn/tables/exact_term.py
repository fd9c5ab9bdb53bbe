"""Splits `w` into an exact term and a remainder, whose product the look-ups approximate:

    x @ w = x[indices] @ w[indices] + x @ down @ up + x @ remainder

The features that add most to the variance of the outputs keep their weights. The product of the others has principal
directions `v` in output space: `down = w @ v`, `up = v^T` is the best approximation of that rank (reduced-rank
regression), and the product with the remainder is 0 in these directions. Only second moments of the rows are needed:
the offset of the tables contains the mean of `x @ remainder`.

One alternative was measured and was not better: choosing features one after the other by how much of the outputs they
explain, together with the features that vary with them, with coefficients by least squares. It leaves less variance to
the codes, but larger errors: the feature that explains most is one that codes approximate well, and so gains least.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_maddness.core.types import ExactTerm
from jax_maddness.learn import validate
from jax_maddness.learn.config import FitConfig, validate_terms
from jax_maddness.learn.data.rows import Rows

ROWS = 2**14
"""Largest number of rows that the covariance is computed from: a random sample."""
_SPARE, _STEPS = 16, 6  # directions beyond the rank, and steps, of the subspace iteration


def split(
    rows: Rows, w: Float[np.ndarray, "features outputs"], config: FitConfig
) -> tuple[ExactTerm | None, Float[np.ndarray, "features outputs"]]:
    """Returns the exact term that `config` asks for (None for none), and the remainder of `w`.

    Args:
      rows: the training rows.
      w: weights.
      config: options of learning; `rank` and `outliers` are the size of the exact term.

    Raises:
      ValueError: `config` asks for a larger rank or more features than `w` has, or the term's values overflow float32.
    """
    validate_terms(config, *w.shape)
    if not (config.rank or config.outliers):
        return None, w
    covariance, remainder = _covariance(rows), w.astype(np.float64)
    energy = np.diagonal(covariance) * np.square(remainder).sum(1)
    indices = np.sort(np.argsort(-energy, kind="stable")[: config.outliers]).astype(np.int32)
    kept = remainder[indices]
    remainder[indices] = 0  # these features are exact already, so no direction should be spent on them
    v = principal(covariance, remainder, config.rank)
    down = remainder @ v
    remainder -= down @ v.T
    up = np.concatenate([kept, v.T])
    # The products with the mean are computed only to validate that they fit into float32.
    center = np.concatenate([rows.mean[indices], rows.mean @ down])
    term = ExactTerm(
        validate.in_range(up, center @ up)[0],
        jnp.asarray(indices) if config.outliers else None,
        validate.in_range(down, center)[0] if config.rank else None,
    )
    return term, remainder.astype(np.float32)


def principal(
    covariance: Float[np.ndarray, "features features"], w: Float[np.ndarray, "features outputs"], rank: int
) -> Float[np.ndarray, "outputs rank"]:
    """Returns the leading principal directions of `x @ w`, as orthonormal columns, by subspace iteration.

    Directions without variance stand at the end, so that `rank = min(features, outputs)` leaves no remainder.
    """
    v = np.random.default_rng(0).standard_normal((w.shape[1], min(rank + _SPARE, *w.shape)))
    for _ in range(_STEPS):
        v = np.linalg.qr(w.T @ (covariance @ (w @ v)))[0]
    y = w @ v
    _, rotation = np.linalg.eigh(y.T @ covariance @ y)
    return v @ rotation[:, ::-1][:, :rank]


def _covariance(rows: Rows) -> Float[np.ndarray, "features features"]:
    """Returns the covariance of at most `ROWS` rows, scaled by `rows.factor`, in float64."""
    order = np.random.default_rng(0).permutation(len(rows.sample))[:ROWS]
    x = rows.sample[order].astype(np.float64) * rows.factor
    x -= x.mean(0)
    return x.T @ x / len(x)
