"""Restrictions of one search: what is excluded, what is rescored whatever the codes say, and what is added to scores.

The candidates of a restricted search are those that the codes would propose if the excluded vectors were not there: a
scan for more of them is filtered, and where it was too short, all vectors are scanned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int32

from jax_maddness.retrieval import validate

_LARGEST_ID = np.iinfo(np.int32).max


class Restrictions(NamedTuple):
    """Restrictions of the search of some queries.

    Attributes:
      exclude: ids that are not returned; unknown ones play no part. None: none.
      mask: whether a vector is excluded, in the order of ids; for each query, or the same for all.
      always: ids that are rescored beside the candidates; unknown ones play no part. None: none.
      score_bias: numbers that are added to scores, in the order of ids; for each query, or the same for all.
    """

    exclude: Int32[Array, "... excluded"] | None = None
    mask: Bool[Array, "... vectors"] | None = None
    always: Int32[Array, "... always"] | None = None
    score_bias: Float[Array, "... vectors"] | None = None

    def flat(self, leading: tuple[int, ...]) -> Restrictions:
        """Returns restrictions of queries in one dimension, given the leading dimensions of the queries."""
        queries = math.prod(leading)

        def of(array: Array | None) -> Any:
            return None if array is None else array.reshape(queries if array.ndim > 1 else 1, array.shape[-1])

        def ids(array: Array | None) -> Any:
            return None if array is None else jnp.broadcast_to(of(array), (queries, array.shape[-1]))

        return Restrictions(ids(self.exclude), of(self.mask), ids(self.always), of(self.score_bias))

    def shared(self) -> Restrictions:
        """Returns those that are the same for all queries."""
        return Restrictions(*(a if a is not None and a.ndim == 1 else None for a in self))

    def own(self) -> Restrictions:
        """Returns those of each query."""
        return Restrictions(*(a if a is not None and a.ndim > 1 else None for a in self))

    def padded(self, vectors: int) -> Restrictions:
        """Returns restrictions for an index that is padded to so many vectors."""

        def of(array: Array | None) -> Any:
            return None if array is None else jnp.pad(array, ((0, 0), (0, vectors - array.shape[1])))

        return self._replace(mask=of(self.mask), score_bias=of(self.score_bias))

    def specs(self, axis: str) -> Any:
        """Returns how restrictions are spread where vectors are sharded over `axis`."""
        everywhere, by_vector = PartitionSpec(), PartitionSpec(None, axis)
        specs: Any = (everywhere, by_vector, everywhere, by_vector)
        return Restrictions(*(None if a is None else spec for a, spec in zip(self, specs, strict=True)))

    def positions(self, ids: Int32[Array, " vectors"], count: Array | int) -> Restrictions:
        """Returns restrictions with positions in the place of ids; -1 where there is no such vector."""
        if isinstance(count, int) and count == len(ids):
            known = ids
        else:  # ids of padding are not in order
            known = jnp.where(jnp.arange(len(ids), dtype=jnp.int32) < count, ids, jnp.iinfo(jnp.int32).max)

        def of(names: Array | None) -> Any:
            if names is None:
                return None
            at = jnp.searchsorted(known, names.reshape(-1)).reshape(names.shape).astype(jnp.int32)
            at = jnp.minimum(at, len(known) - 1)
            return jnp.where((known[at] == names) & (at < count), at, -1)

        return self._replace(exclude=of(self.exclude), always=of(self.always))

    def without(self, removed: Int32[Array, " removed"], queries: int) -> Restrictions:
        """Returns restrictions, which have positions, that exclude more of these, the same for all queries."""
        shared = jnp.broadcast_to(removed[None, :], (queries, removed.shape[0]))
        return self._replace(exclude=shared if self.exclude is None else jnp.concatenate([self.exclude, shared], 1))

    def excluded(self, positions: Int32[Array, "queries k"]) -> Bool[Array, "queries k"]:
        """Returns whether vectors at positions are excluded, or are none (-1)."""
        result = positions < 0
        if self.exclude is not None:
            result |= (positions[:, :, None] == self.exclude[:, None, :]).any(-1)
        if self.mask is not None:
            result |= _at(self.mask, positions)
        if self.score_bias is not None:
            result |= ~jnp.isfinite(_at(self.score_bias, positions))
        return result

    def dense(self, queries: int, vectors: int) -> Bool[Array, "queries vectors"]:
        """Returns whether each vector is excluded, for all of them."""
        result = jnp.zeros((queries, vectors), bool)
        if self.exclude is not None:  # position -1 is out of bounds, too, as `vectors`
            at = jnp.where(self.exclude < 0, vectors, self.exclude)
            result = result.at[jnp.arange(queries)[:, None], at].set(True, mode="drop")
        if self.mask is not None:
            result |= self.mask
        return result if self.score_bias is None else result | ~jnp.isfinite(self.score_bias)

    def bias_at(self, positions: Int32[Array, "queries k"]) -> Float[Array, "queries k"] | None:
        """Returns what is added to the scores of vectors at positions."""
        return None if self.score_bias is None else _at(self.score_bias, positions)


def merged(*parts: Restrictions) -> Restrictions:
    """Returns the restrictions of all parts, of which each field is in one at most."""
    return Restrictions(*(next((a for a in field if a is not None), None) for field in zip(*parts, strict=True)))


def _at(values: Array, positions: Int32[Array, "queries k"]) -> Array:
    """Returns values [queries or 1, vectors] at positions."""
    known = jnp.maximum(positions, 0)
    return values[0][known] if values.shape[0] == 1 else jnp.take_along_axis(values, known, 1)


Scan = Callable[[int], tuple[Float[Array, "queries k"], Int32[Array, "queries k"]]]
"""Takes a number of vectors; returns their approximate scores, best first, and their positions, -1 where there are
fewer."""


def candidates(
    scan: Scan, all_of_them: Callable[[], tuple[Array, Array]], given: Restrictions, num_candidates: int, vectors: int
) -> tuple[Float[Array, "queries candidates"], Int32[Array, "queries candidates"]]:
    """Returns scores and positions of the best vectors that are not excluded, best first; -inf and -1 if fewer.

    Args:
      scan: scans the codes.
      all_of_them: returns the result by the scores of all vectors, which takes longer.
      given: the restrictions, with positions in the place of ids, and without a bias.
      num_candidates: number of candidates.
      vectors: number of vectors that could be proposed.
    """

    def chosen(width: int) -> tuple[Array, Array]:
        scores, positions = scan(width)
        scores = jnp.where(given.excluded(positions), -jnp.inf, scores)
        # They are in order. Of equal keys, the first is taken first.
        at = lax.top_k(jnp.where(scores == -jnp.inf, scores, 0.0), min(num_candidates, width))[1]
        scores, positions = (jnp.take_along_axis(a, at, 1) for a in (scores, positions))
        return scores, jnp.where(scores == -jnp.inf, -1, positions)

    slack = 0 if given.exclude is None else given.exclude.shape[-1]
    slack += 0 if given.mask is None else num_candidates
    width = min(vectors, num_candidates + slack)
    first = chosen(width)
    if width == vectors or given.mask is None:
        return first
    return lax.cond((first[1] >= 0).all(), lambda: first, all_of_them)


def joined(positions: Int32[Array, "queries k"], given: Restrictions) -> Int32[Array, "queries k+always"]:
    """Returns positions of candidates and of what is always rescored, each once; -1 in the place of repetitions."""
    if given.always is None:
        return positions
    always = jnp.where(given.excluded(given.always), -1, given.always)
    both = jnp.concatenate([positions, always], 1)
    ordered = jnp.sort(both, 1)
    repeated = jnp.pad(ordered[:, 1:] == ordered[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(repeated, -1, ordered)


def validated(leading: tuple[int, ...], count: int, exclude: Any, always: Any, score_bias: Any) -> Restrictions | None:
    """Returns the restrictions that a caller passes, or None if there are none.

    Args:
      leading: the leading dimensions of the queries.
      count: number of positions of the index, or of outputs.
      exclude, always, score_bias: the arguments of `search`.

    Raises:
      TypeError: one of them has another dtype.
      ValueError: one of them has another shape, or a bias is not finite.
    """
    if exclude is None and always is None and score_bias is None:
        return None
    exclude = None if exclude is None else _array(exclude, "exclude")
    mask = exclude if exclude is not None and exclude.dtype == jnp.bool_ else None
    if mask is not None:
        exclude = None
        _validate_shape(mask, "exclude", leading, count)
    if score_bias is not None:
        score_bias = validate.row_array(score_bias, "score_bias").astype(jnp.float32)
        _validate_shape(score_bias, "score_bias", leading, count)
        if not isinstance(score_bias, jax.core.Tracer) and not np.isfinite(np.asarray(score_bias)).all():
            raise ValueError("`score_bias` has NaN or infinite values. To leave vectors out, pass `exclude`.")
    return Restrictions(_ids(exclude, "exclude", leading), mask, _ids(always, "always", leading), score_bias)


def _array(value: Any, name: str) -> Array:
    if isinstance(value, jax.Array):
        return value
    given = np.asarray(validate.array(value, name))
    if given.dtype.kind not in "biuf":
        raise TypeError(f"`{name}` is {given.dtype}; expected integers, the ids of vectors.")
    if given.dtype in (np.int64, np.uint64, np.uint32):  # before JAX cuts them to 32 bits
        given = np.where((given < 0) | (given > _LARGEST_ID), -1, given.astype(np.int32))
    return jnp.asarray(given.astype(np.int32) if given.size == 0 and given.dtype == np.float64 else given)


def _ids(names: Any, name: str, leading: tuple[int, ...]) -> Any:
    if names is None:
        return None
    names = _array(names, name)
    if not jnp.issubdtype(names.dtype, jnp.integer):
        mask = ", or a mask of bool" if name == "exclude" else ""
        raise TypeError(f"`{name}` is {names.dtype}; expected integers, the ids of vectors{mask}.")
    _validate_shape(names, name, leading, None)
    unknown = names < 0
    if jnp.iinfo(names.dtype).max > _LARGEST_ID:
        unknown |= names > _LARGEST_ID
    return jnp.where(unknown, -1, names.astype(jnp.int32))


def _validate_shape(array: Array, name: str, leading: tuple[int, ...], last: int | None) -> None:
    if array.ndim and array.shape[:-1] in ((), leading) and last in (None, array.shape[-1]):
        return
    end = "number of ids" if last is None else str(last)
    raise ValueError(
        f"`{name}` has shape {array.shape}; expected [{end}], the same for all queries, or "
        f"[{', '.join([*map(str, leading), end])}], one for each query."
    )
