"""Learned, the result of a method, and Method, the signature that all of them have."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float

from jax_maddness.core.types import Trees
from jax_maddness.learn.config import FitConfig
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.methods.objective import Objective
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.tables.ridge import Solution


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a method hands over: which leaf a row reaches, and how to find what the leaves stand for.

    Attributes:
      trees: what `encode` takes.
      own: the features in which the tables shrink toward each codebook's bucket means; None: those it explains best.
      ridge: weight of the penalty, in rows.
      tables: what to look up, as `solve` finds it, where training has found it already; None: solve for it.
      errors: squared, of each row that `axis.Trial` holds out, before anything was learned from it; None: not known.
    """

    trees: Trees
    own: Bool[np.ndarray, "codebooks features"] | None
    ridge: float
    tables: Solution | None = None
    errors: Float[np.ndarray, " held_out"] | None = None


class Method(Protocol):
    """A method of learning trees: a function with this signature, entered in `METHODS` of auto.py."""

    def __call__(
        self,
        rows: Rows,
        w: Float[np.ndarray, "features outputs"],
        num_codebooks: int,
        config: FitConfig,
        bar: Progress,
        objective: Objective | None = None,
    ) -> Learned:
        """Learns trees, and how their tables are to be solved.

        Args:
          rows: the training rows.
          w: the weights, scaled to a largest magnitude near 1.
          num_codebooks: C, from 1 to the number of features.
          config: the user's options. Its `loss` is not used: `objective` is that loss in the units of `w`.
          bar: shows progress.
          objective: what training minimises; None: the squared error, for which tables are solved in closed form. Only
            methods that train can follow another one.
        """
