"""How a layer is a matrix product: input -> rows, kernel -> w, rows -> output. Pure JAX, no Flax.

    layer(x) = form.output(form.rows(x) @ form.weights(kernel)[0] + bias, x)

A form is static: a frozen dataclass that can be hashed, and written as JSON.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array

_ELLIPSIS = "..."


@dataclasses.dataclass(frozen=True)
class Contraction:
    """`einsum("lhs,rhs->out", x, kernel)` where it is a matrix product: Dense, DenseGeneral, Linear, Einsum.

    Attributes:
      lhs, rhs, out: axes of the input, of the kernel and of the result; "..." stands for any leading axes.
      sizes: the kernel's shape.
    """

    lhs: str
    rhs: str
    out: str
    sizes: tuple[int, ...]

    @property
    def groups(self) -> int:
        """One product."""
        return 1

    @classmethod
    def of_axes(cls, axes: tuple[int, ...], ndim: int, sizes: tuple[int, ...]) -> Contraction:
        """Contracts `axes` of an input with `ndim` dimensions with the kernel's first, in their order in the input.

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
        """From an equation with two operands, the second of which is the kernel.

        Raises:
          ValueError: the equation is no matrix product; the message says why.
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
        """Whether a row's features are the last axis of the input, and no other."""
        return self._contracted == [self.lhs[-1]]

    @property
    def writes_last_axis(self) -> bool:
        """Whether the outputs are the last axis of the result, and no other."""
        return self._features == [self.out[-1]]

    @property
    def _contracted(self) -> list[str]:
        return [name for name in self.rhs if name in self.lhs]

    @property
    def _features(self) -> list[str]:
        return [name for name in self.out if name in self.rhs and name != "."]

    def _of_input(self, x: Any) -> tuple[list[Any], list[Any]]:
        """The names of the axes of `x`, numbers for those that "..." stands for; and the free ones in the result."""
        lhs = _expand(self.lhs, x.ndim)
        more = [name for name in lhs if isinstance(name, int)]
        out = _expand(self.out, len(self.out.replace(_ELLIPSIS, "")) + len(more))
        return lhs, [name for name in out if name in lhs]

    def rows(self, x: Array) -> Array:
        """`x` as [..., D]."""
        lhs, free = self._of_input(x)
        x = jnp.transpose(x, [lhs.index(name) for name in (*free, *self._contracted)])
        return x.reshape(*x.shape[: len(free)], math.prod(x.shape[len(free) :]))

    def rows_at(self, x: Array, places: np.ndarray) -> Array:
        """Some of all rows, [places, 1, D]."""
        rows = self.rows(x)
        return rows.reshape(-1, 1, rows.shape[-1])[places]

    def num_rows(self, x: Any) -> int:
        """How many rows an input of this shape has."""
        lhs, free = self._of_input(x)
        return math.prod(x.shape[lhs.index(name)] for name in free)

    def product_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, int]:
        """[D, M] of the product with such a kernel."""
        sizes = dict(zip(self.rhs, kernel_shape, strict=True))
        return math.prod(sizes[name] for name in self._contracted), math.prod(sizes[name] for name in self._features)

    def weights(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel as [1, D, M]."""
        order = [self.rhs.index(name) for name in (*self._contracted, *self._features)]
        kernel = np.transpose(kernel, order)
        return kernel.reshape(1, math.prod(kernel.shape[: len(self._contracted)]), -1)

    def output(self, y: Array, x: Any) -> Array:
        """[..., M] as the result of the layer for an input like `x`."""
        del x  # its free axes are those of `y`
        sizes = [self.sizes[self.rhs.index(name)] for name in self._features]
        free, features = iter(range(y.ndim - 1)), iter(range(y.ndim - 1, y.ndim - 1 + len(sizes)))
        out = _expand(self.out, y.ndim - 1 + len(sizes))
        order = [next(features if name in self._features else free) for name in out]
        return jnp.transpose(y.reshape(*y.shape[:-1], *sizes), order)


def _expand(axes: str, ndim: int) -> list[Any]:
    """One name per axis: letters, and numbers in place of "..."."""
    if _ELLIPSIS not in axes:
        return list(axes)
    before, after = axes.split(_ELLIPSIS)
    return [*before, *range(ndim - len(before) - len(after)), *after]
