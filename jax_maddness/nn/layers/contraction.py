"""Layers whose kernel is contracted with axes of the input: Dense, DenseGeneral, Linear, LinearGeneral, Einsum."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_maddness.nn.layers.form import Form, RowView

_ELLIPSIS = "..."


@dataclasses.dataclass(frozen=True)
class Contraction(Form):
    """`einsum("lhs,rhs->out", x, kernel)` that is a matrix product.

    Attributes:
      lhs, rhs, out: the axes of the input, of the kernel and of the result, a letter each; "..." stands for any
        leading axes.
      sizes: the kernel's shape.
    """

    lhs: str
    rhs: str
    out: str
    sizes: tuple[int, ...]

    @classmethod
    def of_axes(cls, axes: tuple[int, ...], ndim: int, sizes: tuple[int, ...]) -> Contraction:
        """Contracts `axes` of an input with `ndim` dimensions with the first axes of a kernel of shape `sizes`.

        The axes are taken in their order in the input, as Flax does.

        Example:
          >>> Contraction.of_axes((-1,), 3, (8, 2, 4))
          Contraction(lhs='...a', rhs='abc', out='...bc', sizes=(8, 2, 4))
        """
        contracted = sorted(axis % ndim - ndim for axis in axes)
        letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        named = {axis: next(letters) for axis in range(contracted[0], 0)}
        features = "".join(next(letters) for _ in range(len(sizes) - len(contracted)))
        free = "".join(name for axis, name in named.items() if axis not in contracted)
        rhs = "".join(named[axis] for axis in contracted) + features
        return cls(_ELLIPSIS + "".join(named.values()), rhs, _ELLIPSIS + free + features, sizes)

    @classmethod
    def of_einsum(cls, equation: str, sizes: tuple[int, ...]) -> Contraction:
        """Reads an einsum equation with two operands, the second of which is the kernel.

        Raises:
          ValueError: The equation is no matrix product; the message says why.
        """
        operands, out = equation.replace(" ", "").split("->")
        lhs, rhs = operands.split(",")
        names = [axes.replace(_ELLIPSIS, "") for axes in (lhs, rhs, out)]
        if _ELLIPSIS in rhs or (_ELLIPSIS in lhs) != (_ELLIPSIS in out):
            raise ValueError("the '...' of the einsum are not those of its input and its result")
        if any(len(set(axes)) < len(axes) for axes in names):
            raise ValueError("an axis occurs twice in an operand of the einsum")
        x, w, y = map(set, names)
        if x & w & y:
            raise ValueError(f"the einsum multiplies element by element along {''.join(sorted(x & w & y))!r}")
        if (x ^ w) - y:
            raise ValueError(f"the einsum sums one operand alone, along {''.join(sorted((x ^ w) - y))!r}")
        if not x & w or not w & y:
            raise ValueError("the einsum contracts no axis, or the kernel adds none to the result")
        return cls(lhs, rhs, out, sizes)

    @property
    def reads_last_axis(self) -> bool:
        return self._contracted == [self.lhs[-1]]

    @property
    def writes_last_axis(self) -> bool:
        return self._features == [self.out[-1]]

    @property
    def _contracted(self) -> list[str]:
        return [name for name in self.rhs if name in self.lhs]

    @property
    def _features(self) -> list[str]:
        return [name for name in self.out if name in self.rhs and name != "."]

    @property
    def _feature_sizes(self) -> list[int]:
        return [self.sizes[self.rhs.index(name)] for name in self._features]

    def input_key(self) -> tuple[Any, ...]:
        free = [name for name in self.out if name in self.lhs]
        return (self.lhs, *free, *self._contracted)

    def _axes(self, x: Any) -> tuple[list[Any], list[Any]]:
        """Returns the names of the axes of `x`, with numbers for those of "...", and of the free axes of the result."""
        lhs = _expand(self.lhs, x.ndim)
        num_leading = sum(isinstance(name, int) for name in lhs)
        out = _expand(self.out, len(self.out.replace(_ELLIPSIS, "")) + num_leading)
        return lhs, [name for name in out if name in lhs]

    def row_shape(self, x: Any) -> tuple[int, ...]:
        lhs, free = self._axes(x)
        return tuple(x.shape[lhs.index(name)] for name in free)

    def prepared(self, x: Array) -> Array:
        """Returns the rows of `x`, [*row_shape, D]."""
        lhs, free = self._axes(x)
        x = jnp.transpose(x, [lhs.index(name) for name in (*free, *self._contracted)])
        return x.reshape(*x.shape[: len(free)], math.prod(x.shape[len(free) :]))

    def map_rows(self, product: Callable[[Array], Array], x: Array) -> Array:
        return product(self.prepared(x)[..., None, :])

    def map_positions(self, encode: Callable[[Array], Array], x: Array) -> Array:
        return encode(self.prepared(x))[..., None, :]

    def product(self, prepared: Array, w: Array) -> Array:
        return prepared @ w.reshape(w.shape[-2:])

    def row_view(self, prepared: Array, row_shape: tuple[int, ...]) -> RowView:
        examples = row_shape[0] if len(row_shape) > 1 else 1
        shape = (examples, math.prod(row_shape) // max(examples, 1))
        vectors = prepared.reshape(*shape, prepared.shape[-1])
        return RowView(vectors, shape, lambda rows: rows[..., None], lambda values: values)

    def rows_at(self, x: Array, places: np.ndarray) -> Array:
        rows = self.prepared(x)
        return rows.reshape(-1, 1, rows.shape[-1])[places]

    def single_rows(
        self, rows: Float[np.ndarray, "rows groups D"], num_outputs: int
    ) -> tuple[Contraction, Float[np.ndarray, "rows D"]]:
        return Contraction("...a", "ab", "...b", (rows.shape[-1], num_outputs)), rows[:, 0]

    def product_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, int]:
        sizes = dict(zip(self.rhs, kernel_shape, strict=True))
        return math.prod(sizes[name] for name in self._contracted), math.prod(sizes[name] for name in self._features)

    def weights(self, kernel: np.ndarray) -> np.ndarray:
        order = [self.rhs.index(name) for name in (*self._contracted, *self._features)]
        kernel = np.transpose(kernel, order)
        return kernel.reshape(1, math.prod(kernel.shape[: len(self._contracted)]), -1)

    def output(self, y: Array, x: Any) -> Array:
        del x  # the sizes of its free axes are those of `y`
        sizes = self._feature_sizes
        free, features = iter(range(y.ndim - 1)), iter(range(y.ndim - 1, y.ndim - 1 + len(sizes)))
        out = _expand(self.out, y.ndim - 1 + len(sizes))
        order = [next(features if name in self._features else free) for name in out]
        return jnp.transpose(y.reshape(*y.shape[:-1], *sizes), order)

    def output_rows(self, y: Array, x: Any) -> Array:
        del x  # the axes of `y` are known without it
        out = _expand(self.out, y.ndim)
        order = [i for i, name in enumerate(out) if name not in self._features]
        order += [out.index(name) for name in self._features]
        return jnp.transpose(y, order).reshape(-1, math.prod(self._feature_sizes))

    def with_outputs(self, num_outputs: int) -> Contraction:
        named = zip(self.rhs, self.sizes, strict=True)
        sizes = tuple(num_outputs if name == self.out[-1] else size for name, size in named)
        return dataclasses.replace(self, sizes=sizes)


@dataclasses.dataclass(frozen=True)
class AxisContraction(Form):
    """A contraction of axes that are counted from the front: which ones these are depends on the rank of the input.

    Attributes:
      axes: as they were passed to the layer, one of them not negative.
      sizes: the kernel's shape.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]

    def _of(self, x: Any) -> Contraction:
        return Contraction.of_axes(self.axes, x.ndim, self.sizes)

    @property
    def _any_rank(self) -> Contraction:
        """A contraction with the same kernel: weights and products of rows do not depend on the rank of the input."""
        return Contraction.of_axes(tuple(range(-len(self.axes), 0)), len(self.axes) + 1, self.sizes)

    @property
    def reads_last_axis(self) -> bool:
        return False  # of some ranks alone

    @property
    def writes_last_axis(self) -> bool:
        return self._any_rank.writes_last_axis

    def input_key(self) -> tuple[Any, ...]:
        return ("axes", *self.axes)

    def row_shape(self, x: Any) -> tuple[int, ...]:
        return self._of(x).row_shape(x)

    def prepared(self, x: Array) -> Array:
        return self._of(x).prepared(x)

    def map_rows(self, product: Callable[[Array], Array], x: Array) -> Array:
        return self._of(x).map_rows(product, x)

    def map_positions(self, encode: Callable[[Array], Array], x: Array) -> Array:
        return self._of(x).map_positions(encode, x)

    def product(self, prepared: Array, w: Array) -> Array:
        return self._any_rank.product(prepared, w)

    def row_view(self, prepared: Array, row_shape: tuple[int, ...]) -> RowView:
        return self._any_rank.row_view(prepared, row_shape)

    def rows_at(self, x: Array, places: np.ndarray) -> Array:
        return self._of(x).rows_at(x, places)

    def single_rows(
        self, rows: Float[np.ndarray, "rows groups D"], num_outputs: int
    ) -> tuple[Contraction, Float[np.ndarray, "rows D"]]:
        return self._any_rank.single_rows(rows, num_outputs)

    def product_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, int]:
        return self._any_rank.product_shape(kernel_shape)

    def weights(self, kernel: np.ndarray) -> np.ndarray:
        return self._any_rank.weights(kernel)

    def output(self, y: Array, x: Any) -> Array:
        return self._of(x).output(y, x)

    def output_rows(self, y: Array, x: Any) -> Array:
        return self._of(x).output_rows(y, x)

    def with_outputs(self, num_outputs: int) -> AxisContraction:
        return dataclasses.replace(self, sizes=(*self.sizes[:-1], num_outputs))


def _expand(axes: str, ndim: int) -> list[Any]:
    """Returns one name for each of `ndim` axes: letters, and numbers in place of "..."."""
    if _ELLIPSIS not in axes:
        return list(axes)
    before, after = axes.split(_ELLIPSIS)
    return [*before, *range(ndim - len(before) - len(after)), *after]
