"""codes -> prototypes: what each code stands for, by ridge regression (section 4.2, equation 8).

With `G` [rows, 16 C] the one-hot codes of the training rows, the prototypes `P` [16 C, D] minimise

    |x - G P - 1 i|^2 + ridge * |P - P_0|^2

where `P_0` are the codebooks' own bucket means (zero outside of the codebook's features) and `i` is an intercept that
costs nothing. The paper prints `P_0 = 0`, its code regresses what the bucket means leave, as here: with thousands of
rows that is the same, with a hundred the error of `P_0 = 0` is up to 4 times larger.

Only `G^T G` and `G^T x` are needed: `Statistics`, which add up over blocks of rows. Where the codes come from plays no
part: every method ends here.
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

_dot = functools.partial(jnp.matmul, precision="highest")
_POWER_STEPS = 8  # of the estimate of the condition: within a factor of two


class Solution(NamedTuple):
    """What `ridge_regression` found: `weights` and `intercept` are NaN where f32 cannot solve the system.

    `condition` is an estimate of the ratio of the scaled system's largest eigenvalue to its smallest: relative errors
    of the solution are about `condition * 2**-24`, squared after the refinement.
    """

    weights: Float[Array, "codes columns"]
    intercept: Float[Array, " columns"]
    condition: Float[Array, ""]


def bucket_means(statistics: Statistics, own: Bool[Array, "codebooks features"]) -> Float[Array, "codes features"]:
    """The mean of each bucket in the codebook's own features, 0 elsewhere and for codes without rows."""
    means = statistics.sums / jnp.maximum(statistics.counts, 1)[:, None]
    return jnp.where(jnp.repeat(own, LEAVES, axis=0), means, 0.0)


@jax.jit
def explained(statistics: Statistics) -> Bool[Array, "codebooks features"]:
    """Gives every feature to the codebook whose bucket means explain most of it: `own` for trees without groups.

    The trees of contiguous groups, grown to explain their own features, mostly get these.
    """
    energy = statistics.sums**2 / jnp.maximum(statistics.counts, 1)[:, None]
    energy = energy.reshape(-1, LEAVES, energy.shape[1]).sum(1)
    return energy.argmax(0) == jnp.arange(len(energy))[:, None]


def ridge_regression(
    gram: Int32[Array, "codes codes"],
    sums: Float[Array, "codes columns"],
    rows: int | Int32[Array, ""],
    ridge: float | Float[Array, ""],
) -> Solution:
    """Minimises `|r - G W - 1 i|^2 + ridge |W|^2` over `W` and `i`, given `G^T G` and `G^T r` of `r` with mean 0.

    Eliminating the intercept centers the system: `(G^T G - g g^T / rows + ridge) W = G^T r`, `i = -(g / rows) W` with
    `g` the counts. Two steps make f32 enough:
    - Each codebook's all-ones vector is an eigenvector with eigenvalue `ridge`, to which `G^T r` is orthogonal. Raising
      that eigenvalue by `rows / 16` changes nothing in `W`, and removes the smallest eigenvalues.
    - The diagonal is scaled to one, and one step of iterative refinement follows the Cholesky solve.
    """
    counts = jnp.diagonal(gram).astype(jnp.float32)
    size = len(counts)
    system = gram.astype(jnp.float32) - counts[:, None] * (counts / rows) + ridge * jnp.eye(size, dtype=jnp.float32)
    same_codebook = jnp.arange(size)[:, None] // LEAVES == jnp.arange(size) // LEAVES
    system += same_codebook * (rows / LEAVES**2)
    scale = lax.rsqrt(jnp.diagonal(system))
    scaled = system * scale[:, None] * scale
    factor = jax.scipy.linalg.cho_factor(scaled, lower=True)

    def solve(right: Array) -> Array:
        return scale[:, None] * jax.scipy.linalg.cho_solve(factor, scale[:, None] * right)

    solution = solve(sums)
    solution += solve(sums - _dot(system, solution))
    condition = _largest(lambda v: _dot(scaled, v), size) * _largest(
        lambda v: jax.scipy.linalg.cho_solve(factor, v), size
    )
    return Solution(solution, -_dot(counts / rows, solution), condition)


def _largest(times: Callable[[Array], Array], size: int) -> Float[Array, ""]:
    """The largest eigenvalue of a positive definite matrix, given as a function of a vector, by power iteration."""

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
    """Float tables: `prototypes @ w` [16 C, outputs], and `intercept @ w`.

    Regression is linear in its targets, so prototypes for `x` times `w` are the prototypes for `x @ w`: with fewer
    outputs than features the product comes first, and the system is solved for fewer right-hand sides.

    Args:
      statistics: of the training rows, centered by column: only differences from the mean should be left to f32.
      own: the features in which a codebook's bucket means are what the penalty shrinks toward.
      w: the weights.
      rows: how many rows `statistics` counted.
      ridge: weight of the penalty, in rows.
    """
    means = bucket_means(statistics, own)
    sums = statistics.sums - _dot(statistics.gram.astype(jnp.float32), means)
    if w.shape[1] < w.shape[0]:
        found = ridge_regression(statistics.gram, _dot(sums, w), rows, ridge)
        return found._replace(weights=_dot(means, w) + found.weights)
    found = ridge_regression(statistics.gram, sums, rows, ridge)
    return found._replace(weights=_dot(means + found.weights, w), intercept=_dot(found.intercept, w))
