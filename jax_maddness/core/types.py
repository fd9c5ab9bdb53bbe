"""The data types: split trees of two kinds, lookup tables, terms, and the op that holds them. Read this file first.

`y = amm(x, op)` takes three steps, each with a file of its own:

    x [..., D] --encode--> codes [..., C] u8 --aggregate--> sums [..., M] i32 --rescale--> y [..., M]

An op may have a term (`terms/base.py`) beside its look-ups or in their place, such as int8 factors, whose products join
the same sums.

D = features, C = codebooks, M = outputs. All types are frozen dataclasses that are registered as pytrees: arrays are
leaves (a changed array does not retrace), and the other fields are static metadata (a changed one does). Instances are
compared and hashed by identity; compare their arrays with `jax.tree.map` instead.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jax_maddness.core import arguments
from jax_maddness.core.pytrees import pytree
from jax_maddness.core.terms.base import Term
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
    "LookupTables",
    "MaddnessOp",
    "ObliqueTrees",
    "SplitTrees",
    "Term",
    "Trees",
    "with_small_batch_tables",
]

SMALL_BATCH = 8
"""Greatest number of rows in a call that uses `LookupTables.by_code`, if an op has it."""


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class LookupTables:
    """Lookup tables of 8-bit entries: `y[m] = scale[m] * sum_c values[m, c, code_c] + offset[m]`.

    An entry stands for the product of a prototype with a column of `w` (Blalock & Guttag 2021, section 4.3).

    Attributes:
      values: uint8; for each output and codebook, the 16 entries of which a code selects one.
      scale: difference between outputs whose sums differ by 1, per output.
      offset: number that is added to the output of every row, per output: bias, mean and the minima of the tables.
      by_code: a copy of `values` in the order that suits small batches (see `with_small_batch_tables`), or None.

    Example:
      >>> LookupTables(jnp.zeros((3, 2, 16), jnp.uint8), scale=jnp.ones(3), offset=jnp.zeros(3)).num_codebooks
      2
    """

    values: UInt8[Array, "outputs codebooks 16"]
    scale: Float[Array, " outputs"]
    offset: Float[Array, " outputs"]
    by_code: UInt8[Array, "codebooks 16 outputs"] | None = None

    @property
    def num_outputs(self) -> int:
        """Number of outputs, M."""
        return self.values.shape[-3]

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks, C."""
        return self.values.shape[-2]

    def by_code_for(self, x: Float[Array, "... features"]) -> UInt8[Array, "codebooks 16 outputs"] | None:
        """Returns `by_code` for rows that are few enough for it, or None."""
        lead = x.shape[:-1]  # symbolic in an export for any number of rows, which counts as a large batch
        few = all(isinstance(n, int) for n in lead) and math.prod(lead) <= SMALL_BATCH
        return self.by_code if few else None


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class MaddnessOp:
    """An op: everything that `amm` needs besides `x` to approximate `x @ w + b`.

    Attributes:
      trees: split trees, which encode a row of D features as C codes.
      tables: lookup tables, which turn C codes into M outputs.
      weights: the exact `w`, for gradients with respect to `x` and for rescoring (`fit(..., keep_weights=True)`), or
        None.
      term: a product beside the look-ups, or in their place if there are no codebooks: `Factors`, `Int8Product`,
        `Int8ProductByRow` or `ExactTerm`; or None.

    Example:
      >>> trees = SplitTrees(jnp.zeros((2, 4), int), jnp.zeros((2, 15)), 8)
      >>> MaddnessOp(trees, LookupTables(jnp.zeros((3, 2, 16), jnp.uint8), jnp.ones(3), jnp.zeros(3)))
      MaddnessOp(8 -> 3, 2 codebooks, 272 bytes)
    """

    trees: Trees
    tables: LookupTables
    weights: Float[Array, "features outputs"] | None = None
    term: Term | None = None

    @property
    def num_features(self) -> int | None:
        """Number of features, D, or None if the trees do not record it."""
        return self.trees.num_features

    @property
    def num_outputs(self) -> int:
        """Number of outputs, M."""
        return self.tables.num_outputs

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks, C."""
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
        plus = "" if self.term is None else str(self.term)
        return (
            f"MaddnessOp({stacked}{self.num_features or '?'} -> {self.num_outputs}, "
            f"{self.num_codebooks} codebooks{plus}, {self.nbytes:,} bytes{kept})"
        )


def with_small_batch_tables(op: MaddnessOp) -> MaddnessOp:
    """Adds a second table layout that is faster for batches of at most 8 rows; the results are unchanged.

    The usual layout suits a shuffle instruction, which reads all 16 entries of a table to use one of them. With the
    copy, a call of at most `SMALL_BATCH` (8) rows reads only the entries that its codes select: a sixteenth of the
    bytes for one row. The copy takes 16 bytes of memory per codebook and output. Calls of more rows do not use it. The
    function must be called again after `tables.values` has changed. `save` does not write the copy.

    Args:
      op: an op, or a stack of ops.

    Returns:
      The op with `tables.by_code` set; `op` itself is unchanged.

    Example:
      >>> import jax.numpy as jnp
      >>> tables = LookupTables(jnp.zeros((3, 2, 16), jnp.uint8), jnp.ones(3), jnp.zeros(3))
      >>> trees = SplitTrees(jnp.zeros((2, 4), int), jnp.zeros((2, 15)))
      >>> with_small_batch_tables(MaddnessOp(trees, tables)).tables.by_code.shape
      (2, 16, 3)
    """
    arguments.instance(op, "op", MaddnessOp, "`fit` returns one")
    by_code = jnp.moveaxis(jnp.asarray(op.tables.values), -3, -1)
    return dataclasses.replace(op, tables=dataclasses.replace(op.tables, by_code=by_code))
