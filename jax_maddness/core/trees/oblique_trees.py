"""Split trees that compare int8 projections of groups of features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Int32, UInt8

from jax_maddness.core import int8
from jax_maddness.core.pytrees import pytree
from jax_maddness.core.trees import base
from jax_maddness.core.trees.base import LEVELS, NODES, Trees

MAX_WIDTH = int8.MAX_INNER
"""The most features that a codebook may project, so that no sum overflows."""


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class ObliqueTrees(Trees):
    """One balanced tree of depth 4 per codebook, each level of which compares a projection of several features.

    Everything after the first rounding is exact in integers, so codes are the same on every backend:

        q[d]    = int8(clip(rint((x[d] - center[d]) * scale[d]), -127, 127))        in float32, half to even
        s[c, l] = sum_w projections[c, l, w] * q[features[c, w]]                    in int32

    At level `l` a row goes right when `s[c, l]` is greater than the threshold of the node that it has reached. NaN is
    rounded to -127, the least value.

    Attributes:
      features: the features that each codebook projects, in `[0, num_features)`, in any order. Codebooks may share
        features. A kernel that meets another index fails; pure JAX clips it.
      projections: one per level, in `[-127, 127]`. A codebook that projects fewer than `width` features has zeros, and
        any feature, in the remaining places. `width` is at most `MAX_WIDTH`, so that no sum overflows.
      thresholds: one per inner node, in heap order, as those of `SplitTrees`.
      center: the value that is rounded to 0, per feature: finite.
      scale: steps of `q` per unit of `x`, per feature: 0, or in `[2**-100, 2**100]`, so that denormals, which some
        processors flush to zero, never matter.
      num_features: number of features of the rows that the trees were learned from; None: the length of `center`.

    Example:
      >>> trees = ObliqueTrees(
      ...     features=jnp.array([[0, 2, 3]]), projections=jnp.ones((1, 4, 3), jnp.int8),
      ...     thresholds=jnp.zeros((1, 15), jnp.int32), center=jnp.zeros(4), scale=jnp.ones(4),
      ... )
      >>> trees.num_codebooks, trees.width, trees.row_features
      (1, 3, 4)
    """

    dtypes: ClassVar = (jnp.int32, jnp.int8, jnp.int32, jnp.float32, jnp.float32)
    dimensions: ClassVar[str] = "b c w, b c l w, b c t, b d, b d"
    target_suffix: ClassVar[str] = "_oblique"
    file_version: ClassVar[int] = 2
    reads_few_features: ClassVar[bool] = False

    features: Int32[Array, "codebooks width"]
    projections: Int8[Array, "codebooks 4 width"]
    thresholds: Int32[Array, "codebooks 15"]
    center: Float[Array, " features"]
    scale: Float[Array, " features"]
    num_features: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks, C."""
        return self.features.shape[-2]

    @property
    def width(self) -> int:
        """Number of features that each codebook projects."""
        return self.features.shape[-1]

    @property
    def row_features(self) -> int:
        """Number of features that a row must have."""
        return self.center.shape[-1]

    @staticmethod
    def definition(
        x: Float[Array, "ops ... features"],
        features: Int32[Array, "ops codebooks width"],
        projections: Int8[Array, "ops codebooks 4 width"],
        thresholds: Int32[Array, "ops codebooks 15"],
        center: Float[Array, "ops features"],
        scale: Float[Array, "ops features"],
    ) -> UInt8[Array, "ops ... codebooks"]:
        """Encodes `x` with a batch of trees, in pure JAX, by an int8 product: the answer that every tier must give."""
        q = jax.vmap(base.take_features)(int8.rounded_rows(x, center, scale), features)
        values = jnp.einsum("b...cw,bclw->b...cl", q, projections, preferred_element_type=jnp.int32)
        return base.walk(values, thresholds)

    def validate(self) -> None:
        """Validates that the arrays agree with each other.

        Raises:
          TypeError, ValueError: they do not; the message names the array.
        """
        codebooks, width = self.features.shape if getattr(self.features, "ndim", 0) == 2 else (0, 0)
        base.validate_array("trees.features", self.features, (codebooks, width), jnp.integer)
        base.validate_array("trees.projections", self.projections, (codebooks, LEVELS, width), jnp.int8)
        base.validate_array("trees.thresholds", self.thresholds, (codebooks, NODES), jnp.int32)
        features = self.num_features
        if features is None:
            features = self.center.shape[0] if getattr(self.center, "ndim", 0) else 0
        base.validate_array("trees.center", self.center, (features,), jnp.floating)
        base.validate_array("trees.scale", self.scale, (features,), jnp.floating)
        if codebooks and not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"`trees` projects {width} features per codebook; expected 1 to {MAX_WIDTH}. Use fewer.")

    @classmethod
    def validate_values(cls, arrays: Mapping[str, np.ndarray], num_features: int | None) -> int:
        """Validates that the values in the arrays of a file are in range; returns the number of features.

        Raises:
          ValueError: one is not.
        """
        limit = num_features or arrays["center"].size
        base.validate_indices("a split", arrays["features"], limit)
        base.validate_int8("trees.projections", arrays["projections"])
        base.validate_rounding("trees", arrays["center"], arrays["scale"])
        return limit

    def padded(self, codebooks: int, features: int, width: int) -> ObliqueTrees:
        """Adds codebooks, all of whose rows get code 0, features that no codebook projects, and width."""
        return ObliqueTrees(
            base.pad(self.features, codebooks, width),
            base.pad(self.projections, codebooks, LEVELS, width),
            base.pad(self.thresholds, codebooks, NODES),
            base.pad(self.center, features),
            base.pad(self.scale, features),
        )

    def repeated(self, taps: int) -> ObliqueTrees:
        """Returns trees for a patch of `taps` positions: those for one position, repeated for each position in turn."""
        others = (self.projections, self.thresholds, self.center, self.scale)
        projections, thresholds, center, scale = (base.tiled(array, taps) for array in others)
        features = base.shifted(self.features, self.row_features, taps)
        return ObliqueTrees(features, projections, thresholds, center, scale, taps * self.row_features)

    def in_reading_order(self) -> tuple[ObliqueTrees, Int32[np.ndarray, " read"]]:
        """Returns trees that read their features in order, and the original index of each of these features."""
        read = np.asarray(self.features).reshape(-1)
        features = jnp.arange(len(read), dtype=jnp.int32).reshape(self.features.shape)
        center, scale = self.center[read], self.scale[read]
        trees = dataclasses.replace(self, features=features, center=center, scale=scale, num_features=len(read))
        return trees, read

    @classmethod
    def placeholder(cls, features: int, codebooks: int, width: int) -> ObliqueTrees:
        """Returns trees of a given size with arbitrary contents, to measure time and memory before learning."""
        read = np.arange(codebooks * width, dtype=np.int32).reshape(codebooks, width) % features
        projections = jnp.zeros((codebooks, LEVELS, width), jnp.int8)
        thresholds, ones = jnp.zeros((codebooks, NODES), jnp.int32), jnp.ones(features)
        return ObliqueTrees(jnp.asarray(read), projections, thresholds, ones, ones, features)
