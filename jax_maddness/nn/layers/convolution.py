"""Convolutions as matrix products: one row per output position, the patch of the input that it sees."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jax_maddness.nn.layers.form import Form, RowView

BLOCK = 2**20
"""Number of elements of the patches that are in memory at once."""
_WRAPPED = {"CIRCULAR": "wrap", "REFLECT": "reflect"}
"""The paddings that repeat the input, with their names in `jnp.pad`."""


@dataclasses.dataclass(frozen=True)
class Convolution(Form):
    """A convolution over inputs [..., *positions, features], with the settings of Flax's `Conv`.

    A row is a patch, tap by tap: [taps, features of the group], flattened.

    Attributes:
      size: the kernel's size in each dimension of the positions.
      strides, dilation: for each dimension; the dilation is the kernel's.
      padding: "SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL", or a pair of numbers for each dimension.
      groups: the number of groups that the features and the outputs are divided into.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    groups: int = 1

    @property
    def taps(self) -> int:
        return math.prod(self.size)

    @property
    def run(self) -> int:
        return self.size[-1] if self.dilation[-1] == 1 else 1

    @property
    def position_axes(self) -> tuple[int, ...]:
        return tuple(range(-1 - len(self.size), -1))

    @property
    def reads_last_axis(self) -> bool:
        return True

    @property
    def writes_last_axis(self) -> bool:
        return True

    @property
    def _extent(self) -> tuple[int, ...]:
        """The distance from the first tap to the last, both included, in each dimension."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.size, self.dilation, strict=True))

    def input_key(self) -> None:
        # Each convolution has an op of its own: only contractions share codes between layers.
        return None

    def _pads(self, positions: tuple[int, ...]) -> list[tuple[int, int]]:
        """Returns how many positions are added before and after the input, in each dimension."""
        if self.padding in _WRAPPED:
            return [((k - 1) // 2, k // 2) for k in self._extent]
        if self.padding == "CAUSAL":
            return [(self._extent[0] - 1, 0)]
        if isinstance(self.padding, str):
            return list(lax.padtype_to_pads(positions, self._extent, self.strides, self.padding))
        return list(self.padding)

    def prepared(self, x: Array) -> Array:
        """Returns the input as [batch, *positions, features], with its padding."""
        x = x.reshape(-1, *x.shape[-len(self.size) - 1 :])
        pads = [(0, 0), *self._pads(x.shape[1:-1]), (0, 0)]
        return jnp.pad(x, pads, mode=_WRAPPED[self.padding]) if self.padding in _WRAPPED else _zeros_around(x, pads)

    def out_positions(self, x: Any) -> tuple[int, ...]:
        """Returns the positions of the result, in each dimension, for an input with the shape of `x`."""
        positions = x.shape[-len(self.size) - 1 : -1]
        pads = self._pads(positions)
        return tuple(
            (n + sum(pad) - k) // s + 1
            for n, pad, k, s in zip(positions, pads, self._extent, self.strides, strict=True)
        )

    def row_shape(self, x: Any) -> tuple[int, ...]:
        """Returns [batch, *positions of the result]; all leading axes of `x` are one batch."""
        return (math.prod(x.shape[: -len(self.size) - 1]), *self.out_positions(x))

    def gathered(self, padded: Array, out: tuple[int, ...]) -> Array:
        """Collects, for every output, the values at the padded positions that its taps see.

        Args:
          padded: values at padded positions, [batch, *positions, ...].
          out: the positions of the result.

        Returns:
          The values, [batch, *out, taps, ...].
        """
        return jnp.stack(list(self._shifted(padded, out)), len(self.size) + 1)

    def _shifted(self, padded: Array, out: tuple[int, ...]) -> Iterator[Array]:
        """Yields, for each tap, the values that the outputs at `out` see, [batch, *out, ...]."""
        for tap in itertools.product(*map(range, self.size)):
            starts = [t * d for t, d in zip(tap, self.dilation, strict=True)]
            cut = [slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, out, self.strides, strict=True)]
            yield padded[(slice(None), *cut)]

    def patches(self, padded: Array, out: tuple[int, ...]) -> Array:
        """Returns all rows of the outputs at `out`, [batch, *out, groups, D]."""
        values = self.gathered(padded, out)
        values = values.reshape(*values.shape[:-1], self.groups, -1)
        return jnp.moveaxis(values, -2, -3).reshape(*values.shape[:-3], self.groups, -1)

    def places(self, outputs: Array, out: tuple[int, ...], positions: tuple[int, ...]) -> Array:
        """Returns the numbers of the padded positions that the taps of some outputs see.

        Args:
          outputs: numbers of outputs within an example, [...].
          out: the positions of the result.
          positions: the padded positions of the input.

        Returns:
          Numbers of padded positions within an example, [..., taps].
        """
        steps = np.cumprod((1, *positions[:0:-1]))[::-1]  # from a position to the next one in each dimension
        taps = np.array(list(itertools.product(*map(range, self.size))))
        start = jnp.stack(jnp.unravel_index(outputs, out), -1) @ (np.array(self.strides) * steps)
        return (start[..., None] + taps @ (np.array(self.dilation) * steps)).astype(jnp.int32)

    def row_view(self, prepared: Array, row_shape: tuple[int, ...]) -> RowView:
        batch, *positions = prepared.shape[:-1]
        out = row_shape[1:]
        return RowView(
            prepared.reshape(batch, -1, prepared.shape[-1]),
            (batch, math.prod(out)),
            lambda rows: self.places(rows, out, tuple(positions))[..., :: self.run],
            lambda values: self.gathered(values.reshape(batch, *positions), out),
        )

    def rows_at(self, x: Array, places: np.ndarray) -> Array:
        out, padded = self.out_positions(x), self.prepared(x)
        examples, outputs = np.divmod(places, math.prod(out))
        positions = self.places(jnp.asarray(outputs), out, padded.shape[1:-1])
        values = padded.reshape(len(padded), -1, padded.shape[-1])[examples[:, None], positions]
        values = values.reshape(*values.shape[:2], self.groups, -1)  # [places, taps, groups, features]
        return jnp.moveaxis(values, 2, 1).reshape(len(places), self.groups, -1)

    def single_rows(
        self, rows: Float[np.ndarray, "rows groups D"], num_outputs: int
    ) -> tuple[Convolution, Float[np.ndarray, "rows *size features"]]:
        """Returns a convolution of inputs as large as its kernel: each patch is an input with one output position."""
        del num_outputs  # no part of this form
        ones = len(self.size) * (1,)
        form = dataclasses.replace(self, strides=ones, dilation=ones, padding="VALID")
        by_tap = np.moveaxis(rows.reshape(*rows.shape[:2], self.taps, -1), 1, 2)
        return form, by_tap.reshape(len(rows), *self.size, -1)

    def product_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, int]:
        return self.taps * kernel_shape[-2], kernel_shape[-1] // self.groups

    def weights(self, kernel: np.ndarray) -> np.ndarray:
        """Returns a kernel [*size, features of a group, outputs] as [groups, D, M]."""
        by_group = kernel.reshape(self.taps * kernel.shape[-2], self.groups, -1)
        return np.moveaxis(by_group, 1, 0)

    def product(self, prepared: Array, w: Array) -> Array:
        kernel = jnp.moveaxis(w.reshape(self.groups, -1, w.shape[-1]), 0, 1)
        kernel = kernel.reshape(*self.size, -1, self.groups * w.shape[-1]).astype(prepared.dtype)
        spatial = "DHW"[-len(self.size) :]
        layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
        return lax.conv_general_dilated(
            prepared, kernel, self.strides, "VALID", None, self.dilation, layout, feature_group_count=self.groups
        )

    def can_rewrite(self, num_features: int) -> bool:
        return num_features == self.taps if self.groups > 1 else self.taps == 1  # depthwise, or 1x1

    def rewritten_product(self, x: Array, w: Array) -> Array:
        """Computes a depthwise convolution as a sum of shifted inputs times weights, a 1x1 convolution as a product."""
        shifted = self._shifted(self.prepared(x), self.out_positions(x))
        if self.groups == 1:
            return next(shifted) @ w[0]
        # XLA fuses this to one loop over the outputs; its own grouped convolutions are slow on CPUs, as
        # benchmarks/depthwise.py shows.
        by_tap = jnp.moveaxis(w, 1, 0).reshape(self.taps, -1)
        products = [jnp.repeat(v, w.shape[-1], -1) * weights for v, weights in zip(shifted, by_tap, strict=True)]
        return functools.reduce(jnp.add, products)

    def output(self, y: Array, x: Any) -> Array:
        return y.reshape(*x.shape[: -len(self.size) - 1], *y.shape[1:])

    def output_rows(self, y: Array, x: Any) -> Array:
        del x  # the outputs are the last axis
        return y.reshape(-1, y.shape[-1])

    def with_outputs(self, num_outputs: int) -> Convolution:
        del num_outputs  # no part of this form
        return self

    def map_positions(self, encode: Callable[[Array], Array], x: Array) -> Array:
        # Codes are padded in place of `x`, which is larger. Padding inserts zeros, but the code of a vector of zeros
        # may be any: XOR with that code before and after the padding turns one into the other.
        around = encode(jnp.zeros(x.shape[-1:], x.dtype))
        padded = self.prepared(encode(x) ^ around) ^ around
        # Without the barrier XLA pads each tap anew, four times as slow.
        return self.gathered(lax.optimization_barrier(padded), self.out_positions(x))

    def map_rows(self, product: Callable[[Array], Array], x: Array) -> Array:
        """Applies `product` to blocks of patches, since all patches at once would be `taps` times as large as `x`."""
        out, padded = self.out_positions(x), self.prepared(x)
        if self.taps == 1:  # the patches are the positions: blocks would save memory of products alone, and be copied
            return product(self.patches(padded, out))
        line_size = math.prod(out[1:]) * self.taps * padded.shape[-1]  # of the patches along the first dimension
        lines = max(1, min(out[0], BLOCK // max(line_size, 1)))
        if lines < out[0]:
            return self._by_lines(product, padded, out, lines)
        examples = max(1, BLOCK // max(line_size * out[0], 1))
        is_known = isinstance(padded.shape[0], int)  # if not, the program is exported for any number of examples
        if is_known and examples >= padded.shape[0]:
            return product(self.patches(padded, out))
        one = lambda example: product(self.patches(example[None], out))[0]  # noqa: E731
        return lax.map(one, padded, batch_size=examples if is_known else None)

    def _by_lines(self, product: Callable[[Array], Array], padded: Array, out: tuple[int, ...], lines: int) -> Array:
        """Applies `product` to some lines of one example at a time; the last block is filled with zeros, then cut."""
        blocks = -(-out[0] // lines)
        step, extent = self.strides[0], (lines - 1) * self.strides[0] + self._extent[0]
        missing = max(0, (blocks - 1) * lines * step + extent - padded.shape[1])
        padded = _zeros_around(padded, [(0, 0), (0, missing)] + [(0, 0)] * (padded.ndim - 2))

        def block(number: Array) -> Array:
            example = lax.dynamic_slice_in_dim(padded, number // blocks, 1, 0)
            window = lax.dynamic_slice_in_dim(example, (number % blocks) * lines * step, extent, 1)
            return product(self.patches(window, (lines, *out[1:])))[0]

        y = lax.map(block, jnp.arange(padded.shape[0] * blocks))
        return y.reshape(padded.shape[0], blocks * lines, *y.shape[2:])[:, : out[0]]


def _zeros_around(x: Array, pads: list[tuple[int, int]]) -> Array:
    return lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) for low, high in pads]) if jax.tree.leaves(pads) else x
