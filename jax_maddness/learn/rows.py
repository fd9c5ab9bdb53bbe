"""The training rows: an array, or batches that are never all in memory at once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_maddness.learn import checks, shapes

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

BLOCK = 4096
"""Rows per block."""
RESERVOIR = 2**16
"""Rows that are kept of batches, to grow trees on."""
_BLOCK_ELEMENTS = 2**24  # of a block: with very many features it has fewer rows


@dataclasses.dataclass(frozen=True)
class Rows:
    """What learning needs to know of the training rows.

    Attributes:
      batches: starts over; yields float32 arrays [rows, features].
      count: how many rows there are.
      sample: all rows, or a uniform sample of `RESERVOIR` of them.
      mean: of all rows, in float64.
      exponent: `2**exponent` is about the largest magnitude.
      extra: what a loss wants to know of the rows of `sample`.
    """

    batches: Callable[[], Iterator[np.ndarray]]
    count: int
    sample: Float[np.ndarray, "sample features"]
    mean: Float[np.ndarray, " features"]
    exponent: int
    extra: tuple[np.ndarray, ...] = ()

    @classmethod
    def of(cls, x_train: Any, extra: Sequence[Any] = ()) -> Rows:
        """From an array [..., features], or from a function that returns an iterator over such arrays.

        Batches are read once here, for the sample, the mean and the range, and once more for the tables.
        """
        if not callable(x_train):
            x, others = checks.samples(x_train), checks.extras(extra, np.shape(x_train)[:-1])
            largest = checks.magnitude(x)
            return cls(lambda: iter([x]), len(x), x, x.mean(0, dtype=np.float64), exponent(largest), others)
        if extra:
            raise ValueError("`extra` is given, but `x_train` comes in batches. Pass `x_train` as one array.")
        batches = functools.partial(_read, x_train)
        reservoir, count, total, largest = np.zeros((0, 0), np.float32), 0, np.zeros(0), 0.0
        rng = np.random.default_rng(0)
        for x in batches():
            if count == 0:
                reservoir, total = np.zeros((0, x.shape[1]), np.float32), np.zeros(x.shape[1])
            reservoir = _add_to(reservoir, x, count, rng)
            count += len(x)
            total = total + x.sum(0, dtype=np.float64)
            largest = max(largest, checks.magnitude(x))
        if count == 0:
            raise ValueError("`x_train()` yields no rows. It must return a new iterator over batches at every call.")
        return cls(batches, count, reservoir, total / count, exponent(largest))

    @property
    def num_features(self) -> int:
        return self.sample.shape[1]

    @property
    def factor(self) -> np.float32:
        """The power of two that brings the largest magnitude near 1."""
        return power_of_two(-self.exponent)

    @property
    def num_blocks(self) -> int:
        """Blocks of rows; batches whose size is not a multiple of a block's may need more."""
        return -(-self.count // _block_rows(self.count, self.num_features))

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


def in_blocks(
    batches: Iterable[np.ndarray], count: int, num_features: int
) -> Iterator[tuple[Float[np.ndarray, "block features"], Bool[np.ndarray, " block"]]]:
    """`Rows.blocks` of `count` rows in batches."""
    size, width = _block_rows(count, num_features), shapes.rounded(num_features, shapes.FEATURES)
    for x in batches:
        for start in range(0, len(x), size):
            rows = x[start : start + size]
            yield shapes.pad(rows, size, width), np.arange(size) < len(rows)


def _block_rows(count: int, num_features: int) -> int:
    return max(shapes.ROWS, min(BLOCK, shapes.rounded(count, shapes.ROWS), _BLOCK_ELEMENTS // num_features))


def _read(x_train: Callable[[], Any]) -> Iterator[np.ndarray]:
    """Checked batches; all of as many features."""
    features = None
    for batch in x_train():
        x = checks.samples(batch)
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
