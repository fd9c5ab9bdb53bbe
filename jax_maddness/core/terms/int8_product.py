"""The whole product in int8: the exact end of the scale, with no codebooks and no projections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from jax_maddness.core import aggregate, int8
from jax_maddness.core.epilogue import NONE, Epilogue
from jax_maddness.core.int8 import GROUP, MAX_INNER
from jax_maddness.core.pytrees import pytree
from jax_maddness.core.stack import Stacked, in_float32
from jax_maddness.core.terms.base import STATIC, Term
from jax_maddness.core.trees.base import Trees, validate_array, validate_int8, validate_rounding

T = TypeVar("T", bound="Int8Product")


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Int8Product(Term):
    """A whole product in int8 with fixed steps, of an op without codebooks:

        q[d] = int8(clip(rint((x[d] - center[d]) * scale[d]), -127, 127))         in float32, half to even
        y[m] = tables.scale[m] * sum_d up[m, d] q[d] + tables.offset[m]           an int32 sum, then float32

    Results are the same on every backend, up to the last float32 rounding. NaN is rounded to -127.

    Attributes:
      center: the value that is rounded to 0, per feature: finite.
      scale: steps of `q` per unit of `x`, per feature: 0, or in `[2**-100, 2**100]`.
      up: weights in `[-127, 127]`, in groups of four: `up[g, m, i]` belongs to feature `4 g + i` and output `m`.
        Entries of features beyond the last one are 0.

    Example:
      >>> print(Int8Product(jnp.zeros(3), jnp.ones(3), jnp.ones((1, 5, 4), jnp.int8)))
       + int8
    """

    name: str = dataclasses.field(default="int8", kw_only=True, repr=False, metadata=STATIC)
    file_version: ClassVar[int] = 4
    stands_alone: ClassVar[bool] = True

    center: Float[Array, " features"]
    scale: Float[Array, " features"]
    up: Int8[Array, "feature_groups outputs 4"]

    @property
    def row_features(self) -> int:
        return self.center.shape[-1]

    def __str__(self) -> str:
        return " + int8"

    def validate(self, num_features: int | None, num_codebooks: int, num_outputs: int) -> None:
        features = num_features or (self.center.shape[0] if getattr(self.center, "ndim", 0) else 0)
        validate_array("op.term.center", self.center, (features,), jnp.floating)
        validate_array("op.term.scale", self.scale, (features,), jnp.floating)
        validate_array("op.term.up", self.up, (-(-features // GROUP), num_outputs, GROUP), jnp.int8)
        if num_codebooks:
            raise ValueError(f"`op` has {num_codebooks} codebooks beside an {type(self).__name__}; expected none.")
        if not 0 < features <= MAX_INNER:
            raise ValueError(f"`op.term` multiplies {features} features; expected 1 to {MAX_INNER}.")

    @classmethod
    def validate_values(cls, arrays: Mapping[str, np.ndarray], num_features: int, num_codebooks: int) -> None:
        validate_rounding(cls.name, arrays["center"], arrays["scale"])
        validate_int8(f"{cls.name}.up", arrays["up"])

    def amm(
        self,
        x: Float[Array, "... features"],
        trees: Trees | None,
        tables: Any,
        looked_up: Callable[[], Array] | None,
        epilogue: Epilogue = NONE,
    ) -> Float[Array, "... outputs"]:
        scale, offset = (a.astype(jnp.float32) for a in (tables.scale, tables.offset))
        return epilogue.after(self._call, x, *self._features(), self.up, scale, offset)

    def product(self, x: Float[Array, "... features"], tables: Any) -> Float[Array, "... outputs"]:
        x, scale = jax.lax.stop_gradient((x.astype(jnp.float32), tables.scale.astype(jnp.float32)))
        return self.amm(x, None, dataclasses.replace(tables, offset=jnp.zeros_like(scale)), None)

    def sums(
        self, x: Float[Array, "... features"], tables: Any, looked_up: Callable[[], Array]
    ) -> Float[Array, "... outputs"]:
        center, scale = self._features()
        q = int8.rounded_rows(x[None], center[None], scale[None])
        return int8.product(q, self.up[None])[0].astype(jnp.float32)

    @classmethod
    def placeholder(cls: type[T], features: int, outputs: int) -> T:
        """Returns a product of a given size, all of zeros, to measure time and memory before learning."""
        zeros = jnp.zeros(features)
        return cls(zeros, zeros, jnp.zeros((-(-features // GROUP), outputs, GROUP), jnp.int8))

    @property
    def _call(self) -> Stacked:
        return _product

    def _features(self) -> tuple[Array, Array]:
        return self.center.astype(jnp.float32), self.scale.astype(jnp.float32)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Int8ProductByRow(Int8Product):
    """A whole product in int8, with steps that fit the greatest magnitude in each row, of an op without codebooks:

        z[d] = (x[d] - center[d]) * scale[d]                        in float32
        a    = max_d |z[d]|                                         NaN if any is NaN
        q[d] = int8(clip(rint(z[d] * (127 / a)), -127, 127))        in float32, half to even; 0 if a < 2**-100
        y[m] = (tables.scale[m] * a) * sum_d up[m, d] q[d] + tables.offset[m]

    The attributes are those of `Int8Product`, where `scale` balances the features against each other: only ratios
    matter. A row with a NaN has NaN as its outputs.

    Example:
      >>> print(Int8ProductByRow(jnp.zeros(3), jnp.ones(3), jnp.ones((1, 5, 4), jnp.int8)))
       + int8 by row
    """

    name: str = dataclasses.field(default="int8byrow", kw_only=True, repr=False, metadata=STATIC)

    def __str__(self) -> str:
        return " + int8 by row"

    @property
    def _call(self) -> Stacked:
        return _product_by_row

    def sums(
        self, x: Float[Array, "... features"], tables: Any, looked_up: Callable[[], Array]
    ) -> Float[Array, "... outputs"]:
        q, magnitude = rounded_by_row(int8.steps(x, *self._features()))
        return int8.product(q[None], self.up[None])[0].astype(jnp.float32) * magnitude


def definition(
    x: Float[Array, "ops ... features"],
    center: Float[Array, "ops features"],
    scale: Float[Array, "ops features"],
    up: Int8[Array, "ops groups outputs 4"],
    out_scale: Float[Array, "ops outputs"],
    offset: Float[Array, "ops outputs"],
) -> Float[Array, "ops ... outputs"]:
    """Computes `amm` for a batch of ops with an `Int8Product`: the answer that every tier must give."""
    return aggregate.rescaled(int8.product(int8.rounded_rows(x, center, scale), up), out_scale, offset, x.dtype)


def rounded_by_row(z: Float[Array, "... features"]) -> tuple[Int8[Array, "... features"], Float[Array, "... 1"]]:
    """Rounds rows to int8 in steps that fit each row; returns the greatest magnitudes, too."""
    # The maximum alone does not do: XLA drops NaN from it on CPU.
    magnitude = jnp.where(jnp.isnan(z).any(-1, keepdims=True), jnp.nan, jnp.abs(z).max(-1, keepdims=True))
    inverse = jnp.where(magnitude >= int8.LEAST_SCALE, int8.LIMIT / magnitude, 0)
    return int8.rounded(z * inverse), magnitude


def definition_by_row(
    x: Float[Array, "ops ... features"],
    center: Float[Array, "ops features"],
    scale: Float[Array, "ops features"],
    up: Int8[Array, "ops groups outputs 4"],
    out_scale: Float[Array, "ops outputs"],
    offset: Float[Array, "ops outputs"],
) -> Float[Array, "ops ... outputs"]:
    """Computes `amm` for a batch of ops with an `Int8ProductByRow`: the answer that every tier must give."""
    lead = (slice(None), *[None] * (x.ndim - 2))
    q, magnitude = rounded_by_row(int8.steps(x, center[lead], scale[lead]))
    sums = int8.product(q, up).astype(jnp.float32)
    return ((out_scale[lead] * magnitude) * sums + offset[lead]).astype(x.dtype)


_RULE = "b {rows} d, b d, b d, b g m i, b m, b m -> b {rows} m"
_product = Stacked(definition, "jax_maddness_int8", _RULE, before_rounding=in_float32(definition))
_product_by_row = Stacked(
    definition_by_row, "jax_maddness_int8_by_row", _RULE, before_rounding=in_float32(definition_by_row)
)
