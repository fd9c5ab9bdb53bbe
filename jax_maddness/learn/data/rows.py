"""The training rows: an array, batches that are never all in memory at once, or shards that stay on their devices."""

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
"""Largest number of rows per block, over which statistics are summed."""
RESERVOIR = 2**16
"""Largest number of rows that are sampled from batches or shards, to grow trees on."""
_BLOCK_ELEMENTS = 2**24  # largest size of a block: with very many features it has fewer rows


@dataclasses.dataclass(frozen=True)
class Rows(abc.ABC):
    """The training rows: their number, a sample, their mean and range, and a way to sum over all of them.

    Attributes:
      count: number of rows.
      sample: all rows, or a uniform random sample of `RESERVOIR` of them; float32.
      mean: mean of all rows, float64.
      exponent: exponent such that `2**exponent` is about the largest magnitude.
      extra: arrays for the user's loss, each with an entry for every row of `sample`.
    """

    count: int
    sample: Float[np.ndarray, "sample features"]
    mean: Float[np.ndarray, " features"]
    exponent: int
    extra: tuple[np.ndarray, ...] = dataclasses.field(default=(), kw_only=True)

    @staticmethod
    def of(x_train: Any, extra: Sequence[Any] = ()) -> Rows:
        """Validates and reads an array `[..., features]`, or a function that returns an iterator over such arrays.

        Args:
          x_train: the rows, as `fit` takes them.
          extra: arrays for the user's loss, with an entry for each row of `x_train`.

        Raises:
          TypeError: an array is not real, or is traced.
          ValueError: there are no rows, they are not finite, or `extra` comes with batches or shards.
        """
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
        """Power of two that scales the largest magnitude to about 1; scaling by it rounds nothing."""
        return power_of_two(-self.exponent)

    @property
    @abc.abstractmethod
    def num_steps(self) -> int:
        """Number of calls of `step` by `statistics`; batches that blocks do not divide evenly may need more."""

    @abc.abstractmethod
    def statistics(self, trees: Trees, step: Callable[[], None]) -> Statistics:
        """Returns the statistics of all rows about their mean, times `factor`; codebooks and features are padded."""

    def agreed(self, value: T) -> T:
        """Returns the value that all processes which share the rows use: that of the first process."""
        return value


@dataclasses.dataclass(frozen=True)
class BatchedRows(Rows):
    """Rows in memory, or in batches.

    Attributes:
      batches: function that returns a new iterator over the same float32 arrays `[rows, features]` at every call.
    """

    batches: Callable[[], Iterator[np.ndarray]]

    @classmethod
    def of_array(cls, x_train: Any, extra: Sequence[Any] = ()) -> BatchedRows:
        """Reads an array `[..., features]`; the sample is all of its rows."""
        x, extras = validate.samples(x_train), validate.extras(extra, np.shape(x_train)[:-1])
        mean, log2_range = x.mean(0, dtype=np.float64), exponent(validate.magnitude(x))
        return cls(len(x), x, mean, log2_range, lambda: iter([x]), extra=extras)

    @classmethod
    def of_batches(cls, x_train: Callable[[], Any]) -> BatchedRows:
        """Reads all batches once, for the sample, the mean and the range; `statistics` reads them once more."""
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
        """Yields all rows in blocks of one padded shape, each with a mask of the rows that are not padding."""
        num_read = 0
        for x, counted in in_blocks(self.batches(), self.count, self.num_features):
            yield x, counted
            num_read += int(counted.sum())
        if num_read != self.count:
            raise ValueError(
                f"`x_train()` yielded {self.count} rows first, {num_read} later. "
                "It must return a new iterator over the same batches at every call."
            )


@dataclasses.dataclass(frozen=True)
class ShardedRows(Rows):
    """Rows on several devices or hosts. They stay there; only the sample is sent.

    Attributes:
      x: array `[..., features]`, sharded over its leading dimensions.
    """

    x: Array

    @classmethod
    def of_array(cls, x: Array) -> ShardedRows:
        """Validates an array that is sharded over rows; all processes get the same sample, mean and range."""
        count = int(np.prod(x.shape[:-1]))
        with modes():
            log2_range = exponent(sharded.validated_magnitude(x, "x_train"))
            numbers = np.random.default_rng(0).choice(count, min(count, RESERVOIR), replace=False)
            return cls(count, sharded.rows_at(x, np.sort(numbers)), sharded.mean(x, log2_range), log2_range, x)

    @property
    def num_steps(self) -> int:
        return 1

    def statistics(self, trees: Trees, step: Callable[[], None]) -> Statistics:
        center = (self.mean * self.factor).astype(np.float32)
        size = _block_rows(self.count, self.num_features)
        trees = jax.tree.map(np.asarray, trees)
        sums = sharded.fetch(sharded.statistics(self.x.sharding, size, self.x, trees, self.factor, center))
        codes = LEAVES * shapes.rounded(trees.num_codebooks, shapes.CODEBOOKS)
        width = shapes.rounded(self.num_features, shapes.FEATURES)
        step()
        return Statistics(
            gram=jnp.asarray(shapes.pad(sums.gram, codes, codes)),
            sums=jnp.asarray(shapes.pad(sums.sums, codes, width)),
        )

    def agreed(self, value: T) -> T:
        return sharded.from_first(value, self.x)


def in_blocks(
    batches: Iterable[np.ndarray], count: int, num_features: int
) -> Iterator[tuple[Float[np.ndarray, "block features"], Bool[np.ndarray, " block"]]]:
    """Cuts batches into blocks of one padded shape, each with a mask of the rows that are not padding.

    Args:
      batches: arrays `[rows, features]`.
      count: number of rows in all batches, which decides the size of a block.
      num_features: number of features.
    """
    size, width = _block_rows(count, num_features), shapes.rounded(num_features, shapes.FEATURES)
    for x in batches:
        for start in range(0, len(x), size):
            rows = x[start : start + size]
            yield shapes.pad(rows, size, width), np.arange(size) < len(rows)


def _block_rows(count: int, num_features: int) -> int:
    """Returns the number of rows of a block: few enough for memory, and no more padding than small sets need."""
    return max(shapes.ROWS, min(BLOCK, shapes.rounded(count, shapes.ROWS), _BLOCK_ELEMENTS // num_features))


def _read(x_train: Callable[[], Any]) -> Iterator[np.ndarray]:
    """Yields the batches as float32 rows, validated to have the same number of features."""
    batches, features = x_train(), None
    if not isinstance(batches, Iterable):
        raise TypeError(f"`x_train()` is {type(batches).__name__}; expected a new iterator over batches at every call.")
    for batch in batches:
        x = validate.samples(batch)
        features = features or x.shape[1]
        if x.shape[1] != features:
            raise ValueError(f"`x_train` yields batches of {features} and of {x.shape[1]} features; expected the same.")
        yield x


def _add_to(reservoir: np.ndarray, x: np.ndarray, num_read: int, rng: np.random.Generator) -> np.ndarray:
    """Adds a batch to a reservoir sample (Vitter's algorithm R), so that all rows so far are kept with equal chance.

    Args:
      reservoir: rows kept so far.
      x: the batch.
      num_read: number of rows in the batches before.
      rng: generator of the random choice.
    """
    room = max(RESERVOIR - len(reservoir), 0)
    reservoir = np.concatenate([reservoir, x[:room]])
    late_rows = x[room:]
    # Row number n (from 1) draws a place below n, and is kept if that place is in the reservoir.
    places = rng.integers(0, num_read + room + 1 + np.arange(len(late_rows)))
    kept = places < RESERVOIR
    # Where several rows of a batch draw the same place, NumPy keeps the last one, as one row after the other would.
    reservoir[places[kept]] = late_rows[kept]
    return reservoir


def exponent(largest: float) -> int:
    """Returns `e` such that `largest` is about `2**e`, limited so that float32 holds `2**e` and `2**-e` exactly."""
    return int(np.clip(np.frexp(largest)[1], -126, 126)) if largest else 0


def power_of_two(exponent: int) -> np.float32:
    """Returns `2**exponent` as a float32."""
    return np.ldexp(np.float32(1), exponent)
