"""The nouns: split trees of two kinds, lookup tables, and the op that holds both. Read this file first.

`y = amm(x, op)` is three steps over them, each with a file of its own:

    x [..., D] --encode--> codes [..., C] u8 --aggregate--> sums [..., M] i32 --rescale--> y [..., M]

and, for an op that has an exact term, a fourth one that adds it.

D = features, C = codebooks, M = outputs. All of them are frozen dataclasses registered as pytrees: arrays are
leaves (a changed array does not retrace), the other fields are static metadata (a changed one does). Two of them are
equal only when they are the same object, and they can be hashed: compare arrays with `jax.tree.map` instead.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int8, Int32, UInt8

LEVELS = 4
"""Depth of a split tree."""
NODES = 2**LEVELS - 1
"""Inner nodes of a split tree: one threshold each."""
LEAVES = 2**LEVELS
"""Codes of a codebook, and entries of a lookup table."""
SMALL_BATCH = 8
"""Up to this many rows a call uses `LookupTables.by_code` where there is one."""
MAX_WIDTH = 100_000
"""Features that a codebook of `ObliqueTrees` may project: 127 * 127 * MAX_WIDTH < 2**31."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SplitTrees:
    """One balanced tree of depth 4 per codebook (Blalock & Guttag 2021, section 4.1).

    Attributes:
      indices: the feature compared at each level, in `[0, num_features)`. One that is not is an error when a kernel
        meets it; pure JAX, which cannot raise at run time, clips it.
      thresholds: one per inner node, in heap order: node `j` of level `l` stands at `2**l - 1 + j`.
      num_features: D of the rows that the trees were learned from; None: not checked.
    """

    indices: Int32[Array, "codebooks 4"]
    thresholds: Float[Array, "codebooks 15"]
    num_features: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def num_codebooks(self) -> int:
        return self.indices.shape[-2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ObliqueTrees:
    """One balanced tree of depth 4 per codebook, whose levels compare projections of features: the other kind.

    Everything after the first rounding is exact in integers, so codes are the same everywhere:

        q[d]    = int8(clip(rint((x[d] - center[d]) * scale[d]), -127, 127))        in float32, half to even
        s[c, l] = sum_w projections[c, l, w] * q[features[c, w]]                    in int32

    At level `l` a row goes right when `s[c, l]` is greater than the threshold of the node it stands on. NaN counts as
    -127, the least.

    Attributes:
      features: those that each codebook projects, in `[0, num_features)`, in any order. Codebooks may share features.
        One that is out of range is an error when a kernel meets it; pure JAX clips it.
      projections: one per level, in `[-127, 127]`. A codebook of fewer features than `width` has zeros, and any
        feature, in the places that are left. `width` is at most `MAX_WIDTH`, so that no sum overflows.
      thresholds: one per inner node, in heap order, as those of `SplitTrees`.
      center: finite.
      scale: 0 or in `[2**-100, 2**100]`, so that denormals, which some processors flush to zero, never matter.
      num_features: D of the rows that the trees were learned from; None: that of `center`.
    """

    features: Int32[Array, "codebooks width"]
    projections: Int8[Array, "codebooks 4 width"]
    thresholds: Int32[Array, "codebooks 15"]
    center: Float[Array, " features"]
    scale: Float[Array, " features"]
    num_features: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def num_codebooks(self) -> int:
        return self.features.shape[-2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LookupTables:
    """8-bit tables: `y[m] = scale[m] * sum_c values[m, c, code_c] + offset[m]`.

    Attributes:
      values: for each output and codebook, the 16 entries that a code chooses from.
      scale: the width of one step of `values`, per output.
      offset: what is added to every row, per output: bias, mean and the tables' minima.
      by_code: `values` once more, in the order that calls of few rows want (`with_small_batch_tables`); or None.
    """

    values: UInt8[Array, "outputs codebooks 16"]
    scale: Float[Array, " outputs"]
    offset: Float[Array, " outputs"]
    by_code: UInt8[Array, "codebooks 16 outputs"] | None = None

    @property
    def num_outputs(self) -> int:
        return self.values.shape[-3]

    @property
    def num_codebooks(self) -> int:
        return self.values.shape[-2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ExactTerm:
    """A product that is not approximated: `y += [x[indices], x @ down] @ up`, of low rank.

    It takes `rank * M` multiply-adds per row, and `D` more for each column of `down`.

    Attributes:
      up: what each of the numbers in brackets adds to the outputs.
      indices: features that are taken as they are, in `[0, num_features)`; others are clipped. None: there are none.
      down: directions that rows are projected on. None: there are none. `rank` counts both.
    """

    up: Float[Array, "rank outputs"]
    indices: Int32[Array, " chosen"] | None = None
    down: Float[Array, "features directions"] | None = None

    def __str__(self) -> str:
        parts = []
        if self.indices is not None:
            parts.append(f" + {self.indices.shape[-1]} exact features")
        if self.down is not None:
            parts.append(f" + rank {self.down.shape[-1]}")
        return "".join(parts)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MaddnessOp:
    """Everything that `amm` needs besides `x`: approximates `x @ w + b`.

    Attributes:
      trees: hash a row of D features to C codes.
      tables: turn C codes into M outputs.
      weights: the exact `w`, kept only where gradients with respect to `x` are wanted (`fit(..., keep_weights=True)`).
      exact: the part of the product that is not left to codes; None: there is none.
    """

    trees: SplitTrees | ObliqueTrees
    tables: LookupTables
    weights: Float[Array, "features outputs"] | None = None
    exact: ExactTerm | None = None

    @property
    def num_features(self) -> int | None:
        return self.trees.num_features

    @property
    def num_outputs(self) -> int:
        return self.tables.num_outputs

    @property
    def num_codebooks(self) -> int:
        return self.tables.num_codebooks

    @property
    def nbytes(self) -> int:
        """Size in bytes of all arrays."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def __repr__(self) -> str:
        if not hasattr(self.tables, "values") or getattr(self.tables.values, "ndim", 0) < 3:
            return f"MaddnessOp(trees={self.trees!r}, tables={self.tables!r}, weights={self.weights!r})"
        stacked = "".join(f"{n} x " for n in self.tables.values.shape[:-3])
        kept = ", weights kept" if self.weights is not None else ""
        plus = "" if self.exact is None else str(self.exact)
        return (
            f"MaddnessOp({stacked}{self.num_features or '?'} -> {self.num_outputs}, "
            f"{self.num_codebooks} codebooks{plus}, {self.nbytes:,} bytes{kept})"
        )


def with_small_batch_tables(op: MaddnessOp) -> MaddnessOp:
    """`op` with a second copy of its tables, for calls of a few rows: the same results, much sooner.

    A shuffle reads all 16 entries of every table to use one. A call of at most `SMALL_BATCH` rows reads, with this
    copy,
    only the entries that its codes select: a sixteenth of the bytes for one row. It costs 16 bytes of memory per
    codebook and output. Calls of more rows are as before. After a change of `tables.values`, call it again.

    Works on stacked ops too. A file that `save` writes does not contain the copy.

    Example:
      >>> import jax.numpy as jnp
      >>> tables = LookupTables(jnp.zeros((3, 2, 16), jnp.uint8), jnp.ones(3), jnp.zeros(3))
      >>> trees = SplitTrees(jnp.zeros((2, 4), int), jnp.zeros((2, 15)))
      >>> with_small_batch_tables(MaddnessOp(trees, tables)).tables.by_code.shape
      (2, 16, 3)
    """
    by_code = jnp.moveaxis(jnp.asarray(op.tables.values), -3, -1)
    return dataclasses.replace(op, tables=dataclasses.replace(op.tables, by_code=by_code))
