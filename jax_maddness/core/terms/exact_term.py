"""The exact term: a product of low rank, or of a few features, in plain JAX and float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int32

from jax_maddness.core.epilogue import NONE, Epilogue
from jax_maddness.core.pytrees import pytree
from jax_maddness.core.terms.base import STATIC, Term
from jax_maddness.core.trees.base import Trees, validate_array, validate_finite, validate_indices

_UNROLLED = 8
"""Greatest rank at which the last product is computed as a sum of outer products.

XLA:CPU fuses such a sum with the addition to the look-ups, so that the outputs are passed over once, not three times.
At 4096 x 384 x 1152 and rank 4 this halves the cost of the term; at rank 16 it saves little.
"""


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class ExactTerm(Term):
    """A product of low rank that is not approximated: `y += [x[indices], x @ down] @ up`.

    It takes `rank * M` multiply-adds per row, and `D` more for each column of `down`. The rank counts both chosen
    features and directions. `fit` learns `Factors`, which compute such a product in int8, in place of this term; ops in
    files of version 3 have it.

    Attributes:
      up: weights of the chosen features, then of the projections, for every output.
      indices: chosen features that enter the product as they are, in `[0, num_features)`; an index that is out of range
        is clipped. None: no features are chosen.
      down: directions that rows are projected on. None: there are no projections.

    Example:
      >>> print(ExactTerm(up=jnp.ones((3, 5)), indices=jnp.array([7]), down=jnp.ones((8, 2))))
       + 1 exact features + rank 2
    """

    name: str = dataclasses.field(default="exact", kw_only=True, repr=False, metadata=STATIC)
    file_version: ClassVar[int] = 3
    optional: ClassVar[tuple[str, ...]] = ("indices", "down")

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

    def validate(self, num_features: int | None, num_codebooks: int, num_outputs: int) -> None:
        del num_codebooks  # the term is added to any number of look-ups
        if self.indices is None and self.down is None:
            raise ValueError("`op.term` has neither `indices` nor `down`. Pass one of them, or None for no term.")
        rank = 0
        if self.indices is not None:
            rank += self.indices.shape[0] if getattr(self.indices, "ndim", 0) else 0
            validate_array("op.term.indices", self.indices, (rank,), jnp.integer)
        if self.down is not None:
            features, directions = self.down.shape if getattr(self.down, "ndim", 0) == 2 else (0, 0)
            validate_array("op.term.down", self.down, (num_features or features, directions), jnp.floating)
            rank += directions
        validate_array("op.term.up", self.up, (rank, num_outputs), jnp.floating)
        if rank < 1:
            raise ValueError("`op.term` has rank 0; expected at least 1. Pass None for no term.")

    @classmethod
    def validate_values(cls, arrays: Mapping[str, np.ndarray], num_features: int, num_codebooks: int) -> None:
        for name in {"up", "down"} & set(arrays):
            validate_finite(f"exact.{name}", arrays[name])
        if "indices" in arrays:
            validate_indices("an exact term's", arrays["indices"], num_features)

    def amm(
        self,
        x: Float[Array, "... features"],
        trees: Trees,
        tables: Any,
        looked_up: Callable[[], Array],
        epilogue: Epilogue = NONE,
    ) -> Float[Array, "... outputs"]:
        y = looked_up()
        exact = y.astype(jnp.float32) + self.product(x, tables)
        return (epilogue.of(exact) if epilogue else exact).astype(y.dtype)

    def product(self, x: Float[Array, "... features"], tables: Any) -> Float[Array, "... outputs"]:
        del tables  # the term has weights of its own
        return expanded(self.reduced(x), self.up)

    def tangent(self, x: Float[Array, "... features"], change: Any) -> Float[Array, "... outputs"] | float:
        dy: Float[Array, "... outputs"] | float = 0.0
        if not isinstance(change.up, SymbolicZero):
            dy += expanded(self.reduced(x), change.up)
        if change.down is not None and not isinstance(change.down, SymbolicZero):
            dy += expanded(_product(x, change.down), self.up[-change.down.shape[-1] :])
        return dy

    def reduced(self, x: Float[Array, "... features"]) -> Float[Array, "... rank"]:
        """Reduces every row to the numbers that the term multiplies: its chosen features, then its projections."""
        parts = []
        if self.indices is not None:
            parts.append(jnp.take(x, self.indices, axis=-1, mode="clip").astype(jnp.float32))
        if self.down is not None:
            parts.append(_product(x, self.down))
        return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def _product(x: Float[Array, "... inner"], w: Float[Array, "inner outer"]) -> Float[Array, "... outer"]:
    """Computes `x @ w` in float32 on all platforms."""
    return jnp.matmul(x.astype(jnp.float32), w.astype(jnp.float32), precision="highest")


def expanded(r: Float[Array, "... rank"], up: Float[Array, "rank outputs"]) -> Float[Array, "... outputs"]:
    """Computes `r @ up` for reduced rows `r`."""
    if len(up) > _UNROLLED:
        return _product(r, up)
    rows = up.astype(jnp.float32).reshape(len(up), *[1] * (r.ndim - 1), -1)
    return sum((r[..., i : i + 1] * row for i, row in enumerate(rows[1:], 1)), start=r[..., :1] * rows[0])
