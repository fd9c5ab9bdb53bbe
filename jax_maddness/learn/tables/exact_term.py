"""w -> an exact term, and the rest of `w`, which is what codes learn:

    x @ w = x[indices] @ w[indices] + x @ down @ up + x @ rest

Features whose own outputs have most power keep their weights. What the others have to say has principal directions `v`
in output space: `down = w @ v`, `up = v^T` is the best approximation of that rank (reduced-rank regression), and the
rest has no output in these directions. Only second moments of the rows are needed; means take care of themselves, as
the tables' offset is the mean of `x @ rest`.

Measured and not better: features chosen one after the other by what they explain of the outputs together with those
that vary with them, with coefficients by least squares. It leaves less power to the codes, but larger errors: a feature
that codes know well explains most, and gains least.
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
"""Rows that the covariance is taken from, at most: a random sample."""
_SPARE, _STEPS = 16, 6  # of the subspace iteration


def split(
    rows: Rows, w: Float[np.ndarray, "features outputs"], config: FitConfig
) -> tuple[ExactTerm | None, Float[np.ndarray, "features outputs"]]:
    """The exact term that `config` asks for, and what it leaves of `w`.

    Raises:
      ValueError: more is asked for than `w` has.
    """
    validate_terms(config, *w.shape)
    if not (config.rank or config.outliers):
        return None, w
    covariance, rest = _covariance(rows), w.astype(np.float64)
    power = np.diagonal(covariance) * np.square(rest).sum(1)
    indices = np.sort(np.argsort(-power, kind="stable")[: config.outliers]).astype(np.int32)
    kept = rest[indices]
    rest[indices] = 0
    v = principal(covariance, rest, config.rank)
    down = rest @ v
    rest -= down @ v.T
    up = np.concatenate([kept, v.T])
    center = np.concatenate([rows.mean[indices], rows.mean @ down])
    term = ExactTerm(
        validate.in_range(up, center @ up)[0],
        jnp.asarray(indices) if config.outliers else None,
        validate.in_range(down, center)[0] if config.rank else None,
    )
    return term, rest.astype(np.float32)


def principal(
    covariance: Float[np.ndarray, "features features"], w: Float[np.ndarray, "features outputs"], rank: int
) -> Float[np.ndarray, "outputs rank"]:
    """Orthonormal columns: the leading principal directions of `x @ w`, by subspace iteration.

    Directions without variance stand at the end, so that `rank = min(features, outputs)` leaves nothing.
    """
    v = np.random.default_rng(0).standard_normal((w.shape[1], min(rank + _SPARE, *w.shape)))
    for _ in range(_STEPS):
        v = np.linalg.qr(w.T @ (covariance @ (w @ v)))[0]
    y = w @ v
    _, rotation = np.linalg.eigh(y.T @ covariance @ y)
    return v @ rotation[:, ::-1][:, :rank]


def _covariance(rows: Rows) -> Float[np.ndarray, "features features"]:
    """Of rows scaled by `rows.factor`."""
    order = np.random.default_rng(0).permutation(len(rows.sample))[:ROWS]
    x = rows.sample[order].astype(np.float64) * rows.factor
    x -= x.mean(0)
    return x.T @ x / len(x)
