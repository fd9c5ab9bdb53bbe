"""`evaluate`, which reports how large an op's error is, where it comes from, and what to do about it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jax_maddness.core import arguments
from jax_maddness.core.amm import amm
from jax_maddness.core.encode import encode
from jax_maddness.core.types import LEAVES, MaddnessOp
from jax_maddness.learn import advice, validate
from jax_maddness.learn.data import sharded
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.data.rows import exponent, power_of_two
from jax_maddness.learn.tables.factors import taken_apart

_BLOCK = 8192  # rows whose products are in memory at once
_OF_MEAN, _OF_SHARDED_MEAN = 2.0**-40, 2.0**-20  # relative errors of means in float64, and over devices in float32
_TINY = np.finfo(np.float64).tiny  # keeps quotients defined where outputs are constant and have no spread


@dataclasses.dataclass(frozen=True)
class FitReport:
    """The error of an op on given rows, its parts, and a suggestion. `print` shows all of it in words.

    All errors are NMSE, as fractions: the squared error divided by the squared distance of the exact outputs from their
    mean. `encoder`, `quantization` and `shift` add up to `nmse`.

    Attributes:
      nmse: `|y - y_exact|^2 / |y_exact - mean|^2` over all rows and outputs, with the mean of each output.
        Where no output varies, it is 0 if the op is right but for rounding.
      nmse_per_output: NMSE of every output alone, float64 `[M]`; NaN for an output whose exact values are constant.
      encoder: part of `nmse` that 16 prototypes per codebook cannot express: the remainder of the other two parts.
      quantization: part of `nmse` that rounding the tables to 8 bits is expected to add, a twelfth of a squared step
        per codebook.
      shift: part of `nmse` by which it exceeds `train_nmse`; 0 without `x_train`.
      train_nmse: NMSE on the training rows; None without `x_train`.
      occupancy: share of the rows that reach each leaf, float64 `[C, 16]`; every row of it adds up to 1.
      rows: number of rows.
      train_rows: number of training rows; None without `x_train`.
      suggestion: advice on the largest part of the error, in words; empty where there is none to give.
    """

    nmse: float
    nmse_per_output: Float[np.ndarray, " outputs"]
    encoder: float
    quantization: float
    shift: float
    train_nmse: float | None
    occupancy: Float[np.ndarray, "codebooks 16"]
    rows: int
    train_rows: int | None
    suggestion: str

    @property
    def r2(self) -> float:
        """Share of the outputs' variance that is explained: `1 - nmse`."""
        return 1 - self.nmse

    @property
    def unused_leaves(self) -> int:
        """Number of leaves that no row reaches, over all codebooks."""
        return int((self.occupancy == 0).sum())

    @property
    def bits(self) -> float:
        """Mean entropy of a code in bits, at most 4."""
        p = self.occupancy
        return float(-(p * np.log2(np.where(p > 0, p, 1))).sum(1).mean()) if p.size else 0.0

    def __str__(self) -> str:
        worst = np.nan_to_num(self.nmse_per_output, nan=-1).argmax()
        known = self.nmse_per_output[np.isfinite(self.nmse_per_output)]
        quartiles = np.quantile(known, [0.25, 0.5, 0.75]) if len(known) else [np.nan] * 3
        lines = [
            f"NMSE {self.nmse:.4g} (R2 {self.r2:.4g}) on {self.rows:,} rows",
            f"  encoder       {self.encoder:.4g}",
            f"  quantization  {self.quantization:.4g}",
        ]
        if self.train_nmse is not None:
            lines.append(
                f"  shift         {self.shift:.4g}  (NMSE on {self.train_rows:,} training rows: {self.train_nmse:.4g})"
            )
        lines += [
            "outputs: quartiles {:.3g}, {:.3g}, {:.3g}; ".format(*quartiles)
            + f"worst {self.nmse_per_output[worst]:.3g} (output {worst})",
        ]
        if self.occupancy.size:
            used = f"{self.bits:.2f} of 4 bits used per code"
            lines.append(f"leaves: {self.unused_leaves} of {self.occupancy.size} unused, {used}")
        return "\n".join([*lines, self.suggestion] if self.suggestion else lines)


def evaluate(
    op: MaddnessOp,
    x: Float[ArrayLike, "... features"],
    w: Float[ArrayLike, "features outputs"],
    bias: Float[ArrayLike, " outputs"] | None = None,
    x_train: Float[ArrayLike, "... features"] | None = None,
) -> FitReport:
    """Measures how well `amm(x, op)` approximates `x @ w + bias`, and where the error comes from.

    The error is the paper's normalized mean squared error (Blalock & Guttag 2021, section 5), about the mean of each
    output. Its parts are explained in `FitReport`.

    Args:
      op: op that `fit` learned.
      x: rows `[..., D]` of a real dtype that were not used for learning; on training rows the error looks smaller than
        it is. They may be sharded over devices, as those of `fit` may.
      w: weights `[D, M]` whose product `op` approximates.
      bias: vector `[M]` that `op` adds to the product; None stands for zeros.
      x_train: rows `[..., D]` that `op` was learned from. They separate the error that learning leaves from the error
        that only new rows have (`FitReport.shift`). Where new rows have a larger error, an op with fewer codebooks is
        learned from a part of these rows, by method "paper": it shows whether rows are too few, or new rows of another
        kind.

    Returns:
      A report with the error over all rows, per output and by its parts, with the use of the leaves, and with a
      suggestion.

    Raises:
      TypeError: an argument is of the wrong kind.
      ValueError: shapes do not match, there are no rows, or values are not finite.

    Example:
      >>> import jax_maddness
      >>> x = np.random.default_rng(0).standard_normal((2000, 8))
      >>> op = jax_maddness.fit(x[:1000], np.ones((8, 3)), num_codebooks=8, config=jax_maddness.FitConfig("axis"))
      >>> jax_maddness.evaluate(op, x[1000:], np.ones((8, 3)), x_train=x[:1000]).nmse < 0.05
      True
    """
    arguments.instance(op, "op", MaddnessOp)
    rows = _validated(x, "x")
    weights, offset = validate.product(rows.shape[-1], w, bias, "x")
    if weights.shape[1] != op.num_outputs:
        raise ValueError(
            f"`w` has {weights.shape[1]} columns, but `op` has {op.num_outputs} outputs. Pass the `w` that it was "
            "learned for."
        )
    error, spread, occupancy = _errors(op, rows, weights, offset)
    nmse = _nmse(error, spread)
    step = np.asarray(taken_apart(op)[0].scale, np.float64)
    # Rounding to the nearest step has a variance of step^2 / 12 per look-up. This is an expectation, so it is bounded
    # by the measured error, of which it is to be a part.
    rounding = min(_quotient(op.num_codebooks * _count(rows) * (step**2).sum() / 12, spread.sum()), nmse)
    train_nmse, shift, train_rows, simpler = None, 0.0, None, None
    if x_train is not None:
        train = _validated(x_train, "x_train")
        validate.product(train.shape[-1], w, bias)
        train_error, train_spread, _ = _errors(op, train, weights, offset)
        train_nmse = _nmse(train_error, train_spread)
        shift, train_rows = nmse - train_nmse, _count(train)
        rounding = min(rounding, train_nmse)
        if (
            op.num_codebooks
            and advice.differs(nmse, train_nmse)
            and not (sharded.is_sharded(rows) or sharded.is_sharded(train))
        ):
            simpler = advice.Simpler.learned(
                op.num_codebooks,
                train,
                weights,
                offset,
                rows,
                lambda op, x: _nmse(*_errors(op, x, weights, offset)[:2]),
            )
    return FitReport(
        nmse=nmse,
        nmse_per_output=np.where(spread > 0, error / np.where(spread > 0, spread, 1), np.nan),
        encoder=nmse - shift - rounding,
        quantization=rounding,
        shift=shift,
        train_nmse=train_nmse,
        occupancy=occupancy,
        rows=_count(rows),
        train_rows=train_rows,
        suggestion=advice.suggestion(op.num_codebooks, nmse, rounding, train_nmse, train_rows, occupancy, simpler),
    )


def _validated(x: Any, name: str) -> Any:
    """Validates rows `[..., features]`, and flattens them to a NumPy array unless they are sharded over devices."""
    if not sharded.is_sharded(x):
        return validate.samples(x, name)
    with modes():
        sharded.validated_magnitude(x, name)
    return x


def _nmse(error: np.ndarray, spread: np.ndarray) -> float:
    """Returns the NMSE over all outputs, given squared errors and squared distances from the mean."""
    return _quotient(error.sum(), spread.sum())


def _quotient(error: float, spread: float) -> float:
    """Returns `error / spread`; where nothing is spread, 0 without an error, and else infinity or close to it."""
    with np.errstate(over="ignore"):
        return float(np.float64(error) / max(spread, _TINY))


def _count(x: Any) -> int:
    """Returns the number of rows of `x`, over all leading dimensions."""
    return int(np.prod(x.shape[:-1]))


def _errors(
    op: MaddnessOp, x: Any, w: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, "codebooks 16"]]:
    """Returns, per output, the squared error and the squared distance from the mean, both summed over rows.

    The third result is the share of the rows that reach each leaf.
    """
    if sharded.is_sharded(x):
        with modes():
            return _errors_of_shards(op, x, w, bias)
    call = jax.jit(amm)
    mean, wide = x.mean(0, dtype=np.float64), w.astype(np.float64)
    center, square = mean @ wide + bias, np.zeros(x.shape[1])
    error, spread = np.zeros(w.shape[1]), np.zeros(w.shape[1])
    occupancy = np.zeros((op.num_codebooks, LEAVES))
    for start in range(0, len(x), _BLOCK):
        rows = x[start : start + _BLOCK]
        # About the mean, so that a large mean or bias does not round away what varies.
        deviation = ((rows - mean).astype(np.float32) @ w).astype(np.float64)
        error += ((np.asarray(call(rows, op), np.float64) - center - deviation) ** 2).sum(0)
        spread += (deviation**2).sum(0)
        square += np.square(rows, dtype=np.float64).sum(0)
        if op.num_codebooks:
            codes = np.asarray(encode(jax.numpy.asarray(rows), op.trees))
            occupancy += (codes[:, :, None] == np.arange(LEAVES)).sum(0)
    terms = square @ wide**2
    return *_without_rounding(error, spread, _OF_MEAN**2 * terms, terms + len(x) * center**2), occupancy / len(x)


def _without_rounding(
    error: np.ndarray, spread: np.ndarray, least: np.ndarray, terms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns 0 as the spread of outputs that are constant, and as their error if they are right but for rounding.

    The quotient of two rounding errors says nothing: it is near 1 for an op that is right.

    Args:
      error: squared errors of each output, summed over rows, as are the others.
      spread: squared distances from the mean.
      least: the greatest spread of outputs that are constant: what the rounding of the mean of the rows leaves.
      terms: squares of the terms of the product, `x_d w_d`, and of the mean output.
    """
    constant = spread <= least
    right = constant & (error <= (4 * np.finfo(np.float32).eps) ** 2 * terms)
    return np.where(right, 0, error), np.where(constant, 0, spread)


def _errors_of_shards(
    op: MaddnessOp, x: Array, w: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, "codebooks 16"]]:
    """Returns the results of `_errors` for sharded rows, computed on the devices that have them.

    Devices sum in float32, so each output is measured in units of a power of two near one step of its tables, in which
    squares do not overflow. Numbers of float64 are handed to them as two of float32.
    """
    scale = exponent(sharded.validated_magnitude(x, "x"))
    mean, wide = sharded.mean(x, scale), w.astype(np.float64)
    center = mean @ wide + bias
    near, near_outputs = mean.astype(np.float32), center.astype(np.float32)
    rest, rest_of_outputs = (near - mean) @ wide, near_outputs - center
    powers = np.array([exponent(float(step)) for step in np.asarray(op.tables.scale)])
    inverse = np.ldexp(np.float32(1), -powers)
    op = jax.tree.map(np.asarray, op)
    singles = (np.float32(a) for a in (rest, rest_of_outputs))
    smaller = power_of_two(-scale)  # squares of features do not overflow either
    error, spread, square, occupancy = sharded.fetch(
        _sums(x.sharding, x, op, w, near, near_outputs, *singles, inverse, smaller)
    )
    unit, count = np.ldexp(1.0, 2 * powers), _count(x)
    terms = np.ldexp(square.astype(np.float64), 2 * scale) @ wide**2
    least, all_terms = _OF_SHARDED_MEAN**2 * terms, terms + count * center**2
    return *_without_rounding(error * unit, spread * unit, least, all_terms), occupancy / count


@functools.partial(jax.jit, static_argnums=0)
def _sums(sharding: Any, x: Array, *others: Any) -> tuple[Array, ...]:
    """Returns the sums of `_errors` over all sharded rows.

    These are squared errors, squared distances from the mean, squares of the features, and counts of leaves.
    """

    def local(
        x: Array, op: MaddnessOp, w: Array, mean: Array, center: Array, rest: Array, rest_of_outputs: Array,
        inverse: Array, smaller: Array,
    ) -> tuple[Array, ...]:  # fmt: skip
        def add(total: tuple[Array, ...], rows: Array, counted: Array) -> tuple[Array, ...]:
            deviation = jnp.matmul(rows - mean, w, precision="highest") + rest
            off = (amm(rows, op) - center) - (deviation - rest_of_outputs)
            error, spread = (jnp.where(counted[:, None], a * inverse, 0) for a in (off, deviation))
            square = jnp.where(counted[:, None], rows * smaller, 0)
            codes = encode(rows, op.trees) if op.num_codebooks else jnp.zeros((len(rows), 0), jnp.uint8)
            leaves = (codes[:, :, None] == jnp.arange(LEAVES)) & counted[:, None, None]
            sums = (error**2).sum(0), (spread**2).sum(0), (square**2).sum(0), leaves.sum(0)
            return jax.tree.map(jnp.add, total, sums)

        zero = jnp.zeros(op.num_outputs, jnp.float32)
        counts = jnp.zeros((op.num_codebooks, LEAVES), jnp.int32)
        return sharded.over_blocks(x, _BLOCK, add, (zero, zero, jnp.zeros(x.shape[-1], jnp.float32), counts))

    return sharded.over_shards(local, lax.psum, sharding, x, *others)
