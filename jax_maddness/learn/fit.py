"""x_train, w -> op: the steps of learning, composed.

x_train --grow_trees--> trees --encode--> codes --Statistics--> --fit_prototypes--> --quantize_tables--> op
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_maddness.core.encode import encode
from jax_maddness.core.types import LEAVES, LookupTables, MaddnessOp, ObliqueTrees, SplitTrees
from jax_maddness.learn import checks, oblique
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.prototypes import Statistics, fit_prototypes
from jax_maddness.learn.splits import grow_trees, subspaces
from jax_maddness.learn.tables import quantize_tables

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float

METHODS = ("paper", "oblique")
_CHUNK = 2**25  # elements that the trees of one chunk of codebooks may keep at once: 128 MB
_ROWS = 4096  # rows per block of the regression's statistics


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How `fit` learns.

    Attributes:
      method: `"paper"`: Blalock & Guttag 2021, with exact sums, and a scale and an offset per output. `"oblique"`:
        trees on projections of each codebook's features (`ObliqueTrees`), trained; it chooses its own `ridge`.
      ridge: weight of the penalty that keeps prototypes near their bucket's mean, in rows (lambda of section 4.2).
      num_candidates: features whose thresholds are searched per level and codebook (section 4.1).
    """

    method: str = "paper"
    ridge: float = 1.0
    num_candidates: int = 4

    def __post_init__(self) -> None:
        checks.config(self, METHODS)


def fit(
    x_train: Float[ArrayLike, "... features"],
    w: Float[ArrayLike, "features outputs"],
    bias: Float[ArrayLike, " outputs"] | None = None,
    *,
    num_codebooks: int,
    config: FitConfig = FitConfig(),
    keep_weights: bool = False,
    progress: bool | None = None,
) -> MaddnessOp:
    """Learns an op such that `amm(x, op)` approximates `x @ w + bias` for rows like those of `x_train`.

    The features are dealt out to `num_codebooks` contiguous groups. In each, a tree of four levels is grown that leaves
    the least squared error about its 16 bucket means (section 4.1); ridge regression over all codebooks' codes at once
    refits what each code stands for (section 4.2); its products with `w`, in 8 bits, are the op's tables. The error
    falls with more codebooks, and with more rows: have at least some hundreds, better thousands.

    Works in float32; the same inputs give the same op, bit by bit, on the same machine with the same number of threads
    (which decides the order of XLA's sums). Call it outside of `jax.jit`.

    Args:
      x_train: samples of `x`; leading dimensions are flattened to rows. Real; used as float32.
      w: the weights to multiply with.
      bias: what to add to every row of the product.
      num_codebooks: C, from 1 to the number of features. Inference costs C look-ups per row and output.
      config: how to learn.
      keep_weights: keep `w` in the op, for gradients with respect to `x`.
      progress: show a progress bar; None shows it where learning takes longer than two seconds.

    Raises:
      TypeError: an argument is of the wrong kind, is complex, or is traced by `jax.jit`, `jax.vmap` or `jax.grad`.
      ValueError: shapes do not match, there are no rows, values are NaN, infinite, or so large that `x @ w` overflows,
        or `num_codebooks` is not between 1 and the number of features.

    Example:
      >>> x = np.random.default_rng(0).standard_normal((1000, 8))
      >>> op = fit(x, np.ones((8, 3)), num_codebooks=2)
      >>> op
      MaddnessOp(8 -> 3, 2 codebooks, 272 bytes)
    """
    checks.kind(config, FitConfig, "config")
    x, w, bias = checks.arrays(x_train, w, bias)
    groups = subspaces(x.shape[1], checks.codebooks(num_codebooks, x.shape[1]))
    chunks = _chunks(groups, len(x))
    blocks = -(-len(x) // _ROWS)
    x_exponent, w_exponent = _exponent(x), _exponent(w)
    x_factor = _power_of_two(-x_exponent)
    # Learning mixes counts with floats, and vectors with matrices, whatever a caller's strict mode says.
    standard = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with standard[0], standard[1], Progress(len(chunks) + blocks + 1, progress) as bar:
        bar.stage("splits")
        own, ridge = _owned(groups, x.shape[1]), config.ridge
        trees: SplitTrees | ObliqueTrees
        if config.method == "oblique":
            trees, own, ridge = oblique.learn(np.asarray(x), np.asarray(w), len(groups), done=bar.step)[:3]
        else:
            trees = _trees(x, x_factor, chunks, len(groups), config, bar)
        bar.stage("prototypes")
        mean, statistics = _statistics(x, x_factor, trees, blocks, bar)
        bar.stage("tables")
        w_scaled = w * _power_of_two(-w_exponent)
        tables, intercept = _solve(statistics, own, w_scaled, len(x), ridge)
        values, scale, offset = quantize_tables(tables, (statistics.counts > 0).reshape(-1, LEAVES))
        offset += intercept + jnp.matmul(mean, w_scaled, precision="highest")
        scale, offset = (np.ldexp(np.asarray(a, np.float64), x_exponent + w_exponent) for a in (scale, offset))
        bar.step()
    lookup = LookupTables(values, *checks.in_range(scale, offset + np.asarray(bias, np.float64)))
    return MaddnessOp(trees, lookup, w if keep_weights else None)


def _chunks(groups: np.ndarray, rows: int) -> list[np.ndarray]:
    """Groups in chunks of one size (one compilation) whose trees fit into memory together; -1 pads the last chunk."""
    per_codebook = rows * (2 * groups.shape[1] + 32)
    count = -(-len(groups) // max(1, _CHUNK // per_codebook))
    size = -(-len(groups) // count)
    padded = np.pad(groups, ((0, count * size - len(groups)), (0, 0)), constant_values=-1)
    return list(padded.reshape(count, size, -1))


def _trees(
    x: Array, factor: np.float32, chunks: list[np.ndarray], num_codebooks: int, config: FitConfig, bar: Progress
) -> SplitTrees:
    """Split trees, grown chunk by chunk."""
    grown = []
    for chunk in chunks:
        grown.append(jax.block_until_ready(grow_trees(x, factor, chunk, num_candidates=config.num_candidates)))
        bar.step()
    indices, thresholds = (jnp.concatenate(parts)[:num_codebooks] for parts in zip(*grown, strict=True))
    return SplitTrees(indices, thresholds, x.shape[1])


def _statistics(
    x: Array, factor: np.float32, trees: SplitTrees | ObliqueTrees, blocks: int, bar: Progress
) -> tuple[Array, Statistics]:
    """The mean row, and the regression's statistics of the rows about it, block by block; both of `x * factor`."""
    mean = _mean(x, factor)
    statistics = Statistics.zeros(trees.num_codebooks, x.shape[1])
    for block in range(blocks):
        statistics = jax.block_until_ready(_add_block(statistics, x, factor, mean, trees, block))
        bar.step()
    return mean, statistics


@jax.jit
def _mean(x: Array, factor: Array) -> Array:
    return (x * factor).mean(0)


@functools.partial(jax.jit, donate_argnums=0)
def _add_block(
    statistics: Statistics, x: Array, factor: Array, mean: Array, trees: SplitTrees | ObliqueTrees, block: int
) -> Statistics:
    """Adds rows `[_ROWS * block, _ROWS * (block + 1))` of `x`; the last block starts earlier, counts only these."""
    size = min(_ROWS, len(x))
    start = jnp.minimum(block * _ROWS, len(x) - size)
    rows = lax.dynamic_slice_in_dim(x, start, size)
    own = start + jnp.arange(size) >= block * _ROWS
    return statistics.add(rows * factor - mean, encode(rows, trees), own)


def _solve(
    statistics: Statistics, own: np.ndarray, w: Array, rows: int, ridge: float
) -> tuple[Float[Array, "codebooks 16 outputs"], Float[Array, " outputs"]]:
    """`fit_prototypes`, with a tenfold `ridge` as long as f32 cannot factorise the system."""
    while True:
        tables, intercept = fit_prototypes(statistics, own, w, rows, ridge)
        if np.isfinite(checks.largest(tables)) or ridge > rows:
            return tables, intercept
        ridge *= 10


def _owned(groups: np.ndarray, num_features: int) -> np.ndarray:
    """bool [codebooks, features]: which features each codebook has."""
    return (groups[:, :, None] == np.arange(num_features)).any(1)


def _exponent(a: Array) -> int:
    """`e` such that the largest magnitude of `a` is about `2**e`."""
    largest = float(checks.largest(a))
    return int(np.clip(np.frexp(largest)[1], -126, 126)) if largest else 0


def _power_of_two(exponent: int) -> np.float32:
    return np.ldexp(np.float32(1), exponent)
