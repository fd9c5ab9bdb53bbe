"""The data types of quality.py: approximations, and the methods that learn them, those of `fit` and all others."""

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
    """An approximation of `x @ w + b`, as a function of rows.

    Attributes:
      function: takes rows `x [N, D]` and `operands`; defined at the top of a module, so that it can be pickled.
      operands: the learned arrays, as a pytree: an argument, so that compiled code holds none of them as a constant.
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
"""Maps features, outputs and the requested numbers of codebooks to the sizes of a method, by their labels."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of learning an approximation.

    Attributes:
      name: the name in tables and options.
      learn: takes training rows, weights, bias and a size; returns the approximation.
      sizes: the sizes at which the method is measured.
      ours: whether it is a method of `fit`.
      needs: the package that it needs besides those of the core.
    """

    name: str
    learn: Callable[[np.ndarray, np.ndarray, np.ndarray, int], Approximation]
    sizes: Sizes
    ours: bool = False
    needs: str = "numpy"

    @property
    def runs(self) -> bool:
        """Whether the package that the method needs is installed."""
        return importlib.util.find_spec(self.needs) is not None


def one_size(features: int, outputs: int, codebooks: Sequence[int]) -> dict[str, int]:
    """Returns the only size of a method that has no choice of sizes."""
    return {"": 0}


def in_codebooks(features: int, outputs: int, codebooks: Sequence[int]) -> dict[str, int]:
    """Returns the numbers of codebooks that do not exceed the number of features.

    Example:
      >>> in_codebooks(9, 5, [4, 16])
      {'C = 4': 4}
    """
    return {f"C = {c}": c for c in codebooks if c <= features}


def in_ranks(features: int, outputs: int, codebooks: Sequence[int]) -> dict[str, int]:
    """Returns fractions of D as ranks, as long as a rank saves multiplications: `r * (D + M) < D * M`.

    Example:
      >>> in_ranks(27, 6, [])
      {'r = D/16': 1, 'r = D/8': 3}
    """
    parts = {max(1, features // part): part for part in (64, 32, 16, 8, 4)}  # the last of equal ranks remains
    return {f"r = D/{p}": r for r, p in parts.items() if r * (features + outputs) < features * outputs}
