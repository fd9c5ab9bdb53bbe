"""Makes an index of some vectors of another and of new ones. All arrays are made anew, on the host."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32, UInt8

from jax_maddness.retrieval import scan
from jax_maddness.retrieval.build import pack
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.lists import Bases, arranged, bases_of
from jax_maddness.retrieval.lists import places as of_places


class Added(NamedTuple):
    """New vectors, in ascending order of their ids.

    Attributes:
      ids: their ids.
      codes: their codes.
      vectors: the vectors as the index keeps them, if it does.
      bias: what the index keeps as their bias, if it has one.
      bases: their lists, if it has any.
    """

    ids: Int32[np.ndarray, " added"]
    codes: UInt8[np.ndarray, "added codebooks"]
    vectors: Float[np.ndarray, "added features"]
    bias: Float[np.ndarray, " added"] | None
    bases: Bases | None


def rearranged(index: VectorIndex, kept: Int32[np.ndarray, " kept"], added: Added | None = None) -> VectorIndex:
    """Returns an index without room that has the vectors at the positions `kept`, and new ones.

    Args:
      index: an index on one device, with room or without.
      kept: positions, ascending.
      added: the new vectors, whose ids are not those of vectors at `kept`.
    """
    names, order = np.asarray(index.ids), kept
    if added is not None:
        order = np.concatenate([kept, len(names) + np.arange(len(added.ids))])
        names = np.concatenate([names, added.ids])
        order = order[np.argsort(names[order])]

    def with_new(old: Any, new: np.ndarray | None) -> Any:
        if old is None:
            return None
        both = np.asarray(old) if new is None else np.concatenate([np.asarray(old), new.astype(old.dtype)])
        return jnp.asarray(both[order])

    places = slice(index.capacity) if index.lists is None else of_places(index.lists, index.capacity)
    new = (None,) * 4 if added is None else (added.codes, added.vectors, added.bias, added.bases)
    all_codes = with_new(np.asarray(scan.unpack(index.codes))[places, : index.num_codebooks], new[0])
    lists = index.lists
    if lists is not None:
        old = bases_of(lists, index.capacity)
        of_vectors = with_new(old.of_vectors, None if new[3] is None else new[3].of_vectors)
        all_codes, lists = arranged(np.asarray(all_codes), Bases(old.centers, np.asarray(of_vectors)), lists.probe)
    return index.with_size(
        len(order),
        codes=pack(jnp.asarray(all_codes)),
        lists=lists,
        ids=jnp.asarray(names[order]),
        bias=with_new(index.bias, new[2]),
        vectors=with_new(index.vectors, new[1]),
        room=None,
    )
