"""The nouns of quality.py: what a method learns, and what a method is. Ours and those it is compared with are alike."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Approximation:
    """Rows `x [N, D]` -> `y [N, M]` near `x @ w + b`.

    Attributes:
      function: of rows and `operands`; of a module, so that another process can be given it.
      operands: what was learned, a pytree of arrays: compiled code holds none of it as a constant.
    """

    function: Callable[[Array, Any], Array]
    operands: Any

    def __call__(self, x: Float[Array, "rows features"]) -> Float[Array, "rows outputs"]:
        return jax.jit(self.function)(x, self.operands)

    @property
    def nbytes(self) -> int:
        """Size in bytes of all operands."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.operands))


Sizes = Callable[[int, int, Sequence[int]], Mapping[str, int]]
"""Features, outputs, numbers of codebooks asked for -> the sizes that a method is measured at, by their labels."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of learning an approximation.

    Attributes:
      learn: rows to learn from, weights, bias, size -> approximation.
      sizes: which sizes there are for a problem.
      ours: whether `fit` does it.
      needs: the package that it needs, if it is not one of the core's.
    """

    name: str
    learn: Callable[[np.ndarray, np.ndarray, np.ndarray, int], Approximation]
    sizes: Sizes
    ours: bool = False
    needs: str = "numpy"

    @property
    def runs(self) -> bool:
        """Whether what it needs is installed."""
        return importlib.util.find_spec(self.needs) is not None


def one_size(features: int, outputs: int, codebooks: Sequence[int]) -> dict[str, int]:
    """For methods without a choice."""
    return {"": 0}


def in_codebooks(features: int, outputs: int, codebooks: Sequence[int]) -> dict[str, int]:
    """The numbers of codebooks for which there are features.

    Example:
      >>> in_codebooks(9, 5, [4, 16])
      {'C = 4': 4}
    """
    return {f"C = {c}": c for c in codebooks if c <= features}


def in_ranks(features: int, outputs: int, codebooks: Sequence[int]) -> dict[str, int]:
    """Parts of D, as far as a rank saves multiplications: `r * (D + M) < D * M`.

    Example:
      >>> in_ranks(27, 6, [])
      {'r = D/16': 1, 'r = D/8': 3}
    """
    parts = {max(1, features // part): part for part in (64, 32, 16, 8, 4)}  # of those with the same rank, the last
    return {f"r = D/{p}": r for r, p in parts.items() if r * (features + outputs) < features * outputs}
