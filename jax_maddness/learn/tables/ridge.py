"""Prototypes by ridge regression on the codes (Blalock & Guttag 2021, section 4.2, equation 8).

With `G` [rows, 16 C] the one-hot codes of the training rows, the prototypes `P` [16 C, D] minimize

    |x - G P - 1 i|^2 + ridge * |P - P_0|^2

where `P_0` are the codebooks' own bucket means (zero outside of the codebook's features) and `i` is an intercept
without a penalty. The paper prints `P_0 = 0`; its code, as this one, regresses the residual of the bucket means. With
thousands of rows both give the same error; with a hundred rows, that of `P_0 = 0` is up to 4 times larger.

Only `G^T G` and `G^T x` are needed (`Statistics`), and these add up over blocks of rows. The regression is the same for
all methods: it does not depend on the kind of trees that the codes come from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from jax_maddness.core.types import LEAVES
from jax_maddness.learn.data.statistics import Statistics

# Accelerators multiply f32 in fewer bits by default, which is too coarse for a badly conditioned system.
_dot = functools.partial(jnp.matmul, precision="highest")
_POWER_STEPS = 8  # steps of power iteration: they estimate the condition within a factor of two


class Solution(NamedTuple):
    """The solution of a ridge regression; `weights` and `intercept` are NaN where f32 cannot solve the system.

    Attributes:
      weights: coefficient of each code for each column of the targets.
      intercept: constant of each column.
      condition: estimate of the ratio of the scaled system's largest eigenvalue to its smallest. Relative errors of the
        solution are about `condition * 2**-24`, and about the square of that after the refinement.
    """

    weights: Float[Array, "codes columns"]
    intercept: Float[Array, " columns"]
    condition: Float[Array, ""]


def bucket_means(statistics: Statistics, own: Bool[Array, "codebooks features"]) -> Float[Array, "codes features"]:
    """Returns the mean of each bucket in the codebook's own features; 0 elsewhere and for codes without rows."""
    means = statistics.sums / jnp.maximum(statistics.counts, 1)[:, None]
    return jnp.where(jnp.repeat(own, LEAVES, axis=0), means, 0.0)


@jax.jit
def explained(statistics: Statistics) -> Bool[Array, "codebooks features"]:
    """Assigns every feature to the codebook whose bucket means explain most of it, for trees that have no groups.

    Trees that were grown to explain contiguous groups of features mostly get these features.
    """
    # Rows are centered, so counts times squared bucket means are the part of a feature's squares that codes explain.
    energy = statistics.sums**2 / jnp.maximum(statistics.counts, 1)[:, None]
    energy = energy.reshape(-1, LEAVES, energy.shape[1]).sum(1)
    return energy.argmax(0) == jnp.arange(len(energy))[:, None]


def ridge_regression(
    gram: Int32[Array, "codes codes"],
    sums: Float[Array, "codes columns"],
    rows: int | Int32[Array, ""],
    ridge: float | Float[Array, ""],
) -> Solution:
    """Minimizes `|r - G W - 1 i|^2 + ridge |W|^2` over `W` and `i`, given `G^T G` and `G^T r` for `r` with mean 0.

    Eliminating the intercept centers the system: `(G^T G - g g^T / rows + ridge) W = G^T r`, `i = -(g / rows) W` with
    `g` the counts. Two steps make f32 enough:
    - Each codebook's all-ones vector is an eigenvector with eigenvalue `ridge`, to which `G^T r` is orthogonal. Raising
      that eigenvalue by `rows / 16` changes nothing in `W`, and removes the smallest eigenvalues.
    - The diagonal is scaled to one, and one step of iterative refinement follows the Cholesky solve.

    Args:
      gram: `G^T G`, exact counts.
      sums: `G^T r`.
      rows: number of rows.
      ridge: weight of the penalty, in rows.
    """
    counts = jnp.diagonal(gram).astype(jnp.float32)
    size = len(counts)
    system = gram.astype(jnp.float32) - counts[:, None] * (counts / rows) + ridge * jnp.eye(size, dtype=jnp.float32)
    # Every row has one code per codebook, so centered counts of a codebook add up to 0: only the ridge keeps these C
    # directions from being singular. A block of constants raises exactly them.
    same_codebook = jnp.arange(size)[:, None] // LEAVES == jnp.arange(size) // LEAVES
    system += same_codebook * (rows / LEAVES**2)
    # Counts of rare and common codes differ by orders of magnitude; an equal diagonal conditions the system better.
    scale = lax.rsqrt(jnp.diagonal(system))
    scaled = system * scale[:, None] * scale
    factor = jax.scipy.linalg.cho_factor(scaled, lower=True)

    def solve(right: Array) -> Array:
        return scale[:, None] * jax.scipy.linalg.cho_solve(factor, scale[:, None] * right)

    solution = solve(sums)
    # The refinement corrects the rounding of the f32 factor, at the cost of one more product and solve.
    solution += solve(sums - _dot(system, solution))
    # The inverse's largest eigenvalue is the reciprocal of the smallest; its products are solves with the same factor.
    condition = _largest_eigenvalue(lambda v: _dot(scaled, v), size) * _largest_eigenvalue(
        lambda v: jax.scipy.linalg.cho_solve(factor, v), size
    )
    return Solution(solution, -_dot(counts / rows, solution), condition)


def _largest_eigenvalue(times: Callable[[Array], Array], size: int) -> Float[Array, ""]:
    """Returns the largest eigenvalue of a positive definite matrix by power iteration.

    Args:
      times: function that multiplies the matrix with a column vector `[size, 1]`.
      size: number of rows of the matrix.
    """

    def step(_: int, v: Array) -> Array:
        v = times(v)
        return v / jnp.linalg.norm(v)

    start = jax.random.normal(jax.random.key(0), (size, 1))
    return jnp.linalg.norm(times(lax.fori_loop(0, _POWER_STEPS, step, start / jnp.linalg.norm(start))))


@jax.jit
def fit_prototypes(
    statistics: Statistics,
    own: Bool[Array, "codebooks features"],
    w: Float[Array, "features outputs"],
    rows: Int32[Array, ""],
    ridge: Float[Array, ""],
) -> Solution:
    """Solves the float tables: `prototypes @ w` [16 C, outputs], and `intercept @ w` (section 4.2, equation 8).

    Regression is linear in its targets, so prototypes for `x` times `w` are the prototypes for `x @ w`: with fewer
    outputs than features the product comes first, and the system is solved for fewer right-hand sides.

    Args:
      statistics: statistics of the training rows about their mean; a large mean would cost f32 its precision.
      own: features in which the prototypes of each codebook shrink toward its bucket means.
      w: weights.
      rows: number of rows that `statistics` counted.
      ridge: weight of the penalty, in rows.
    """
    means = bucket_means(statistics, own)
    # Regressing the residual of the bucket means, with a penalty toward 0, is the same as shrinking toward the means.
    sums = statistics.sums - _dot(statistics.gram.astype(jnp.float32), means)
    if w.shape[1] < w.shape[0]:
        solution = ridge_regression(statistics.gram, _dot(sums, w), rows, ridge)
        return solution._replace(weights=_dot(means, w) + solution.weights)
    solution = ridge_regression(statistics.gram, sums, rows, ridge)
    return solution._replace(weights=_dot(means + solution.weights, w), intercept=_dot(solution.intercept, w))
