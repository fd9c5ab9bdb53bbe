"""FitConfig: how `fit` learns. Every other file of this folder may import this one; it imports none of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Array

METHOD_NAMES = ("paper", "axis", "oblique", "auto")
"""The methods, simplest first; `methods/auto.py` has the function behind each name."""
STEPS = 600
"""Default of the most training steps of oblique trees."""
INTERVAL = 50
"""Training steps between two evaluations on held-out rows, and of one compiled scan."""
HELD_OUT_SHARE = 0.15
"""Share of the rows on which the choices inside of learning are made."""
REPORTED_SHARE = 0.2
"""Share of the rows on which the errors are measured that are reported to the user."""


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How `fit` learns.

    Attributes:
      method: `"paper"`: Blalock & Guttag 2021, with exact sums, and a scale and an offset per output. `"axis"`: trees
        of the same kind, grown on what the other trees leave of `x @ w`, over all features, by validation: more
        accurate at the same cost of inference, and slower to learn. `"oblique"`: trees on projections of each
        codebook's features (`ObliqueTrees`), trained: about half the error; encoding takes 4 int8 multiply-adds per
        feature and row, and learning a minute. `"auto"`: the one of these three that serves best on rows held out, the
        cheaper where that is not sure; up to 512 rows by cross-validation.
      ridge: weight of the penalty that keeps prototypes near their bucket's mean, in rows (lambda of section 4.2), for
        `"paper"`; the others choose it.
      num_split_features: features whose thresholds are searched per level and codebook (section 4.1), on groups.
      width: features that each codebook of an oblique tree projects, from D/C (None: the least) to D: more are more
        accurate, and take `4 * C * width` multiply-adds per row.
      rank: of an exact term for the principal directions of `x @ w`, so that codes have to say only what it leaves;
        `rank * (D + M)` multiply-adds per row. 0: none. `docs/terms.md` says where it pays.
      outliers: how many features, those with most power in `x @ w`, keep an exact product; `outliers * M`
        multiply-adds per row. 0: none.
      steps: of training oblique trees, at most: a multiple of 50. It ends sooner where rows held out gain nothing.
      seed: of what is random: which rows are held out, and what training draws.
      loss: what training makes small instead of the squared error, on oblique trees (`"auto"` takes these then): a
        JAX function of outputs `[rows, M]`, the exact ones `x @ w + bias`, and the same rows of `fit`'s `extra` arrays;
        it returns a scalar. Trees and tables are trained by it, and kept as they do best on rows held out. Define it
        once: every new function is compiled anew.

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
    ridge: float = 1.0
    num_split_features: int = 4
    width: int | None = None
    rank: int = 0
    outliers: int = 0
    steps: int = STEPS
    seed: int = 0
    loss: Callable[..., Array] | None = None

    def __post_init__(self) -> None:
        _validate(self)


def _validate(config: FitConfig) -> None:
    """Raises unless the fields of `config` make sense."""
    if config.method not in METHOD_NAMES:
        known = ", ".join(repr(name) for name in METHOD_NAMES)
        raise ValueError(f"`method` is {config.method!r}; expected one of: {known}.")
    if not (isinstance(config.ridge, int | float) and np.isfinite(config.ridge) and config.ridge > 0):
        raise ValueError(f"`ridge` is {config.ridge!r}; expected a positive number. The paper's is 1.")
    if not isinstance(config.num_split_features, int) or config.num_split_features < 1:
        raise ValueError(
            f"`num_split_features` is {config.num_split_features!r}; expected an integer >= 1. The paper's is 4."
        )
    if config.width is not None and not isinstance(config.width, int):
        raise ValueError(f"`width` is {config.width!r}; expected an integer, or None for the least.")
    for name, number in (("rank", config.rank), ("outliers", config.outliers)):
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"`{name}` is {number!r}; expected an integer >= 0. 0 means no such term.")
    if not isinstance(config.steps, int) or config.steps < 0 or config.steps % INTERVAL:
        raise ValueError(
            f"`steps` is {config.steps!r}; expected a multiple of {INTERVAL}, or 0 for no training at all."
        )
    if not isinstance(config.seed, int) or config.seed < 0:
        raise ValueError(f"`seed` is {config.seed!r}; expected an integer >= 0.")
    if config.loss is not None and not callable(config.loss):
        raise TypeError(f"`loss` is {type(config.loss).__name__}; expected a function of `(y, exact, *extra)`.")
    if config.loss is not None and config.method in ("paper", "axis"):
        raise ValueError(
            f'Method "{config.method}" has no training for a `loss` to guide. Take method "oblique" (or "auto", which '
            "is the same where there is a loss)."
        )
    if config.loss is not None and (config.rank or config.outliers):
        raise ValueError(
            "A `loss` judges whole outputs, and an exact term is no part of them. Leave `rank` and `outliers` 0."
        )


def validate_terms(config: FitConfig, num_features: int, num_outputs: int) -> None:
    """Raises unless `w` has the rank and the features that the exact term is to take."""
    most = min(num_features, num_outputs)
    if config.rank > most:
        raise ValueError(
            f"`rank` is {config.rank}, but `w` of {num_features} features and {num_outputs} outputs has at most "
            f"{most}. Use a few: the exact term is to be much cheaper than the product."
        )
    if config.outliers > num_features:
        raise ValueError(f"`outliers` is {config.outliers}, but there are {num_features} features. Use a few.")
