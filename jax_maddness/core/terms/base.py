"""The interface of every kind of term: a product that stands beside the look-ups of an op, or in place of them.

A new kind is one file beside this one, with a subclass of `Term`, and one entry in `kinds.py`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float

from jax_maddness.core.epilogue import NONE, Epilogue
from jax_maddness.core.trees.base import Trees

STATIC = {"static": True}
"""Metadata of the field `name` of every kind, which makes it a part of the structure as a pytree.

JAX (0.10 and 0.12) compares the structures of registered dataclasses by the number of their arrays and by their static
values, not by their class: without this field, `jit` could run the program of one kind for a term of another.
"""


class Term(abc.ABC):
    """A product that an op computes beside its look-ups, or in place of them.

    Subclasses are frozen dataclasses that are registered as pytrees. Their fields are arrays, or None where an array is
    optional, and the static `name`.
    """

    name: str
    """Name of the kind, a static field, without an underscore. In files, its arrays are called `<name>.<field>`."""
    file_version: ClassVar[int]
    """The version of the file format that introduced this kind."""
    optional: ClassVar[tuple[str, ...]] = ()
    """The fields that may be None."""
    stands_alone: ClassVar[bool] = False
    """Whether an op with this term may have no codebooks."""

    @property
    def row_features(self) -> int | None:
        """Number of features that a row must have, or None if any number is accepted."""
        return None

    @classmethod
    def array_names(cls) -> tuple[str, ...]:
        """Returns the names of the fields that are arrays, in order."""
        return tuple(field.name for field in dataclasses.fields(cls) if "static" not in field.metadata)  # type: ignore[arg-type]

    def arrays(self) -> dict[str, Any]:
        """Returns the arrays by the name of their field, without those that are None."""
        return {name: array for name in self.array_names() if (array := getattr(self, name)) is not None}

    @abc.abstractmethod
    def validate(self, num_features: int | None, num_codebooks: int, num_outputs: int) -> None:
        """Validates that the arrays agree with each other and with an op of the given sizes.

        Raises:
          TypeError, ValueError: they do not; the message names the array.
        """

    @classmethod
    @abc.abstractmethod
    def validate_values(cls, arrays: Mapping[str, np.ndarray], num_features: int, num_codebooks: int) -> None:
        """Validates the ranges of the values in the arrays of a file, whose shapes are validated elsewhere.

        Raises:
          ValueError: a value is out of its documented range.
        """

    @abc.abstractmethod
    def amm(
        self,
        x: Float[Array, "... features"],
        trees: Trees,
        tables: Any,
        looked_up: Callable[[], Array],
        epilogue: Epilogue = NONE,
    ) -> Float[Array, "... outputs"]:
        """Computes the outputs of an op that has this term.

        Args:
          x: rows, which have been validated.
          trees: the op's trees.
          tables: the op's `LookupTables`.
          looked_up: computes the outputs of the look-ups alone, if the op has codebooks.
          epilogue: what follows the outputs.
        """

    @abc.abstractmethod
    def product(self, x: Float[Array, "... features"], tables: Any) -> Float[Array, "... outputs"]:
        """Computes what the term adds to the outputs of the look-ups, in float32.

        Args:
          x: rows, without derivative where the term rounds them.
          tables: the op's `LookupTables`, of which the offset is not part of the result.
        """

    def sums(
        self, x: Float[Array, "... features"], tables: Any, looked_up: Callable[[], Array]
    ) -> Float[Array, "... outputs"]:
        """Returns the sums that `tables.scale` multiplies, in float32: the derivative with respect to it.

        Args:
          x: rows.
          tables: the op's `LookupTables`.
          looked_up: computes the integer sums of the look-ups, if the op has codebooks.
        """
        return looked_up().astype(np.float32)

    def tangent(self, x: Float[Array, "... features"], change: Any) -> Float[Array, "... outputs"] | float:
        """Returns how the outputs change with the arrays of the term, by a tangent of the term; 0 if they do not.

        Args:
          x: rows.
          change: a term of the same kind whose arrays are tangents, some of them symbolic zeros.
        """
        return 0.0
