"""The training rows: an array, batches that are never all in memory at once, or shards that stay where they are."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_maddness.core.types import LEAVES, Trees
from jax_maddness.learn import validate
from jax_maddness.learn.data import shapes, sharded
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.data.statistics import Statistics, encoder, gather

T = TypeVar("T")

BLOCK = 4096
"""Rows per block."""
RESERVOIR = 2**16
"""Rows that are kept of batches or shards, to grow trees on."""
_BLOCK_ELEMENTS = 2**24  # of a block: with very many features it has fewer rows


@dataclasses.dataclass(frozen=True)
class Rows(abc.ABC):
    """What learning needs to know of the training rows, and how to sum over all of them, wherever they are.

    Attributes:
      count: how many rows there are.
      sample: all rows, or a uniform sample of `RESERVOIR` of them.
      mean: of all rows, in float64.
      exponent: `2**exponent` is about the largest magnitude.
      extra: what a loss wants to know of the rows of `sample`.
    """

    count: int
    sample: Float[np.ndarray, "sample features"]
    mean: Float[np.ndarray, " features"]
    exponent: int
    extra: tuple[np.ndarray, ...] = dataclasses.field(default=(), kw_only=True)

    @staticmethod
    def of(x_train: Any, extra: Sequence[Any] = ()) -> Rows:
        """From an array [..., features], or from a function that returns an iterator over such arrays."""
        if extra and (callable(x_train) or sharded.is_sharded(x_train)):
            raise ValueError("`extra` is given, but `x_train` comes in batches or shards. Pass `x_train` as one array.")
        if sharded.is_sharded(x_train):
            return ShardedRows.of_array(x_train)
        return BatchedRows.of_batches(x_train) if callable(x_train) else BatchedRows.of_array(x_train, extra)

    @property
    def num_features(self) -> int:
        return self.sample.shape[1]

    @property
    def factor(self) -> np.float32:
        """The power of two that brings the largest magnitude near 1."""
        return power_of_two(-self.exponent)

    @property
    @abc.abstractmethod
    def num_steps(self) -> int:
        """How often `statistics` calls `step`; batches whose size is not a multiple of a block's may need more."""

    @abc.abstractmethod
    def statistics(self, trees: Trees, step: Callable[[], None]) -> Statistics:
        """Of all rows about their mean, times `factor`; codebooks and features are padded."""

    def agreed(self, value: T) -> T:
        """`value` as all processes that share the rows are to have it."""
        return value


@dataclasses.dataclass(frozen=True)
class BatchedRows(Rows):
    """Rows in memory, or in batches.

    Attributes:
      batches: starts over; yields float32 arrays [rows, features].
    """

    batches: Callable[[], Iterator[np.ndarray]]

    @classmethod
    def of_array(cls, x_train: Any, extra: Sequence[Any] = ()) -> BatchedRows:
        """The sample is all of them."""
        x, others = validate.samples(x_train), validate.extras(extra, np.shape(x_train)[:-1])
        mean, power = x.mean(0, dtype=np.float64), exponent(validate.magnitude(x))
        return cls(len(x), x, mean, power, lambda: iter([x]), extra=others)

    @classmethod
    def of_batches(cls, x_train: Callable[[], Any]) -> BatchedRows:
        """Batches are read once here, for the sample, the mean and the range, and once more for the tables."""
        batches = functools.partial(_read, x_train)
        reservoir, count, total, largest = np.zeros((0, 0), np.float32), 0, np.zeros(0), 0.0
        rng = np.random.default_rng(0)
        for x in batches():
            if count == 0:
                reservoir, total = np.zeros((0, x.shape[1]), np.float32), np.zeros(x.shape[1])
            reservoir = _add_to(reservoir, x, count, rng)
            count += len(x)
            total = total + x.sum(0, dtype=np.float64)
            largest = max(largest, validate.magnitude(x))
        if count == 0:
            raise ValueError("`x_train()` yields no rows. It must return a new iterator over batches at every call.")
        return cls(count, reservoir, total / count, exponent(largest), batches)

    @property
    def num_steps(self) -> int:
        return -(-self.count // _block_rows(self.count, self.num_features))

    def statistics(self, trees: Trees, step: Callable[[], None]) -> Statistics:
        return gather(self.blocks(), encoder(trees), self.mean, self.factor, step)

    def blocks(self) -> Iterator[tuple[Float[np.ndarray, "block features"], Bool[np.ndarray, " block"]]]:
        """All rows in blocks of one padded shape, with a mask of those that count."""
        seen = 0
        for x, counted in in_blocks(self.batches(), self.count, self.num_features):
            yield x, counted
            seen += int(counted.sum())
        if seen != self.count:
            raise ValueError(
                f"`x_train()` yielded {self.count} rows first, {seen} later. "
                "It must return a new iterator over the same batches at every call."
            )


@dataclasses.dataclass(frozen=True)
class ShardedRows(Rows):
    """Rows on several devices or hosts, which stay there; the sample is all that is sent.

    Attributes:
      x: [..., features], sharded over leading dimensions.
    """

    x: Array

    @classmethod
    def of_array(cls, x: Array) -> ShardedRows:
        """Every process finds the same, sample included."""
        count = int(np.prod(x.shape[:-1]))
        with modes():
            power = exponent(sharded.validated_magnitude(x, "x_train"))
            numbers = np.random.default_rng(0).choice(count, min(count, RESERVOIR), replace=False)
            return cls(count, sharded.rows_at(x, np.sort(numbers)), sharded.mean(x, power), power, x)

    @property
    def num_steps(self) -> int:
        return 1

    def statistics(self, trees: Trees, step: Callable[[], None]) -> Statistics:
        center = (self.mean * self.factor).astype(np.float32)
        size = _block_rows(self.count, self.num_features)
        trees = jax.tree.map(np.asarray, trees)
        found = sharded.fetch(sharded.statistics(self.x.sharding, size, self.x, trees, self.factor, center))
        codes = LEAVES * shapes.rounded(trees.num_codebooks, shapes.CODEBOOKS)
        width = shapes.rounded(self.num_features, shapes.FEATURES)
        step()
        return Statistics(
            gram=jnp.asarray(shapes.pad(found.gram, codes, codes)),
            sums=jnp.asarray(shapes.pad(found.sums, codes, width)),
        )

    def agreed(self, value: T) -> T:
        return sharded.from_first(value, self.x)


def in_blocks(
    batches: Iterable[np.ndarray], count: int, num_features: int
) -> Iterator[tuple[Float[np.ndarray, "block features"], Bool[np.ndarray, " block"]]]:
    """`BatchedRows.blocks` of `count` rows in batches."""
    size, width = _block_rows(count, num_features), shapes.rounded(num_features, shapes.FEATURES)
    for x in batches:
        for start in range(0, len(x), size):
            rows = x[start : start + size]
            yield shapes.pad(rows, size, width), np.arange(size) < len(rows)


def _block_rows(count: int, num_features: int) -> int:
    return max(shapes.ROWS, min(BLOCK, shapes.rounded(count, shapes.ROWS), _BLOCK_ELEMENTS // num_features))


def _read(x_train: Callable[[], Any]) -> Iterator[np.ndarray]:
    """Validated batches; all of as many features."""
    features = None
    for batch in x_train():
        x = validate.samples(batch)
        features = features or x.shape[1]
        if x.shape[1] != features:
            raise ValueError(f"`x_train` yields batches of {features} and of {x.shape[1]} features; expected the same.")
        yield x


def _add_to(reservoir: np.ndarray, x: np.ndarray, seen: int, rng: np.random.Generator) -> np.ndarray:
    """Reservoir sampling (Vitter's algorithm R, a batch at a time): every row so far is kept with equal probability."""
    room = max(RESERVOIR - len(reservoir), 0)
    reservoir = np.concatenate([reservoir, x[:room]])
    rest = x[room:]
    places = rng.integers(0, seen + room + 1 + np.arange(len(rest)))
    kept = places < RESERVOIR
    reservoir[places[kept]] = rest[kept]
    return reservoir


def exponent(largest: float) -> int:
    """`e` such that `largest` is about `2**e`."""
    return int(np.clip(np.frexp(largest)[1], -126, 126)) if largest else 0


def power_of_two(exponent: int) -> np.float32:
    return np.ldexp(np.float32(1), exponent)
