"""`Statistics`, the sums over training rows and their codes from which the tables are solved by regression."""

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
    """Sums over rows `x` with one-hot codes `G`; the statistics of two sets of rows add up to those of their union.

    Attributes:
      gram: `G^T G`, the number of rows that have both of two codes; exact.
      sums: `G^T x`, the sum of the rows with each code.
    """

    gram: Int32[Array, "codes codes"]
    sums: Float[Array, "codes features"]

    @classmethod
    def zeros(cls, num_codebooks: int, num_features: int) -> Statistics:
        """Returns the statistics of no rows."""
        size = num_codebooks * LEAVES
        return cls(gram=jnp.zeros((size, size), jnp.int32), sums=jnp.zeros((size, num_features), jnp.float32))

    @property
    def counts(self) -> Int32[Array, " codes"]:
        """Number of rows with each code."""
        return jnp.diagonal(self.gram)

    def add(
        self,
        x: Float[Array, "rows features"],
        codes: UInt8[Array, "rows codebooks"],
        counted: Bool[Array, " rows"],
        real: Bool[Array, " codebooks"] | bool = True,
    ) -> Statistics:
        """Returns the statistics with a block of rows added.

        Args:
          x: rows of the block, fewer than 2^24: float32 counts exactly up to that number.
          codes: their codes.
          counted: False for rows that are padding.
          real: False for codebooks that are padding: none of their codes occurs.
        """
        mask = counted[:, None, None] & jnp.broadcast_to(real, codes.shape[1])[:, None]
        one_hot = (jax.nn.one_hot(codes, LEAVES, dtype=jnp.float32) * mask).reshape(len(codes), -1)
        return Statistics(
            gram=self.gram + _dot(one_hot.T, one_hot).astype(jnp.int32),
            sums=self.sums + _dot(one_hot.T, x),
        )


def encoder(trees: Trees) -> Callable[[np.ndarray], UInt8[np.ndarray, "rows codebooks"]]:
    """Returns a function that encodes blocks of rows, padded as `BatchedRows.blocks` yields them.

    The trees are padded as well, so that trees of similar sizes share one compiled function.
    """
    codebooks, padded = trees.num_codebooks, shapes.padded_trees(trees)
    return lambda x: np.asarray(encode(jnp.asarray(x), padded))[:, :codebooks]


def gather(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    encoded: Callable[[np.ndarray], UInt8[np.ndarray, "rows codebooks"]],
    mean: Float[np.ndarray, " features"],
    factor: np.float32,
    step: Callable[[], None] = lambda: None,
) -> Statistics:
    """Sums the statistics of `(x - mean) * factor`, block by block; codebooks and features are padded.

    Args:
      blocks: pairs of rows and a mask of those that are not padding, as `BatchedRows.blocks` yields them.
      encoded: function from a block of rows to their codes.
      mean: mean of all rows.
      factor: power of two that scales the largest magnitude to about 1.
      step: function that is called after every block.
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
    """Returns `statistics` with the rows `x * factor - center` added; its arrays are reused for the result."""
    return statistics.add(x * factor - center, codes, counted, real)
