"""Adds vectors to an index, and removes some, with the prototypes that it has.

All functions run outside of `jax.jit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Integer

from jax_maddness.learn.data.modes import modes
from jax_maddness.retrieval import centers, scan
from jax_maddness.retrieval import validate as arguments
from jax_maddness.retrieval.build import encode, pack
from jax_maddness.retrieval.frame import Frame, augmented, unit32
from jax_maddness.retrieval.index import VectorIndex, whole
from jax_maddness.retrieval.lists import Bases, Lists, arranged, bases_of
from jax_maddness.retrieval.lists import places as of_places


def add_vectors(
    index: VectorIndex,
    vectors: Float[ArrayLike, "added features"],
    ids: Integer[ArrayLike, " added"] | Sequence[int] | None = None,
    *,
    bias: Float[ArrayLike, " added"] | None = None,
) -> VectorIndex:
    """Returns an index with `vectors` besides those of `index`, which is unchanged.

    The new vectors are encoded with the prototypes of `index`, which were learned from other vectors: build a new index
    when the distribution of the vectors has changed. The measured recall is kept from the index that was built. Call
    the function outside of `jax.jit`.

    Args:
      index: an index that `build_index` made. A sharded index is gathered to one device.
      vectors: the new vectors, `[added, features]`, of any real dtype, with finite values.
      ids: their ids, distinct int32, `[added]`, none of which `index` has; None: those that follow its greatest id.
      bias: number that is added to the products of each new vector, `[added]`; required if `index` was built with
        `bias`, and not allowed otherwise.

    Returns:
      The new index, on one device.

    Raises:
      TypeError: an argument has the wrong type, or is traced.
      ValueError: shapes do not match, values are not finite or overflow, an id exists already, or `bias` is missing or
        not allowed.

    Example:
      >>> from jax_maddness import build_index
      >>> vectors = np.random.default_rng(0).standard_normal((1000, 8))
      >>> index = add_vectors(build_index(vectors, 4), vectors[:2], ids=[5000, 5001])
      >>> index.count, index.ids[-2:].tolist()
      (1002, [5000, 5001])
    """
    index = whole(index)
    biased = index.bias is not None and index.metric == "ip"
    if (bias is None) == biased:
        raise ValueError("`bias` is to be given if, and only if, `index` was built with one.")
    rows = arguments.rows(arguments.array(vectors, "vectors"), index.metric, index.num_features, "vectors")
    added = None if bias is None else arguments.bias(bias, len(rows))
    old = np.asarray(index.ids)
    new, order = arguments.names(ids, len(rows), int(old.max(initial=-1)) + 1)
    if len(duplicates := np.intersect1d(old, new)):
        raise ValueError(
            f"`ids` has {len(duplicates)} that are there already, such as {duplicates[0]}. `remove_vectors` them first."
        )
    rows, added = rows[order], None if added is None else added[order]
    with modes():
        encoded, added = _encodable(rows, added, index)
        bases = None if index.lists is None else _based(encoded, index.lists)
        _within_bounds(encoded, index)
        codes = encode(encoded, index.quantizer, index.criterion, index.trees, None, bases)
        names = np.concatenate([old, new])
        rows = unit32(rows) if index.metric == "cosine" else rows
        if index.vectors is not None:
            rows = arguments.held(rows, index.vectors.dtype, "vectors")
        return _rearranged(index, names, np.argsort(names), codes, rows, added, bases)


def _encodable(
    rows: np.ndarray, added: np.ndarray | None, index: VectorIndex
) -> tuple[Float[np.ndarray, "added features+1"], Float[np.ndarray, " added"] | None]:
    """Returns new vectors as codes are made of them, and what the index keeps as their bias."""
    if index.metric == "l2" and not index.sums_squares:
        added = -np.einsum("vd,vd->v", rows, rows) / 2
    origin = None if index.origin is None else np.asarray(index.origin)
    metric = "l2" if index.sums_squares else "cosine" if index.metric == "cosine" else "ip"
    return augmented(rows, added, metric, Frame(origin, index.exponent)), added


def _based(encoded: Float[np.ndarray, "added features+1"], lists: Lists) -> Bases:
    """Returns the lists of new vectors, those of the nearest centers, and subtracts the centers from `encoded`."""
    of_centers = np.asarray(lists.centers)
    bases = Bases(of_centers, centers.assign(encoded[:, :-1], of_centers[:, :-1])[0])
    encoded -= bases.at(slice(None))
    return bases


def _within_bounds(encoded: Float[np.ndarray, "added features+1"], index: VectorIndex) -> None:
    """Clips the numbers that are added to products to those that codes can represent.

    Farther ones, such as -1e9 for a mask, would drown the vector.
    """
    constants, mean = np.asarray(index.quantizer.constants), float(index.quantizer.center[-1])
    least, most = mean + float(constants.min(1).sum()), mean + float(constants.max(1).sum())
    encoded[:, -1] = np.clip(encoded[:, -1], least, most)


def remove_vectors(index: VectorIndex, ids: Integer[ArrayLike, " removed"] | Sequence[int]) -> VectorIndex:
    """Returns an index without the vectors that have the given ids; `index` is unchanged.

    The prototypes and the measured recall are kept. Call the function outside of `jax.jit`.

    Args:
      index: an index that `build_index` made. A sharded index is gathered to one device.
      ids: distinct ids of the vectors to remove, integers, `[removed]`. For a mask, pass `np.flatnonzero(mask)` of ids.

    Returns:
      The new index, on one device.

    Raises:
      TypeError: `index` is not an index, or is traced, or `ids` are not integers.
      ValueError: `index` has no vector with one of the ids, or one of them is there twice.

    Example:
      >>> from jax_maddness import build_index
      >>> vectors = np.random.default_rng(0).standard_normal((1000, 8))
      >>> remove_vectors(build_index(vectors, 4), ids=[0, 999]).count
      998
    """
    index = whole(index)
    old = np.asarray(index.ids)
    removed = arguments.removed(ids, old)
    with modes():
        return _rearranged(index, old, np.flatnonzero(~np.isin(old, removed)))


def _rearranged(
    index: VectorIndex,
    names: np.ndarray,
    order: np.ndarray,
    codes: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    added: np.ndarray | None = None,
    bases: Bases | None = None,
) -> VectorIndex:
    """Appends `rows` and their codes to the vectors of `index`, and takes the vectors in the given order."""

    def with_new(old: Any, new: np.ndarray | None) -> Any:
        if old is None:
            return None
        both = np.asarray(old) if new is None else np.concatenate([np.asarray(old), new.astype(old.dtype)])
        return jnp.asarray(both[order])

    places = slice(index.count) if index.lists is None else of_places(index.lists, index.count)
    all_codes = with_new(np.asarray(scan.unpack(index.codes))[places, : index.num_codebooks], codes)
    lists = index.lists
    if lists is not None:
        old = bases_of(lists, index.count)
        of_vectors = with_new(old.of_vectors, None if bases is None else bases.of_vectors)
        all_codes, lists = arranged(np.asarray(all_codes), Bases(old.centers, np.asarray(of_vectors)), lists.probe)
    return dataclasses.replace(
        index,
        codes=pack(jnp.asarray(all_codes)),
        lists=lists,
        ids=jnp.asarray(names[order]),
        bias=with_new(index.bias, added),
        vectors=with_new(index.vectors, rows),
        count=len(order),
    )
