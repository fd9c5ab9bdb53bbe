"""rows, codes -> Statistics: all that the regression for the tables needs to know of the training rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8

from jax_maddness.core.encode import encode
from jax_maddness.core.types import LEAVES, Trees
from jax_maddness.learn.data import shapes

_dot = functools.partial(jnp.matmul, precision="highest")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """All that the regression needs to know of the training rows; those of two sets of rows add up.

    Attributes:
      gram: `G^T G`, how often two codes occur together: exact.
      sums: `G^T x`, the sum of the rows with each code.
    """

    gram: Int32[Array, "codes codes"]
    sums: Float[Array, "codes features"]

    @classmethod
    def zeros(cls, num_codebooks: int, num_features: int) -> Statistics:
        size = num_codebooks * LEAVES
        return cls(gram=jnp.zeros((size, size), jnp.int32), sums=jnp.zeros((size, num_features), jnp.float32))

    @property
    def counts(self) -> Int32[Array, " codes"]:
        """Rows with each code."""
        return jnp.diagonal(self.gram)

    def add(
        self,
        x: Float[Array, "rows features"],
        codes: UInt8[Array, "rows codebooks"],
        counted: Bool[Array, " rows"],
        real: Bool[Array, " codebooks"] | bool = True,
    ) -> Statistics:
        """Adds the rows of `x` that are `counted`. A block has fewer than 2^24 rows, so that f32 counts exactly.

        Codebooks that are not `real` are there to fill the arrays: none of their codes occurs.
        """
        seen = counted[:, None, None] & jnp.broadcast_to(real, codes.shape[1])[:, None]
        one_hot = (jax.nn.one_hot(codes, LEAVES, dtype=jnp.float32) * seen).reshape(len(codes), -1)
        return Statistics(
            gram=self.gram + _dot(one_hot.T, one_hot).astype(jnp.int32),
            sums=self.sums + _dot(one_hot.T, x),
        )


def encoder(trees: Trees) -> Callable[[np.ndarray], UInt8[np.ndarray, "rows codebooks"]]:
    """`encode` for rows with as many features as `Rows.blocks` gives them: compiled for padded sizes of trees, too."""
    codebooks, padded = trees.num_codebooks, shapes.padded_trees(trees)
    return lambda x: np.asarray(encode(jnp.asarray(x), padded))[:, :codebooks]


def gather(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    encoded: Callable[[np.ndarray], UInt8[np.ndarray, "rows codebooks"]],
    mean: Float[np.ndarray, " features"],
    factor: np.float32,
    step: Callable[[], None] = lambda: None,
) -> Statistics:
    """The regression's statistics of `(x - mean) * factor`, block by block; codebooks and features are padded.

    Args:
      blocks: rows and which of them count, as `BatchedRows.blocks` yields them.
      encoded: rows -> codes.
      mean: of all rows.
      factor: a power of two that brings the largest magnitude near 1.
      step: called after every block.
    """
    statistics: Statistics | None = None
    for x, counted in blocks:
        codes = encoded(x)
        if statistics is None:
            codebooks = shapes.rounded(codes.shape[1], shapes.CODEBOOKS)
            statistics = Statistics.zeros(codebooks, x.shape[1])
            center = shapes.pad((mean * factor).astype(np.float32), x.shape[1])
        real = np.arange(codebooks) < codes.shape[1]
        codes = shapes.pad(codes, len(x), codebooks)
        statistics = jax.block_until_ready(_add(statistics, x, codes, counted, real, factor, center))
        step()
    assert statistics is not None
    return statistics


@functools.partial(jax.jit, donate_argnums=0)
def _add(
    statistics: Statistics, x: Array, codes: Array, counted: Array, real: Array, factor: Array, center: Array
) -> Statistics:
    return statistics.add(x * factor - center, codes, counted, real)
