"""Convolutions as matrix products: one row per output position, the patch that it sees. Pure JAX, no Flax."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array

BLOCK = 2**20
"""Elements of the patches that are in memory at once."""
_WRAPPED = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution over inputs [..., *positions, features], as Flax's `Conv` has it.

    A row is a patch, tap by tap: [taps, features of the group]. Several groups have an op each.

    Attributes:
      size: of the kernel, per dimension.
      strides, dilation: per dimension; dilation is the kernel's.
      padding: "SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL", or a pair of numbers per dimension.
      groups: into which features and outputs are divided.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    groups: int = 1

    @property
    def taps(self) -> int:
        """Positions of the input that an output sees."""
        return math.prod(self.size)

    @property
    def run(self) -> int:
        """Taps in a row that see neighbours in the input: their features lie in one piece."""
        return self.size[-1] if self.dilation[-1] == 1 else 1

    @property
    def _extent(self) -> tuple[int, ...]:
        """Of the kernel, from the first tap to the last."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.size, self.dilation, strict=True))

    def _pads(self, positions: tuple[int, ...]) -> list[tuple[int, int]]:
        if self.padding in _WRAPPED:
            return [((k - 1) // 2, k // 2) for k in self._extent]
        if self.padding == "CAUSAL":
            return [(self._extent[0] - 1, 0)]
        if isinstance(self.padding, str):
            return list(lax.padtype_to_pads(positions, self._extent, self.strides, self.padding))
        return list(self.padding)

    def padded(self, x: Array) -> Array:
        """The input as [batch, *positions, features], with its padding."""
        x = x.reshape(-1, *x.shape[-len(self.size) - 1 :])
        pads = [(0, 0), *self._pads(x.shape[1:-1]), (0, 0)]
        return jnp.pad(x, pads, mode=_WRAPPED[self.padding]) if self.padding in _WRAPPED else _zeros_around(x, pads)

    def out_positions(self, x: Any) -> tuple[int, ...]:
        """Of the result for an input of this shape."""
        positions = x.shape[-len(self.size) - 1 : -1]
        pads = self._pads(positions)
        return tuple(
            (n + sum(pad) - k) // s + 1
            for n, pad, k, s in zip(positions, pads, self._extent, self.strides, strict=True)
        )

    def num_rows(self, x: Any) -> int:
        """How many rows an input of this shape has, in each group."""
        return math.prod(x.shape[: -len(self.size) - 1]) * math.prod(self.out_positions(x))

    def gathered(self, padded: Array, out: tuple[int, ...]) -> Array:
        """What every tap sees, `[batch, *out, taps, ...]`, of what is there at the padded positions."""
        seen = []
        for tap in itertools.product(*map(range, self.size)):
            start = [t * d for t, d in zip(tap, self.dilation, strict=True)]
            cut = [slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(start, out, self.strides, strict=True)]
            seen.append(padded[(slice(None), *cut)])
        return jnp.stack(seen, len(self.size) + 1)

    def patches(self, padded: Array, out: tuple[int, ...]) -> Array:
        """All rows of some outputs, [batch, *out, groups, D]: what `map_patches` calls block by block."""
        seen = self.gathered(padded, out)
        seen = seen.reshape(*seen.shape[:-1], self.groups, -1)
        return jnp.moveaxis(seen, -2, -3).reshape(*seen.shape[:-3], self.groups, -1)

    def places(self, at: Array, out: tuple[int, ...], positions: tuple[int, ...]) -> Array:
        """Which of the padded positions, counted through, every tap sees: [..., taps] for outputs `at`, likewise."""
        steps = np.cumprod((1, *positions[:0:-1]))[::-1]  # from a position to the next of each dimension
        taps = np.array(list(itertools.product(*map(range, self.size))))
        start = jnp.stack(jnp.unravel_index(at, out), -1) @ (np.array(self.strides) * steps)
        return (start[..., None] + taps @ (np.array(self.dilation) * steps)).astype(jnp.int32)

    def rows_at(self, x: Array, places: np.ndarray) -> Array:
        """Some of all rows, [places, groups, D]; no other is formed."""
        out, padded = self.out_positions(x), self.padded(x)
        batch, at = np.divmod(places, math.prod(out))
        where = self.places(jnp.asarray(at), out, padded.shape[1:-1])
        seen = padded.reshape(len(padded), -1, padded.shape[-1])[batch[:, None], where]  # [places, taps, features]
        seen = seen.reshape(*seen.shape[:2], self.groups, -1)
        return jnp.moveaxis(seen, 2, 1).reshape(len(places), self.groups, -1)

    def product_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, int]:
        """[D, M] of a group's product with such a kernel."""
        return self.taps * kernel_shape[-2], kernel_shape[-1] // self.groups

    def weights(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel [*size, features of a group, outputs] as [groups, D, M of a group]."""
        by_group = kernel.reshape(self.taps * kernel.shape[-2], self.groups, -1)
        return np.moveaxis(by_group, 1, 0)

    def product(self, padded: Array, w: Array) -> Array:
        """The exact convolution of a padded input with `w` [groups, D, M of a group]; one group may have no axis."""
        kernel = jnp.moveaxis(w.reshape(self.groups, -1, w.shape[-1]), 0, 1)
        kernel = kernel.reshape(*self.size, -1, self.groups * w.shape[-1]).astype(padded.dtype)
        spatial = "DHW"[-len(self.size) :]
        layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
        return lax.conv_general_dilated(
            padded, kernel, self.strides, "VALID", None, self.dilation, layout, feature_group_count=self.groups
        )

    def output(self, y: Array, x: Any) -> Array:
        """[batch, *positions, M] as the result of the layer for an input like `x`."""
        return y.reshape(*x.shape[: -len(self.size) - 1], *y.shape[1:])

    def map_patches(self, product: Callable[[Array], Array], x: Array) -> Array:
        """`product` of all patches, [batch, *positions, M]; a block of them is formed at a time.

        Args:
          product: patches [..., groups, D] -> [..., M].
          x: the layer's input.
        """
        out, padded = self.out_positions(x), self.padded(x)
        per_row = math.prod(out[1:]) * self.taps * padded.shape[-1]
        lines = max(1, min(out[0], BLOCK // max(per_row, 1)))  # of the first dimension of positions
        if lines < out[0]:
            return self._by_lines(product, padded, out, lines)
        examples = max(1, BLOCK // max(per_row * out[0], 1))
        if examples >= len(padded):
            return product(self.patches(padded, out))
        return lax.map(lambda one: product(self.patches(one[None], out))[0], padded, batch_size=examples)

    def _by_lines(self, product: Callable[[Array], Array], padded: Array, out: tuple[int, ...], lines: int) -> Array:
        """Some lines of one example at a time; the last block is filled up with zeros, and cut."""
        blocks = -(-out[0] // lines)
        step, extent = self.strides[0], (lines - 1) * self.strides[0] + self._extent[0]
        missing = max(0, (blocks - 1) * lines * step + extent - padded.shape[1])
        padded = _zeros_around(padded, [(0, 0), (0, missing)] + [(0, 0)] * (padded.ndim - 2))

        def block(place: Array) -> Array:
            example = lax.dynamic_slice_in_dim(padded, place // blocks, 1, 0)
            seen = lax.dynamic_slice_in_dim(example, (place % blocks) * lines * step, extent, 1)
            return product(self.patches(seen, (lines, *out[1:])))[0]

        y = lax.map(block, jnp.arange(len(padded) * blocks))
        return y.reshape(len(padded), blocks * lines, *y.shape[2:])[:, : out[0]]


def _zeros_around(x: Array, pads: list[tuple[int, int]]) -> Array:
    return lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) for low, high in pads]) if jax.tree.leaves(pads) else x
