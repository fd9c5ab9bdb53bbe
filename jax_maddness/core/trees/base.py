"""The interface of every kind of split trees, and the walk from a root to a leaf that all kinds share.

A new kind is one file beside this one, with a subclass of `Trees`, and one entry in `kinds.py`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt8

from jax_maddness.core import int8

LEVELS = 4
"""Depth of a split tree."""
NODES = 2**LEVELS - 1
"""Inner nodes of a split tree: one threshold each."""
LEAVES = 2**LEVELS
"""Codes of a codebook, and entries of a lookup table."""

T = TypeVar("T", bound="Trees")


class Trees(abc.ABC):
    """One balanced tree of depth 4 per codebook, which together encode a row as one 4-bit code per codebook.

    Subclasses are frozen dataclasses that are registered as pytrees. Their fields are arrays, in the order that the
    kernels take them, followed by `num_features`, which is static.

    Attributes:
      num_features: number of features of the rows that the trees were learned from, or None if that is not known.
    """

    dtypes: ClassVar[tuple[Any, ...]]
    """The dtypes that the definition and the kernels take, one for each array."""
    dimensions: ClassVar[str]
    """The dimensions of the arrays of a batch of trees, as in the rule of a `Stacked`."""
    target_suffix: ClassVar[str]
    """Suffix of the names of the FFI targets for this kind."""
    file_version: ClassVar[int]
    """The version of the file format that introduced this kind."""
    reads_few_features: ClassVar[bool]
    """Whether a codebook reads at most four features, so that the layer before need not compute the others."""
    definition: ClassVar[Callable[..., Any]]
    """`definition(x, *arrays)` encodes `x [ops, ..., features]` with a batch of trees as codes [ops, ..., codebooks],
    in pure JAX: the answer that every tier must give."""

    num_features: int | None

    @property
    @abc.abstractmethod
    def num_codebooks(self) -> int:
        """Number of codebooks, C."""

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Number of features that each codebook reads, repetitions included."""

    @property
    def row_features(self) -> int | None:
        """Number of features that a row must have, or None if any number is accepted."""
        return self.num_features

    @classmethod
    def array_names(cls) -> tuple[str, ...]:
        """Returns the names of the fields that are arrays, in order."""
        return tuple(field.name for field in dataclasses.fields(cls) if field.name != "num_features")  # type: ignore[arg-type]

    @classmethod
    def of_arrays(cls: type[T], arrays: Mapping[str, Any], num_features: int | None) -> T:
        """Returns trees with the given arrays, by name."""
        return cls(**arrays, num_features=num_features)  # type: ignore[call-arg]

    def arrays(self) -> tuple[Array, ...]:
        """Returns the arrays in the dtypes that the definition and the kernels take."""
        leaves = [getattr(self, name) for name in self.array_names()]
        return tuple(array.astype(dtype) for array, dtype in zip(leaves, self.dtypes, strict=True))

    @abc.abstractmethod
    def validate(self) -> None:
        """Validates that the arrays agree with each other.

        Raises:
          TypeError, ValueError: they do not; the message names the array.
        """

    @classmethod
    @abc.abstractmethod
    def validate_values(cls, arrays: Mapping[str, np.ndarray], num_features: int | None) -> int:
        """Validates the ranges of the values in the arrays of a file, whose shapes are validated elsewhere.

        Returns:
          The number of features of a row, or the greatest int32 if that is not known.

        Raises:
          ValueError: a value is out of its documented range.
        """

    @abc.abstractmethod
    def padded(self: T, codebooks: int, features: int, width: int) -> T:
        """Adds codebooks, all of whose rows get code 0, and features that no codebook reads.

        Args:
          codebooks: the number of codebooks of the result.
          features: the number of features of the rows that the result takes.
          width: the least number of features that each codebook of the result reads.
        """

    @abc.abstractmethod
    def repeated(self: T, taps: int) -> T:
        """Returns trees for a patch of `taps` positions: those for one position, repeated for each position in turn."""

    @abc.abstractmethod
    def in_reading_order(self: T) -> tuple[T, Int32[np.ndarray, " read"]]:
        """Returns trees that read their features in order, and the original index of each of these features."""

    @classmethod
    @abc.abstractmethod
    def placeholder(cls: type[T], features: int, codebooks: int, width: int) -> T:
        """Returns trees of a given size with arbitrary contents, to measure time and memory before learning."""


def walk(
    values: Int32[Array, "ops ... codebooks 4"], thresholds: Int32[Array, "ops codebooks 15"]
) -> UInt8[Array, "ops ... codebooks"]:
    """Finds the leaf that is reached by going right where a level's value is greater than the node's threshold.

    Integers are compared. `thresholds` are in heap order: node `j` of level `l` is entry `2**l - 1 + j`.
    """
    lead = (slice(None), *[None] * (values.ndim - 3))
    nodes = thresholds[lead]  # [ops, 1..., codebooks, 15]
    code = jnp.zeros(values.shape[:-1], jnp.int32)
    for level in range(LEVELS):
        size = 2**level
        is_at = code[..., None] == jnp.arange(size, dtype=jnp.int32).reshape((1,) * code.ndim + (-1,))
        threshold = jnp.where(is_at, nodes[..., size - 1 : 2 * size - 1], 0).sum(-1, dtype=jnp.int32)
        code = 2 * code + (values[..., level] > threshold).astype(jnp.int32)
    return code.astype(jnp.uint8)


def take_features(x: Array, indices: Int32[Array, "codebooks width"]) -> Array:
    """Takes the features that each codebook reads: `x [..., features]` becomes `[..., codebooks, width]`."""
    return jnp.take(x, indices, axis=-1, mode="clip")


def pad(array: jax.typing.ArrayLike, *sizes: int, value: float = 0) -> Array:
    """Appends entries of `value` to the axes of `array`, up to `sizes`."""
    array = np.asarray(array)
    widths = [(0, size - n) for size, n in zip(sizes, array.shape, strict=True)]
    return jnp.asarray(np.pad(array, widths, constant_values=value))


def tiled(array: Array, taps: int) -> Array:
    """Repeats the codebooks of `array`, its first axis, `taps` times."""
    return jnp.tile(array, (taps, *[1] * (array.ndim - 1)))


def shifted(indices: Int32[Array, "codebooks width"], features: int, taps: int) -> Int32[Array, "repeated width"]:
    """Repeats the codebooks of `indices` `taps` times, each time for the next `features` features of a row."""
    offsets = features * jnp.arange(taps, dtype=indices.dtype)[:, None, None]
    return (indices + offsets).reshape(-1, indices.shape[1])


def validate_array(name: str, array: Any, shape: tuple[int, ...], kind: type) -> None:
    """Raises unless `array`, called `name`, has this shape and a dtype of this kind."""
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise TypeError(f"`{name}` is {type(array).__name__}; expected an array.")
    if array.shape != shape or not jnp.issubdtype(array.dtype, kind):
        raise ValueError(
            f"`{name}` is {array.dtype}{list(array.shape)}; expected {kind.__name__}{list(shape)}. "
            "If the op is stacked, use `jax.vmap` over it."
        )


def validate_finite(name: str, values: np.ndarray) -> None:
    """Raises unless all `values`, called `name`, are finite."""
    if not np.all(np.isfinite(values)):
        raise ValueError(f"an entry of {name} is not finite.")


def validate_scales(name: str, scale: np.ndarray) -> None:
    """Raises unless all entries of `scale`, called `name`, are 0 or in the range of scales."""
    scale = scale.astype(np.float32)
    if not np.all((scale == 0) | (scale >= int8.LEAST_SCALE) & (scale <= int8.GREATEST_SCALE)):
        raise ValueError(f"an entry of {name} is neither 0 nor in [2**-100, 2**100].")


def validate_rounding(owner: str, center: np.ndarray, scale: np.ndarray) -> None:
    """Raises unless the center and the scale by which `owner` rounds features are in their ranges."""
    validate_finite(f"{owner}.center", center.astype(np.float32))
    validate_scales(f"{owner}.scale", scale)


def validate_int8(name: str, values: np.ndarray) -> None:
    """Raises if an entry of `values`, called `name`, is -128."""
    if np.any(values < -int8.LIMIT):
        raise ValueError(f"an entry of {name} is -128; expected -127 to 127.")


def validate_indices(name: str, indices: np.ndarray, limit: int) -> None:
    """Raises unless `indices`, called `name`, are int32 in `[0, limit)`."""
    if indices.size and not (indices.dtype == np.int32 and indices.min() >= 0 and indices.max() < limit):
        raise ValueError(f"{name} index is not an int32 in [0, {limit}).")
