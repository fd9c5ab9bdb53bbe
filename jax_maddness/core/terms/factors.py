"""Integer factors: a product of low rank in int8, whose sums join those of the look-ups."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, UInt8

from jax_maddness.core import aggregate, int8
from jax_maddness.core.epilogue import NONE, Epilogue
from jax_maddness.core.int8 import GROUP, MAX_INNER
from jax_maddness.core.pytrees import pytree
from jax_maddness.core.stack import Stacked, in_float32
from jax_maddness.core.terms.base import STATIC, Term
from jax_maddness.core.trees.base import Trees, validate_array, validate_int8, validate_rounding, validate_scales
from jax_maddness.core.trees.kinds import KINDS
from jax_maddness.core.validate import ROW_DTYPES

MAX_SHIFT = 15
"""Greatest number of bits by which the sums of the look-ups are shifted."""


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Factors(Term):
    """A product of rank R in int8, beside the look-ups or alone. One int32 sum per output holds both:

        q[d] = int8(clip(rint((x[d] - center[d]) * scale[d]), -127, 127))         in float32, half to even
        u[j] = int8(clip(rint(steps[j] * sum_d down[j, d] q[d]), -127, 127))      an int32 sum, then float32
        y[m] = tables.scale[m] * ((look-ups[m] << shift[m]) + sum_j up[m, j] u[j]) + tables.offset[m]

    All of it is exact after the first rounding, so results are the same on every backend, up to the last float32
    rounding. NaN is rounded to -127. A row takes `R * (D + M)` int8 multiply-adds.

    The two matrices are stored in groups of four: `down[g, j, i]` belongs to feature `4 g + i`, and `up[h, m, i]` to
    direction `4 h + i`. Entries of features and directions beyond the last one are 0.

    Attributes:
      center: the value that is rounded to 0, per feature: finite.
      scale: steps of `q` per unit of `x`, per feature: 0, or in `[2**-100, 2**100]`.
      down: directions that rows are projected on, in `[-127, 127]`. Their number R, a multiple of 4, is the rank.
      steps: steps of `u` per unit of the projection, per direction: 0, or in `[2**-100, 2**100]`.
      up: weights of the directions for every output, in `[-127, 127]`.
      shift: bits by which the sums of the look-ups are shifted to the left, per output: 0 to 15.

    Example:
      >>> ones = jnp.ones((1, 4, 4), jnp.int8)
      >>> print(Factors(jnp.zeros(3), jnp.ones(3), ones, jnp.ones(4), ones, jnp.zeros(4, jnp.uint8)))
       + rank 4
    """

    name: str = dataclasses.field(default="factors", kw_only=True, repr=False, metadata=STATIC)
    file_version: ClassVar[int] = 4
    stands_alone: ClassVar[bool] = True

    center: Float[Array, " features"]
    scale: Float[Array, " features"]
    down: Int8[Array, "feature_groups rank 4"]
    steps: Float[Array, " rank"]
    up: Int8[Array, "rank_groups outputs 4"]
    shift: UInt8[Array, " outputs"]

    @property
    def rank(self) -> int:
        """Number of directions, R."""
        return self.down.shape[-2]

    @property
    def row_features(self) -> int:
        return self.center.shape[-1]

    def __str__(self) -> str:
        return f" + rank {self.rank}"

    def validate(self, num_features: int | None, num_codebooks: int, num_outputs: int) -> None:
        features = num_features or (self.center.shape[0] if getattr(self.center, "ndim", 0) else 0)
        rank = self.down.shape[1] if getattr(self.down, "ndim", 0) == 3 else 0
        validate_array("op.term.center", self.center, (features,), jnp.floating)
        validate_array("op.term.scale", self.scale, (features,), jnp.floating)
        validate_array("op.term.down", self.down, (-(-features // GROUP), rank, GROUP), jnp.int8)
        validate_array("op.term.steps", self.steps, (rank,), jnp.floating)
        validate_array("op.term.up", self.up, (rank // GROUP, num_outputs, GROUP), jnp.int8)
        validate_array("op.term.shift", self.shift, (num_outputs,), jnp.uint8)
        if not (0 < rank <= MAX_INNER and rank % GROUP == 0):
            raise ValueError(f"`op.term` has rank {rank}; expected a multiple of {GROUP}, from {GROUP} to {MAX_INNER}.")
        if not 0 < features <= MAX_INNER:
            raise ValueError(f"`op.term` projects {features} features; expected 1 to {MAX_INNER}.")

    @classmethod
    def validate_values(cls, arrays: Mapping[str, np.ndarray], num_features: int, num_codebooks: int) -> None:
        validate_rounding(cls.name, arrays["center"], arrays["scale"])
        validate_scales("factors.steps", arrays["steps"])
        for name in ("down", "up"):
            validate_int8(f"factors.{name}", arrays[name])
        shift = int(arrays["shift"].max(initial=0))
        if shift > MAX_SHIFT:
            raise ValueError(f"an entry of factors.shift is {shift}; expected 0 to {MAX_SHIFT}.")
        if ((255 * num_codebooks) << shift) + int8.LIMIT**2 * GROUP * len(arrays["up"]) >= 2**31:
            raise ValueError(f"a shift of {shift} and {num_codebooks} codebooks let the sums exceed 32 bits.")

    def amm(
        self,
        x: Float[Array, "... features"],
        trees: Trees,
        tables: Any,
        looked_up: Callable[[], Array],
        epilogue: Epilogue = NONE,
    ) -> Float[Array, "... outputs"]:
        scale, offset = (a.astype(jnp.float32) for a in (tables.scale, tables.offset))
        if not tables.num_codebooks:
            return epilogue.after(_alone, x, *self._projection(), self.up, scale, offset)
        by_code = tables.by_code_for(x)
        call, entries = _beside[type(trees)].by_output, tables.values
        if by_code is not None:
            call, entries = _beside[type(trees)].by_code, by_code
        arrays = (*trees.arrays(), entries, *self._projection(), self.up, self.shift, scale, offset)
        return epilogue.after(call, x, *arrays)

    def product(self, x: Float[Array, "... features"], tables: Any) -> Float[Array, "... outputs"]:
        return product_of(self.project(x), tables, self)

    def sums(
        self, x: Float[Array, "... features"], tables: Any, looked_up: Callable[[], Array]
    ) -> Float[Array, "... outputs"]:
        sums = int8.product(self.project(x)[None], self.up[None])[0]
        if tables.num_codebooks:
            sums += looked_up() << jnp.minimum(self.shift, MAX_SHIFT).astype(jnp.int32)
        return sums.astype(jnp.float32)

    def project(self, x: Float[Array, "... features"]) -> Int8[Array, "... rank"]:
        """Projects rows on the directions: the int8 numbers `u` that `up` multiplies. It has no derivative."""
        return _project(*jax.lax.stop_gradient((x, *self._projection())))

    def repeated(self, taps: int, up: Int8[Array, "rank_groups outputs 4"]) -> Factors:
        """Returns factors for a patch of `taps` positions: these for one position, repeated for each in turn.

        Args:
          taps: number of positions in a patch.
          up: weights of the directions of all positions, position by position.
        """
        down = np.kron(np.eye(taps, dtype=np.int8), int8.ungrouped(np.asarray(self.down), self.row_features))
        center, scale, steps = (jnp.tile(a, taps) for a in (self.center, self.scale, self.steps))
        return Factors(center, scale, int8.grouped(down), steps, up, self.shift)

    def first_position(self, taps: int) -> Factors:
        """Returns the factors that `repeated` repeated, with the weights of all positions still in `up`."""
        features, rank = self.row_features // taps, self.rank // taps
        down = int8.ungrouped(np.asarray(self.down), self.row_features)[:features, :rank]
        center, scale, steps = self.center[:features], self.scale[:features], self.steps[:rank]
        return Factors(center, scale, int8.grouped(down), steps, self.up, self.shift)

    @classmethod
    def placeholder(cls, features: int, rank: int, outputs: int) -> Factors:
        """Returns factors of a given size, all of zeros, to measure time and memory before learning."""
        zeros, shift = jnp.zeros(features), jnp.zeros(outputs, jnp.uint8)
        down = jnp.zeros((-(-features // GROUP), rank, GROUP), jnp.int8)
        return cls(zeros, zeros, down, jnp.zeros(rank), jnp.zeros((rank // GROUP, outputs, GROUP), jnp.int8), shift)

    def _projection(self) -> tuple[Array, ...]:
        floats = (self.center, self.scale, self.steps)
        center, scale, steps = (a.astype(jnp.float32) for a in floats)
        return center, scale, self.down, steps


def expand(
    codes: UInt8[Array, "... codebooks"] | None,
    u: Int8[Array, "... rank"],
    tables: Any,
    term: Factors,
    dtype: jax.typing.DTypeLike,
) -> Float[Array, "... outputs"]:
    """Computes the outputs of an op from the projections and the codes of rows, as `Factors` defines them.

    Args:
      codes: codes of the rows; None for an op without codebooks.
      u: projections of the rows, as `Factors.project` returns them.
      tables: the op's `LookupTables`.
      term: the op's factors.
      dtype: dtype of the result: float32, bfloat16 or float16.
    """
    scale, offset = (a.astype(jnp.float32) for a in (tables.scale, tables.offset))
    if codes is None:
        return _expand[jnp.dtype(dtype)](u, term.up, scale, offset)
    return _expand_beside[jnp.dtype(dtype)](codes, u, tables.values, term.up, term.shift, scale, offset)


def product_of(u: Int8[Array, "... rank"], tables: Any, term: Factors) -> Float[Array, "... outputs"]:
    """Computes what factors add to the outputs of the look-ups, in float32, from the projections of rows."""
    scale = jax.lax.stop_gradient(tables.scale.astype(jnp.float32))
    return _expand[jnp.dtype(jnp.float32)](u, term.up, scale, jnp.zeros_like(scale))


# ---- The definitions, in pure JAX, and one `Stacked` call for each ----


def projection_definition(
    x: Float[Array, "ops ... features"],
    center: Float[Array, "ops features"],
    scale: Float[Array, "ops features"],
    down: Int8[Array, "ops groups rank 4"],
    steps: Float[Array, "ops rank"],
) -> Int8[Array, "ops ... rank"]:
    """Projects `x` with a batch of factors: the answer that every tier must give."""
    lead = (slice(None), *[None] * (x.ndim - 2))
    q = int8.rounded_rows(x, center, scale)
    return int8.rounded(int8.product(q, down).astype(jnp.float32) * steps[lead])


def definition(x: Array, *arrays: Array) -> Float[Array, "ops ... outputs"]:
    """Computes `amm` for a batch of ops that have factors and no codebooks."""
    *projection, up, scale, offset = arrays
    return expansion_definition(x.dtype)(projection_definition(x, *projection), up, scale, offset)


def expansion_definition(dtype: Any) -> Callable[..., Array]:
    """Returns the second half of `definition`, which takes projections of rows."""

    def expansion(u: Array, up: Array, scale: Array, offset: Array) -> Float[Array, "ops ... outputs"]:
        return aggregate.rescaled(int8.product(u, up), scale, offset, dtype)

    return expansion


def definition_beside(kind: type[Trees], by_code: bool) -> Callable[..., Array]:
    """Returns `amm` for a batch of ops that have factors and trees of one kind."""

    def definition_beside(x: Array, *arrays: Array) -> Float[Array, "ops ... outputs"]:
        *trees, values, center, scale, down, steps, up, shift, out_scale, offset = arrays
        values = jnp.moveaxis(values, -1, 1) if by_code else values
        codes, u = kind.definition(x, *trees), projection_definition(x, center, scale, down, steps)
        return expansion_definition_beside(x.dtype)(codes, u, values, up, shift, out_scale, offset)

    return definition_beside


def expansion_definition_beside(dtype: Any) -> Callable[..., Array]:
    """Returns the second half of `definition_beside`, which takes codes and projections of rows."""

    def expansion_beside(
        codes: Array, u: Array, values: Array, up: Array, shift: Array, scale: Array, offset: Array
    ) -> Float[Array, "ops ... outputs"]:
        lead = (slice(None), *[None] * (codes.ndim - 2))
        bits = jnp.minimum(shift, MAX_SHIFT).astype(jnp.int32)[lead]
        return aggregate.rescaled(
            (aggregate.definition(codes, values) << bits) + int8.product(u, up), scale, offset, dtype
        )

    return expansion_beside


_PROJECTION = "b d, b d, b g r i, b r"
_RESCALE = "b m, b m -> b {rows} m"

_project = Stacked(projection_definition, "jax_maddness_project", f"b {{rows}} d, {_PROJECTION} -> b {{rows}} r")
_alone = Stacked(
    definition,
    "jax_maddness_factors",
    f"b {{rows}} d, {_PROJECTION}, b h m i, {_RESCALE}",
    before_rounding=in_float32(definition),
)
_expand = {
    dtype: Stacked(
        expansion_definition(dtype),
        "jax_maddness_factors_of",
        f"b {{rows}} r, b h m i, {_RESCALE}",
        before_rounding=expansion_definition(jnp.float32),
    )
    for dtype in ROW_DTYPES
}
_expand_beside = {
    dtype: Stacked(
        expansion_definition_beside(dtype),
        "jax_maddness_amm_of_codes_factors",
        f"b {{rows}} c, b {{rows}} r, b m c k, b h m i, b m, {_RESCALE}",
        num_rows=2,
        before_rounding=expansion_definition_beside(jnp.float32),
    )
    for dtype in ROW_DTYPES
}


class _Calls(NamedTuple):
    by_output: Stacked
    by_code: Stacked


def _calls(kind: type[Trees]) -> _Calls:
    name = f"jax_maddness_amm{kind.target_suffix}_factors"
    before, after = f"b {{rows}} d, {kind.dimensions}", f"{_PROJECTION}, b h m i, b m, {_RESCALE}"
    by_output, by_code = (definition_beside(kind, by_code) for by_code in (False, True))
    return _Calls(
        Stacked(by_output, name, f"{before}, b m c k, {after}", before_rounding=in_float32(by_output)),
        Stacked(by_code, f"{name}_by_code", f"{before}, b c k m, {after}", before_rounding=in_float32(by_code)),
    )


_beside = {kind: _calls(kind) for kind in KINDS}
