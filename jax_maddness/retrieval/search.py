"""Searches an index: look-ups propose candidates, and their exact products decide.

queries --tables_of--> 7-bit tables --scan--> candidates --rescore--> products --best--> scores, ids
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int32

from jax_maddness.core.validate import ROW_DTYPES
from jax_maddness.retrieval import calibrate, scan
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.products import best, exact, tables_of
from jax_maddness.retrieval.rescore import rescore

_SPARE = 32
"""Candidates that a dense product proposes besides `k`: it may round equal vectors differently, `rescore` does not."""


def search(
    queries: Float[Array, "... features"],
    index: VectorIndex,
    k: int = 10,
    *,
    num_candidates: int = 64,
    recall: float | None = None,
    metric: str | None = None,
) -> tuple[Float[Array, "... k"], Int32[Array, "... k"]]:
    """Finds the `k` best vectors of `index` for each query.

    Look-ups propose `num_candidates` vectors, and their exact products decide. Scores are the inner product for "ip",
    the cosine for "cosine", and minus the squared distance for "l2", so that greater is better. Of equal scores, that
    of the lower id comes first.

    A query with NaN or an infinity gets the scores NaN and the ids -1. A query or a vector of length zero has the
    cosine 0. The function can be called inside of `jax.jit` and `jax.vmap`.

    Args:
      queries: float32, bfloat16 or float16; any leading dimensions.
      index: an index that `build_index` made. If it is sharded (`shard_index`), every shard proposes `num_candidates`.
      k: number of vectors for each query, at least 1.
      num_candidates: number of candidates that are rescored, at least `k`. If it is at least the number of vectors, the
        results are exact. 0: no vector is rescored, and the scores are approximate.
      recall: share of the true `k` best vectors that is to be found, in (0, 1], in place of `num_candidates`. The least
        number of candidates is used that reached it when `index` was built, on queries like those that `build_index`
        was given.
      metric: the metric of the index, which a caller may state for readers of the code; another metric is an error.

    Returns:
      The scores, float32, best first, and the ids, int32. If the index has fewer than `k` vectors, the remaining scores
      are -inf and their ids -1.

    Raises:
      TypeError: `queries` has another dtype, or `index` is not an index.
      ValueError: `queries` does not have the features of the index, `num_candidates` is less than `k`, the index was
        built for another metric or keeps no vectors to rescore with, or no measured number of candidates reached
        `recall`.

    Example:
      >>> import numpy as np
      >>> from jax_maddness import build_index
      >>> vectors = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
      >>> scores, ids = search(vectors[:2], build_index(vectors, 4, metric="l2"), k=1)
      >>> ids.tolist()
      [[0], [1]]
    """
    queries = _validated(queries, index, metric)
    num_candidates = calibrate.candidates(index.recall, recall, k) if recall is not None else num_candidates
    validate_counts(k, num_candidates)
    if num_candidates and index.vectors is None:
        raise ValueError(
            "`index` keeps no vectors to rescore with. Build it with `keep_vectors=True`, or use `num_candidates=0`."
        )
    return _search(queries, index, k, num_candidates)


@functools.partial(jax.jit, static_argnames=("k", "num_candidates"), inline=True)
def _search(
    queries: Float[Array, "... features"], index: VectorIndex, k: int, num_candidates: int
) -> tuple[Float[Array, "... k"], Int32[Array, "... k"]]:
    rows = queries.reshape(-1, index.num_features).astype(jnp.float32)
    finite = jnp.isfinite(rows).all(-1)
    rows = jnp.where(finite[:, None], rows, 0.0)
    if index.metric == "cosine":
        rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    scores, ids = (_local if index.mesh is None else _sharded)(rows, index, k, num_candidates)
    if index.metric == "l2":
        scores = jnp.minimum(2 * scores - (rows**2).sum(-1, keepdims=True), 0.0)
    scores = jnp.where(finite[:, None], scores, jnp.nan)
    ids = jnp.where(finite[:, None], ids, -1)
    return scores.reshape(*queries.shape[:-1], k), ids.reshape(*queries.shape[:-1], k)


def validate_counts(k: int, num_candidates: int) -> None:
    """Raises TypeError or ValueError unless `k >= 1` and `num_candidates` is 0 or at least `k`."""
    if not isinstance(k, int) or not isinstance(num_candidates, int):
        raise TypeError(
            f"`k` is {k!r} and `num_candidates` {num_candidates!r}; expected integers, which are static under "
            "`jax.jit`."
        )
    if k < 1 or num_candidates < 0:
        raise ValueError(
            f"`k` is {k} and `num_candidates` {num_candidates}; expected `k >= 1` and `num_candidates >= 0`."
        )
    if 0 < num_candidates < k:
        raise ValueError(
            f"`num_candidates` is {num_candidates}, less than `k`, which is {k}. Take more candidates, or none: "
            "`num_candidates=0`."
        )


def _local(
    queries: Float[Array, "queries features"],
    index: VectorIndex,
    k: int,
    num_candidates: int,
    count: int | Array | None = None,
) -> tuple[Float[Array, "queries k"], Int32[Array, "queries k"]]:
    """Searches the vectors of one device; returns scores, without the query's part of a distance, and ids."""
    count = index.count if count is None else count
    rows = len(index.ids)
    if not rows:
        return best(jnp.zeros((len(queries), 0)), jnp.zeros((len(queries), 0), jnp.int32), k)
    if not num_candidates:
        tables = tables_of(queries, index)
        sums, positions = scan.scan(index.codes, tables.entries, jnp.asarray(count, jnp.int32), k)
        scores = jnp.where(
            sums < 0, -jnp.inf, tables.scale[:, None] * sums.astype(jnp.float32) + tables.offset[:, None]
        )
    else:
        if num_candidates >= rows:
            positions = exact(queries, index, count, k + _SPARE)[1]
        else:
            positions = scan.scan(
                index.codes, tables_of(queries, index).entries, jnp.asarray(count, jnp.int32), num_candidates
            )[1]
        positions = jnp.sort(positions, -1)  # the first of equal scores is best; memory is read in order
        assert index.vectors is not None
        scores = rescore(queries, index.vectors, positions)
        if index.bias is not None:
            scores = scores + index.bias[jnp.maximum(positions, 0)]
    scores, positions = best(scores, positions, k)
    return scores, jnp.where(positions < 0, -1, index.ids[jnp.maximum(positions, 0)])


def _sharded(
    queries: Float[Array, "queries features"], index: VectorIndex, k: int, num_candidates: int
) -> tuple[Float[Array, "queries k"], Int32[Array, "queries k"]]:
    """Searches every shard and takes the best results. Ids ascend with shards, so that ties go to the lower id."""
    axis, mesh = index.axis, index.mesh
    assert axis is not None
    assert mesh is not None
    rows_per_shard = len(index.ids) // mesh.shape[axis]

    def on_shard(queries: Array, shard: VectorIndex) -> tuple[Array, Array]:
        count = jnp.clip(index.count - lax.axis_index(axis) * rows_per_shard, 0, rows_per_shard)
        local_results = _local(queries, shard, k, num_candidates, count)
        scores, ids = (lax.all_gather(a, axis, axis=1, tiled=True) for a in local_results)
        return best(scores, ids, k)

    specs = jax.tree.map(lambda _: PartitionSpec(), index)
    specs = VectorIndex(**(vars(specs) | dict.fromkeys(("codes", "ids"), PartitionSpec(axis))))
    for name in ("bias", "vectors"):
        if getattr(index, name) is not None:
            specs = VectorIndex(**(vars(specs) | {name: PartitionSpec(axis)}))
    return jax.jit(
        jax.shard_map(
            on_shard,
            mesh=mesh,
            in_specs=(PartitionSpec(), specs),
            out_specs=PartitionSpec(),
            axis_names={axis},
            check_vma=False,
        )
    )(queries, index)


def _validated(queries: Array, index: VectorIndex, metric: str | None) -> Array:
    if not isinstance(index, VectorIndex):
        raise TypeError(f"`index` is {type(index).__name__}; expected a VectorIndex. `build_index` makes one.")
    queries = jnp.asarray(queries)
    if queries.dtype not in ROW_DTYPES:
        raise TypeError(
            f"`queries` are {queries.dtype}; expected float32, bfloat16 or float16. "
            "Cast them: `queries.astype(jnp.float32)`."
        )
    if queries.ndim < 1 or queries.shape[-1] != index.num_features:
        raise ValueError(
            f"`queries` have shape {queries.shape}; expected [..., {index.num_features}], as the vectors of the index."
        )
    if metric not in (None, index.metric):
        raise ValueError(f"`metric` is {metric!r}, but `index` was built for {index.metric!r}. Build another one.")
    return queries
