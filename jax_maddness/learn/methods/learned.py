"""`Learned`, the result of a method of learning, and `Method`, the signature that all methods have."""

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
from jax_maddness.learn.tables.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Learned:
    """The result of a method: trees, and how the tables for them are solved.

    Attributes:
      trees: split trees, as `encode` takes them.
      own: features in which the tables shrink toward each codebook's bucket means; None stands for those that its
        bucket means explain best (`explained`).
      ridge: weight of the penalty, in rows; None stands for the paper's or, with few rows, the one with the least error
        on held-out rows.
      tables: float tables, where training has learned them; None: they are still to be solved.
      verdict: what held-out rows say of the tables, if trees were judged before they saw these rows; None: tables
        are still to be judged.
    """

    trees: Trees
    own: Bool[np.ndarray, "codebooks features"] | None
    ridge: float | None
    tables: Solution | None = None
    verdict: Verdict | None = None


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
        """Learns trees, and chooses how their tables are solved.

        Args:
          rows: the training rows.
          w: weights, scaled to a largest magnitude near 1.
          num_codebooks: number of codebooks, C, from 1 to the number of features.
          config: the user's options. Its `loss` is not used: `objective` is that loss in the units of `w`.
          bar: shows progress.
          objective: loss that training minimizes; None stands for the squared error, for which tables are solved in
            closed form. Methods that do not train ignore it.
        """
