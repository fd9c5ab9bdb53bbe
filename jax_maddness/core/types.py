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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt8

from jax_maddness.core.trees.base import LEAVES, LEVELS, NODES, Trees
from jax_maddness.core.trees.kinds import KINDS, TREE_KINDS
from jax_maddness.core.trees.oblique_trees import MAX_WIDTH, ObliqueTrees
from jax_maddness.core.trees.split_trees import SplitTrees

__all__ = [
    "KINDS",
    "LEAVES",
    "LEVELS",
    "MAX_WIDTH",
    "NODES",
    "SMALL_BATCH",
    "TREE_KINDS",
    "ExactTerm",
    "LookupTables",
    "MaddnessOp",
    "ObliqueTrees",
    "SplitTrees",
    "Trees",
    "with_small_batch_tables",
]

SMALL_BATCH = 8
"""A call of at most this many rows uses `LookupTables.by_code`, if an op has it."""


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

    trees: Trees
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
