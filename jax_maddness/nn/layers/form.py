"""`Form`, the base class of layers as matrix products: input -> rows, kernel -> w, products -> output. Pure JAX.

    layer(x) == form.output(form.exact_product(x, form.weights(kernel)) + bias, x)

Every question that depends on the kind of layer is a method here, so that no caller asks for a subclass.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int32


@dataclasses.dataclass(frozen=True)
class RowView:
    """A prepared input as vectors at numbered places, and the places that each row reads.

    A *run* is a stretch of a row that is contiguous in the input. Rows and places are numbered within an example.

    Attributes:
      vectors: the input, one vector for each place.
      shape: the number of examples, and of rows in each.
      run_starts: maps row numbers [...] to the places at which their runs begin, [..., runs].
      by_tap: maps values at the places to the values that each row sees, [batch, ..., taps].
    """

    vectors: Float[Array, "batch places features"]
    shape: tuple[int, int]
    run_starts: Callable[[Int32[Array, "..."]], Int32[Array, "... runs"]]
    by_tap: Callable[[Float[Array, "batch places"]], Float[Array, "batch ... taps"]]


@dataclasses.dataclass(frozen=True)
class Form(abc.ABC):
    """A layer as a product of rows with weights.

    A layer has `groups` products of their own; the product of a group is `rows [N, D] @ w [D, M]`. A row consists of
    `taps` vectors of features, one for each position of the input that it sees. Subclasses are frozen dataclasses of
    numbers, strings and tuples: they can be hashed, compared, and written as JSON.

    A *prepared* input is `x` in the layout in which rows are found: padded for a convolution, rows for a contraction.
    """

    @property
    def groups(self) -> int:
        """Number of products; each has an op of its own."""
        return 1

    @property
    def taps(self) -> int:
        """Number of input positions that a row sees."""
        return 1

    @property
    def run(self) -> int:
        """Number of consecutive taps whose features are contiguous in the input."""
        return 1

    @property
    def position_axes(self) -> tuple[int, ...]:
        """Axes of the output that are positions, as negative numbers."""
        return ()

    @property
    def has_positions(self) -> bool:
        """Whether a maximum over the positions of the output makes sense."""
        return bool(self.position_axes)

    @property
    @abc.abstractmethod
    def reads_last_axis(self) -> bool:
        """Whether the features of a tap are the last axis of the input, and no other axis."""

    @property
    @abc.abstractmethod
    def writes_last_axis(self) -> bool:
        """Whether the outputs are the last axis of the result, and no other axis."""

    @abc.abstractmethod
    def input_key(self) -> tuple[Any, ...] | None:
        """Returns a key that is equal for forms that make the same rows of an input; None if rows cannot be shared."""

    @abc.abstractmethod
    def row_shape(self, x: Any) -> tuple[int, ...]:
        """Returns the leading axes of the rows of an input with the shape of `x`."""

    def num_rows(self, x: Any) -> int:
        """Returns the number of rows of each group for an input with the shape of `x`."""
        return math.prod(self.row_shape(x))

    @abc.abstractmethod
    def prepared(self, x: Array) -> Array:
        """Brings `x` into the layout in which rows are found."""

    @abc.abstractmethod
    def map_rows(self, product: Callable[[Array], Array], x: Array) -> Array:
        """Applies `product`, rows [..., groups, D] -> [..., outputs], to all rows of `x`.

        Returns:
          Outputs of shape [*row_shape, outputs].
        """

    @abc.abstractmethod
    def map_positions(self, encode: Callable[[Array], Array], x: Array) -> Array:
        """Applies `encode`, [..., features] -> unsigned integers [..., codes], once to every position of `x`.

        Returns:
          The codes that each row sees, [*row_shape, taps, codes].
        """

    @abc.abstractmethod
    def product(self, prepared: Array, w: Array) -> Array:
        """Multiplies all rows exactly.

        Args:
          prepared: a prepared input.
          w: [groups, D, M]; the axis of a single group may be missing.

        Returns:
          The products, [*row_shape, groups * M].
        """

    def can_rewrite(self, num_features: int) -> bool:
        """Whether `rewritten_product` differs from `exact_product` for rows of `num_features` features."""
        del num_features
        return False

    def rewritten_product(self, x: Array, w: Array) -> Array:
        """Computes `exact_product` in a way that may be faster, where there is one: see `Convolution`."""
        return self.exact_product(x, w)

    def exact_product(self, x: Array, w: Array) -> Array:
        """Multiplies all rows of the layer's input exactly; see `product`."""
        return self.product(self.prepared(x), w)

    @abc.abstractmethod
    def row_view(self, prepared: Array, row_shape: tuple[int, ...]) -> RowView:
        """Returns a prepared input as vectors, with the places of each row, for a form with one group."""

    @abc.abstractmethod
    def rows_at(self, x: Array, places: np.ndarray) -> Array:
        """Returns the rows with the numbers `places`, [places, groups, D], without forming the others."""

    @abc.abstractmethod
    def single_rows(
        self, rows: Float[np.ndarray, "rows groups D"], num_outputs: int
    ) -> tuple[Form, Float[np.ndarray, "..."]]:
        """Returns a form and an input of it whose only rows are `rows`, in this order.

        Args:
          rows: rows of this form.
          num_outputs: outputs of a group, M.
        """

    @abc.abstractmethod
    def product_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, int]:
        """Returns [D, M] of a group's product for a kernel of this shape."""

    @abc.abstractmethod
    def weights(self, kernel: np.ndarray) -> np.ndarray:
        """Returns the layer's kernel as [groups, D, M]."""

    @abc.abstractmethod
    def output(self, y: Array, x: Any) -> Array:
        """Brings products [*row_shape, outputs] into the layout of the layer's result for an input like `x`."""

    @abc.abstractmethod
    def output_rows(self, y: Array, x: Any) -> Array:
        """Brings the layer's result for an input like `x` back to products [rows, outputs], the inverse of `output`."""

    @abc.abstractmethod
    def with_outputs(self, num_outputs: int) -> Form:
        """Returns the form of the same layer with another number of outputs."""
