"""Measures the recall of an index on queries of the caller, which may be unlike those that it was built for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jax_maddness.core import arguments
from jax_maddness.retrieval import calibrate, validate
from jax_maddness.retrieval.capacity import with_capacity
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.index import validated as validated_index
from jax_maddness.retrieval.search import search
from jax_maddness.retrieval.truth import true_neighbors

_QUERIES = 64
"""Number of queries that are searched for at once."""


def measure_recall(
    queries: Float[ArrayLike, "queries features"],
    index: VectorIndex,
    k: int = 10,
    *,
    num_candidates: int = 64,
    recall: float | None = None,
    probe: int | None = None,
) -> tuple[float, float]:
    """Measures the share of the true `k` best vectors that `search` finds for `queries`.

    `index.recall`, and with it `search(recall=)`, was measured when the index was built, on at most 256 queries like
    those that `build_index` was given. Queries that are unlike them may find less. Pass some hundreds of today's to see
    what the promise is worth: `measure_recall(queries, index, recall=0.99)`.

    The true neighbors are those by the exact vectors that the index keeps, computed in float64: all of them are read.
    Call the function outside of `jax.jit`.

    Args:
      queries: of any real dtype, with finite values. Those that are vectors of the index find themselves, which makes
        the recall look better than it is.
      index: an index that keeps its vectors. It may be sharded over the devices of one process.
      k: number of neighbors, from 1 to the number of vectors.
      num_candidates, recall, probe: as for `search`.

    Returns:
      The mean share that was found; and the cautious estimate of it that `index.recall` has, too: the mean over the
      queries and one more that finds nothing, minus its standard error.

    Raises:
      TypeError: an argument has the wrong type, or is traced.
      ValueError: `queries` has none, or another number of features than `index`, or values that are not finite; `k` is
        out of range; `index` keeps no vectors; and the errors of `search`.

    Example:
      >>> from jax_maddness import build_index
      >>> rng = np.random.default_rng(0)
      >>> index = build_index(rng.standard_normal((500, 8)), 4)
      >>> share, at_least = measure_recall(rng.standard_normal((100, 8)), index, 10, num_candidates=500)
      >>> share, round(at_least, 2)
      (1.0, 0.99)
    """
    validated_index(index)
    rows = validate.samples(queries, index.num_features)
    k = arguments.integer(k, "k", 1)
    on_host = with_capacity(index, None)
    if on_host.vectors is None:
        raise ValueError("`index` keeps no vectors to compare with. Build it with `keep_vectors=True`.")
    if k > index.count:
        raise ValueError(f"`k` is {k}, but `index` has {index.count} vectors. Take at most as many.")
    found = []
    for at in range(0, len(rows), _QUERIES):
        # The last rows once more, so that all searches have one shape.
        block = rows[np.minimum(np.arange(at, at + min(_QUERIES, len(rows))), len(rows) - 1)]
        ids = search(jnp.asarray(block), index, k, num_candidates=num_candidates, recall=recall, probe=probe)[1]
        found.append(np.asarray(ids)[: len(rows) - at])
    bias = np.asarray(on_host.bias) if index.metric == "ip" and on_host.bias is not None else None
    truth = true_neighbors(rows, np.asarray(on_host.vectors), bias, index.metric, k)
    is_found = calibrate.is_in(np.asarray(on_host.ids)[truth], np.concatenate(found))
    return float(is_found.mean()), calibrate.likely(is_found)
