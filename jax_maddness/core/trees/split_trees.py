"""Split trees that compare single features: the paper's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, UInt8

from jax_maddness.core.pytrees import pytree
from jax_maddness.core.trees import base
from jax_maddness.core.trees.base import LEVELS, NODES, Trees

_NEVER_RIGHT = jnp.iinfo(jnp.int32).min
_ALWAYS_LEFT = jnp.iinfo(jnp.int32).max


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class SplitTrees(Trees):
    """One balanced tree of depth 4 per codebook, each level of which compares one feature.

    At level `l`, codebook `c` goes right when `x[indices[c, l]] > threshold` of the node that it has reached
    (Blalock & Guttag 2021, section 4.1). Ties and NaN go left.

    Attributes:
      indices: the feature that is compared at each level, in `[0, num_features)`. A kernel that meets another index
        fails; pure JAX, which cannot raise at run time, clips it.
      thresholds: one per inner node, in heap order: node `j` of level `l` is entry `2**l - 1 + j`.
      num_features: number of features of the rows that the trees were learned from; None if it is not to be validated.

    Example:
      >>> trees = SplitTrees(indices=jnp.zeros((2, 4), int), thresholds=jnp.zeros((2, 15)), num_features=8)
      >>> trees.num_codebooks, trees.width
      (2, 4)
    """

    dtypes: ClassVar = (jnp.int32, jnp.float32)
    dimensions: ClassVar[str] = "b c l, b c t"
    target_suffix: ClassVar[str] = ""
    file_version: ClassVar[int] = 1
    reads_few_features: ClassVar[bool] = True

    indices: Int32[Array, "codebooks 4"]
    thresholds: Float[Array, "codebooks 15"]
    num_features: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks, C."""
        return self.indices.shape[-2]

    @property
    def width(self) -> int:
        """Number of features that each codebook reads: one per level."""
        return LEVELS

    @staticmethod
    def definition(
        x: Float[Array, "ops ... features"],
        indices: Int32[Array, "ops codebooks 4"],
        thresholds: Float[Array, "ops codebooks 15"],
    ) -> UInt8[Array, "ops ... codebooks"]:
        """Encodes `x` with a batch of trees, in pure JAX: the answer that every tier must give."""
        values = jax.vmap(base.take_features)(_ordered(x, nan=_NEVER_RIGHT), indices)
        return base.walk(values, _ordered(thresholds, nan=_ALWAYS_LEFT))

    def validate(self) -> None:
        """Validates that the arrays agree with each other.

        Raises:
          TypeError, ValueError: they do not; the message names the array.
        """
        codebooks = self.indices.shape[0] if getattr(self.indices, "ndim", 0) else 0
        base.validate_array("trees.indices", self.indices, (codebooks, LEVELS), jnp.integer)
        base.validate_array("trees.thresholds", self.thresholds, (codebooks, NODES), jnp.floating)

    @classmethod
    def validate_values(cls, arrays: Mapping[str, np.ndarray], num_features: int | None) -> int:
        """Validates that the indices of a file are in range; returns the number of features, or the greatest int32.

        Raises:
          ValueError: one is not.
        """
        limit = num_features or np.iinfo(np.int32).max
        base.validate_indices("a split", arrays["indices"], limit)
        return limit

    def padded(self, codebooks: int, features: int, width: int) -> SplitTrees:
        """Adds codebooks, all of whose rows get code 0; takes rows of any number of features."""
        del features, width  # no codebook reads the features that are added
        never = float(np.finfo(np.float32).max)  # no finite value is greater
        indices = base.pad(self.indices, codebooks, LEVELS)
        return SplitTrees(indices, base.pad(self.thresholds, codebooks, NODES, value=never))

    def repeated(self, taps: int) -> SplitTrees:
        """Returns trees for a patch of `taps` positions: those for one position, repeated for each position in turn."""
        assert self.num_features is not None
        indices = base.shifted(self.indices, self.num_features, taps)
        return SplitTrees(indices, base.tiled(self.thresholds, taps), taps * self.num_features)

    def in_reading_order(self) -> tuple[SplitTrees, Int32[np.ndarray, " read"]]:
        """Returns trees that read their features in order, and the original index of each of these features."""
        read: list[int] = []
        indices = np.zeros(self.indices.shape, np.int32)
        for codebook, compared in enumerate(np.asarray(self.indices)):
            own, first, place = np.unique(compared, return_index=True, return_inverse=True)
            order = np.argsort(first)
            indices[codebook] = len(read) + np.argsort(order)[place]
            read.extend(own[order])
        trees = dataclasses.replace(self, indices=jnp.asarray(indices), num_features=len(read))
        return trees, np.array(read, np.int32)

    @classmethod
    def placeholder(cls, features: int, codebooks: int, width: int) -> SplitTrees:
        """Returns trees of a given size with arbitrary contents, to measure time and memory before learning."""
        del width
        indices = np.arange(codebooks * LEVELS, dtype=np.int32).reshape(codebooks, LEVELS) % features
        return SplitTrees(jnp.asarray(indices), jnp.zeros((codebooks, NODES)), features)


def _ordered(x: Float[Array, "..."], nan: int) -> Int32[Array, "..."]:
    """Maps the floats `x` to integers in the same order, and NaN to `nan`.

    Integers are compared instead of the floats so that denormals count: XLA runs its CPU threads with denormals
    flushed to zero, TPUs have none, and NumPy and the C++ tiers must agree with both.
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    magnitude = bits & 0x7FFFFFFF
    keys = jnp.where(bits < 0, -magnitude, magnitude)
    return jnp.where(magnitude > 0x7F800000, nan, keys)
