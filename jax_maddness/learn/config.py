"""`FitConfig`, the options of learning. Every other file of this folder may import this one; it imports none of them.

The shares and step counts that several files use are constants here, so that they agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Array

from jax_maddness.core import arguments

METHOD_NAMES = ("paper", "axis", "oblique", "auto", "int8")
"""Names of the methods; `methods/auto.py` has the function behind each of those that learn trees."""
STEPS = 600
"""Default of the largest number of training steps of oblique trees."""
INTERVAL = 50
"""Training steps between two evaluations on held-out rows; one compiled scan runs this many."""
HELD_OUT_SHARE = 0.15
"""Share of the rows that is held out for the choices inside of learning."""
FEW_ROWS = 512
"""Largest number of training rows with which a share of them cannot judge well.

Up to this number, trees are not regrown with the held-out rows, since no rows would be left to judge the result, and
choices are made by cross-validation."""
FOLDS = 4
"""Number of folds of cross-validation, and the fewest rows for it."""
REPORTED_SHARE = 0.2
"""Share of the rows that is held out for the errors that are reported to the user."""


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Options of `fit`: the method, its parameters, and the factors beside the codes.

    Attributes:
      method: the method of learning, one of five names. `"paper"` is that of Blalock & Guttag 2021 (sections 4.1 and
        4.2), with exact sums, and a scale and an offset per output. `"axis"` grows trees of the same kind over all
        features, each on the residual that the other trees leave of `x @ w`, and makes its choices on held-out rows:
        it is more accurate at the same cost of inference, and slower to learn. `"oblique"` trains trees on projections
        of each codebook's features (`ObliqueTrees`): it has about half the error; encoding takes 4 int8 multiply-adds
        per feature and row, and learning takes a minute. `"auto"` takes the one of these three with the least error on
        held-out rows, and the cheaper one where the difference may be luck; up to 512 rows it cross-validates them.
        `"int8"` learns no trees: with `num_codebooks=0`, the op is the whole product in int8 (`Int8Product`,
        `Int8ProductByRow`), with the steps that are best on held-out rows.
      ridge: weight of the penalty that keeps prototypes near the means of their buckets (lambda of section 4.2), a
        positive number in units of rows, for method `"paper"`; the other methods choose their own. None: the paper's 1
        or, with fewer than 8 rows per code (128 per codebook), the one with the least error on held-out rows.
      num_split_features: number of features whose thresholds are searched per level and codebook (section 4.1), for
        trees on groups of features; at least 1.
      width: number of features that each codebook of an oblique tree projects, from D/C (rounded up) to D. More are
        more accurate, and encoding takes `4 * C * width` multiply-adds per row. None: D/C.
      rank: rank of int8 factors (`Factors`) for the principal directions of `x @ w`; the look-ups approximate the
        residual. They take `rank * (D + M)` int8 multiply-adds per row, about as long as `rank` codebooks where D and M
        are in the hundreds. With `num_codebooks=0` they stand alone. Together with `outliers` it is rounded up to a
        multiple of 4. 0: none. `docs/factors.md` shows where they pay.
      outliers: number of features that have a factor of their own, those that add most to the variance of `x @ w`. Each
        costs as much as 1 of `rank`. 0: none.
      steps: largest number of training steps of oblique trees, a multiple of 50. Training ends earlier when the error
        on held-out rows no longer falls.
      seed: seed of all random choices: which rows are held out, and which minibatches training draws.
      loss: function that training of oblique trees minimizes instead of the squared error (`"auto"` then takes method
        `"oblique"`). It is a JAX function of the outputs `[rows, M]`, the exact outputs `x @ w + bias`, and the same
        rows of each of `fit`'s `extra` arrays; it returns a scalar. Trees and tables are trained by it, and the ones
        with the least loss on held-out rows are kept. Define the function once: every new function is compiled anew.

    Raises:
      TypeError: `loss` is not a function.
      ValueError: a field is out of its range, or `loss` is combined with `rank`, `outliers` or a method that does not
        train.

    Example:
      >>> def weighted_rows(y, exact, weight):  # with fit(..., extra=(weights,))
      ...     return (weight * jnp.square(y - exact).sum(-1)).mean()
      >>> def weighted_outputs(y, exact):
      ...     return (jnp.square(y - exact) @ jnp.array([1.0, 1.0, 100.0])).mean()
      >>> def cross_entropy(y, exact, label):  # of logits, with extra=(labels,); for a hidden layer, of `head(y)`
      ...     return -jnp.take_along_axis(jax.nn.log_softmax(y), label[:, None], axis=-1).mean()
      >>> def distillation(y, exact):  # the exact logits are the teacher; or pass another's as `extra`
      ...     return -(jax.nn.softmax(exact) * jax.nn.log_softmax(y)).sum(-1).mean()
      >>> FitConfig("oblique", loss=cross_entropy).loss is cross_entropy
      True
    """

    method: str = "auto"
    ridge: float | None = None
    num_split_features: int = 4
    width: int | None = None
    rank: int = 0
    outliers: int = 0
    steps: int = STEPS
    seed: int = 0
    loss: Callable[..., Array] | None = None

    @property
    def stands_alone(self) -> bool:
        """Whether an op may have no codebooks, since there are factors or a whole product in int8."""
        return self.method == "int8" or bool(self.rank or self.outliers)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.integer | np.floating):  # as Python's, so that equal options hash and print alike
                object.__setattr__(self, field.name, value.item())
        _validate(self)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _validate(config: FitConfig) -> None:
    """Raises an error if a field of `config` is out of its range, or if two fields contradict each other."""
    arguments.choice(config.method, "method", METHOD_NAMES)
    if config.ridge is not None and not (
        isinstance(config.ridge, int | float)
        and config.ridge is not True
        and np.isfinite(config.ridge)
        and config.ridge > 0
    ):
        raise ValueError(
            f"`ridge` is {config.ridge!r}; expected a positive number, or None for a choice. The paper's is 1."
        )
    if not _is_integer(config.num_split_features) or config.num_split_features < 1:
        raise ValueError(
            f"`num_split_features` is {config.num_split_features!r}; expected an integer >= 1. The paper's is 4."
        )
    if config.width is not None and not _is_integer(config.width):
        raise ValueError(f"`width` is {config.width!r}; expected an integer, or None for the least.")
    for name, number in (("rank", config.rank), ("outliers", config.outliers)):
        if not _is_integer(number) or number < 0:
            raise ValueError(f"`{name}` is {number!r}; expected an integer >= 0. 0 means no such term.")
    if not _is_integer(config.steps) or config.steps < 0 or config.steps % INTERVAL:
        raise ValueError(
            f"`steps` is {config.steps!r}; expected a multiple of {INTERVAL}, or 0 for no training at all."
        )
    if not _is_integer(config.seed) or config.seed < 0:
        raise ValueError(f"`seed` is {config.seed!r}; expected an integer >= 0.")
    if config.loss is not None and not callable(config.loss):
        raise TypeError(f"`loss` is {type(config.loss).__name__}; expected a function of `(y, exact, *extra)`.")
    if config.loss is not None and config.method in ("paper", "axis", "int8"):
        raise ValueError(
            f'Method "{config.method}" has no training for a `loss` to guide. Take method "oblique" (or "auto", which '
            "is the same where there is a loss)."
        )
    if config.loss is not None and (config.rank or config.outliers):
        raise ValueError(
            "A `loss` judges whole outputs, and factors are no part of them. Leave `rank` and `outliers` 0."
        )


def validate_terms(config: FitConfig, num_features: int, num_outputs: int) -> None:
    """Raises `ValueError` if the factors ask for a larger rank or more features than `w` has."""
    largest_rank = min(num_features, num_outputs)
    if config.rank > largest_rank:
        raise ValueError(
            f"`rank` is {config.rank}, but `w` of {num_features} features and {num_outputs} outputs has at most "
            f'{largest_rank}. Use fewer, or method "int8" for the whole product.'
        )
    if config.outliers > num_features:
        raise ValueError(f"`outliers` is {config.outliers}, but there are {num_features} features. Use a few.")
