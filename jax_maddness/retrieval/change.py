"""Adds vectors to an index, and removes some, with the prototypes that it has.

All functions run outside of `jax.jit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int32, Integer

from jax_maddness.core.arguments import flag
from jax_maddness.learn.data.modes import modes
from jax_maddness.retrieval import centers, in_place
from jax_maddness.retrieval import validate as arguments
from jax_maddness.retrieval.build import encode
from jax_maddness.retrieval.capacity import living
from jax_maddness.retrieval.frame import Frame, augmented, unit32
from jax_maddness.retrieval.index import VectorIndex, whole
from jax_maddness.retrieval.lists import Bases, Lists
from jax_maddness.retrieval.rearrange import Added, rearranged


def add_vectors(
    index: VectorIndex,
    vectors: Float[ArrayLike, "added features"],
    ids: Integer[ArrayLike, " added"] | Sequence[int] | None = None,
    *,
    bias: Float[ArrayLike, " added"] | None = None,
    donate: bool = False,
) -> VectorIndex:
    """Returns an index with `vectors` besides those of `index`, which is unchanged unless `donate` is True.

    The new vectors are encoded with the prototypes of `index`, which were learned from other vectors: build a new index
    when the distribution of the vectors has changed. The measured recall is kept from the index that was built. Call
    the function outside of `jax.jit`.

    All arrays are made anew, and searches are compiled for their new shapes, unless `index` has room for the vectors;
    see `with_capacity`.

    Args:
      index: an index that `build_index` made. A sharded index is gathered to one device.
      vectors: the new vectors, `[added, features]`, of any real dtype, with finite values.
      ids: their ids, distinct int32, `[added]`, none of which `index` has; None: those that follow its greatest id.
      bias: number that is added to the products of each new vector, `[added]`; required if `index` was built with
        `bias`, and not allowed otherwise.
      donate: whether the new vectors may be written into the arrays of an index with room. `index` must then not be
        used any more, which is an error; a compiled function that only refers to it, in place of taking it as an
        argument, would keep its old contents. False: these arrays are copied first.

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
    index, donate = whole(index), flag(donate, "donate")
    biased = index.bias is not None and index.metric == "ip"
    if (bias is None) == biased:
        raise ValueError("`bias` is to be given if, and only if, `index` was built with one.")
    rows = arguments.rows(arguments.array(vectors, "vectors"), index.metric, index.num_features, "vectors")
    numbers = None if bias is None else arguments.bias(bias, len(rows))
    with modes():
        names, order, places = _named(index, ids, len(rows))
        added = _encoded(index, names, rows[order], None if numbers is None else numbers[order])
        if places is None:
            return rearranged(index, living(index), added)
        return in_place.written(index, added, places, donate)


def _named(
    index: VectorIndex, ids: Any, number: int
) -> tuple[Int32[np.ndarray, " added"], np.ndarray, in_place.Places | None]:
    """Returns the ids of new vectors in ascending order, the original position of each, and their places in a room."""
    places = None
    if index.room is None:
        old = np.asarray(index.ids)
        names, order = arguments.names(ids, number, int(old.max(initial=-1)) + 1)
        known = np.intersect1d(old, names)
    elif ids is None:
        places = in_place.places(index, np.full(number, -1))
        names, order = arguments.names(None, number, places.greatest + 1)
        known = names[:0]
    else:
        names, order = arguments.names(ids, number)
        places = in_place.places(index, names)
        known = names[places.known()]
    if len(known):
        raise ValueError(
            f"`ids` has {len(known)} that are there already, such as {known[0]}. `remove_vectors` them first."
        )
    return names, order, places


def _encoded(
    index: VectorIndex,
    names: Int32[np.ndarray, " added"],
    rows: Float[np.ndarray, "added features"],
    numbers: Float[np.ndarray, " added"] | None,
) -> Added:
    """Returns new vectors with their codes, as the index keeps them."""
    encoded, numbers = _encodable(rows, numbers, index)
    bases = None if index.lists is None else _based(encoded, index.lists)
    _within_bounds(encoded, index)
    gram = None if index.room is None else index.room.gram
    codes = encode(encoded, index.quantizer, index.criterion, index.trees, None, bases, gram)
    rows = unit32(rows) if index.metric == "cosine" else rows
    if index.vectors is not None:
        rows = arguments.held(rows, index.vectors.dtype, "vectors")
    return Added(names, codes, rows, numbers, bases)


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
    constants, mean = np.asarray(index.quantizer.constants), float(np.asarray(index.quantizer.center)[-1])
    least, most = mean + float(constants.min(1).sum()), mean + float(constants.max(1).sum())
    encoded[:, -1] = np.clip(encoded[:, -1], least, most)


def remove_vectors(
    index: VectorIndex, ids: Integer[ArrayLike, " removed"] | Sequence[int], *, donate: bool = False
) -> VectorIndex:
    """Returns an index without the vectors that have the given ids; `index` is unchanged unless `donate` is True.

    The prototypes and the measured recall are kept. Call the function outside of `jax.jit`.

    All arrays are made anew, and searches are compiled for their new shapes, unless `index` has room; see
    `with_capacity`.

    Args:
      index: an index that `build_index` made. A sharded index is gathered to one device.
      ids: distinct ids of the vectors to remove, integers, `[removed]`. For a mask, pass `np.flatnonzero(mask)` of ids.
      donate: whether the result may use the arrays of an index with room. `index` must then not be used any more,
        as in `add_vectors`. False: these arrays are copied.

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
    index, donate = whole(index), flag(donate, "donate")
    distinct = arguments.distinct(ids)
    if index.room is None:
        old = np.asarray(index.ids)
        arguments.refuse_unknown(np.setdiff1d(distinct, old))
        with modes():
            return rearranged(index, np.flatnonzero(~np.isin(old, distinct)))
    with modes():
        places = in_place.places(index, distinct)
        arguments.refuse_unknown(distinct[~places.known()])
        return in_place.without(index, places.positions, donate)
