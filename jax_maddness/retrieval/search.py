"""Searches an index: look-ups propose candidates, and their exact products decide.

`local.py` has the steps on one device; this file validates arguments and spreads a search over devices.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int32, Integer

from jax_maddness.retrieval import calibrate, validate
from jax_maddness.retrieval.explicit import by_rows, refuse_mapped_axes, replicated
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.index import validated as validated_index
from jax_maddness.retrieval.local import Found, Scaled, local, scaled_queries, unscaled
from jax_maddness.retrieval.log_sum import LogSum, combined, gathered
from jax_maddness.retrieval.products import best
from jax_maddness.retrieval.restrict import Restrictions, merged, validated


def search(
    queries: Float[Array, "... features"],
    index: VectorIndex,
    k: int = 10,
    *,
    num_candidates: int = 64,
    recall: float | None = None,
    probe: int | None = None,
    metric: str | None = None,
    exclude: Integer[Array, "... excluded"] | Bool[Array, "... vectors"] | None = None,
    always: Integer[Array, "... always"] | None = None,
    score_bias: Float[Array, "... vectors"] | None = None,
) -> tuple[Float[Array, "... k"], Int32[Array, "... k"]]:
    """Finds the `k` best vectors of `index` for each query.

    Look-ups propose `num_candidates` vectors, and their exact products decide. Scores are the inner product for "ip",
    the cosine for "cosine", and minus the squared distance for "l2", so that greater is better. Of equal scores, that
    of the lower id comes first.

    A query with NaN or an infinity gets the scores NaN and the ids -1. A query or a vector of length zero has the
    cosine 0. Queries may be of any scale: the ids are right even where float32 cannot hold a score, which is then
    infinite or zero. The function can be called inside of `jax.jit` and `jax.vmap`.

    Args:
      queries: float32, bfloat16 or float16; any leading dimensions.
      index: an index that `build_index` made. If it is sharded (`shard_index`), every shard proposes `num_candidates`.
      k: number of vectors for each query, at least 1.
      num_candidates: number of candidates that are rescored, at least `k`. If it is at least the number of vectors, the
        results are exact. 0: no vector is rescored, and the scores are approximate.
      recall: share of the true `k` best vectors that is to be found, in (0, 1], in place of `num_candidates` and
        `probe`. The least number of candidates is used that reached it when `index` was built, on queries like those
        that `build_index` was given; with lists, those numbers of both that take the least time. An index that has
        more positions than when it was built takes more candidates in proportion, which is an estimate:
        `measure_recall` tells.
      probe: number of lists that are scanned for each query, at least 1, if `index` has lists. None: as many as held
        99 % of the 10 nearest vectors when it was built.
      metric: the metric of the index, which a caller may state for readers of the code; another metric is an error.
      exclude: ids of vectors that are not returned, or a mask, True for those, in the order of `index.ids`; for each
        query, or the same for all. The result is as if the index did not have them. Ids that it does not have, such as
        -1, play no part. A few ids cost next to nothing; where a mask leaves few candidates, all codes are sorted.
      always: ids of vectors that are rescored beside the candidates, whatever their codes say; for each query, or the
        same for all. `exclude` goes first.
      score_bias: finite numbers that are added to the scores of each vector, in the order of `index.ids`, for "ip"; for
        each query, or the same for all. Candidates are chosen with it. All codes are sorted for it, which takes longer.

    Returns:
      The scores, float32, best first, and the ids, int32. If there are fewer than `k` vectors that are not excluded,
      the remaining scores are -inf and their ids -1.

    Raises:
      TypeError: `queries` has another dtype, or `index` is not an index.
      ValueError: `queries` does not have the features of the index, `num_candidates` is less than `k`, the index was
        built without lists or has fewer than `probe`, `probe` is given besides `recall`, the index was
        built for another metric or keeps no vectors to rescore with, no measured number of candidates reached
        `recall`, a restriction has another shape or is not finite, `index` is sharded and the call is inside of
        `jax.shard_map`, or `jax.vmap` maps over an Explicit axis of the mesh.

    Example:
      >>> import numpy as np
      >>> from jax_maddness import build_index
      >>> vectors = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
      >>> scores, ids = search(vectors[:2], build_index(vectors, 4, metric="l2"), k=1)
      >>> ids.tolist()
      [[0], [1]]
    """
    restrictions = {"exclude": exclude, "always": always, "score_bias": score_bias}
    index = _probing(validated_index(index), probe, recall)
    return searched(*_arguments(queries, index, k, num_candidates, recall, metric, restrictions))[:2]


def _probing(index: VectorIndex, probe: int | None, recall: float | None) -> VectorIndex:
    """Returns the index such that searches scan `probe` lists."""
    if probe is None:
        return index
    if index.lists is None:
        raise ValueError("`probe` is the number of lists to scan, but `index` has none. Build it with `num_lists`.")
    if recall is not None:
        raise ValueError("`recall` chooses the number of lists. Leave out `probe`, or pass `num_candidates` with it.")
    probe = validate.integer(probe, "probe")
    if not 1 <= probe <= index.lists.num_lists:
        raise ValueError(f"`probe` is {probe}; expected 1 to {index.lists.num_lists}, the number of lists of `index`.")
    return dataclasses.replace(index, lists=dataclasses.replace(index.lists, probe=probe))


def search_with_log_sum(
    queries: Array, index: VectorIndex, k: int, num_candidates: int, recall: float | None, restrictions: dict[str, Any]
) -> tuple[Array, Array, LogSum]:
    """Returns the result of `search`, and the logarithm of the sum of the exponentials of all scores.

    Raises:
      ValueError: there are no candidates; and the errors of `search`.
    """
    given = _arguments(queries, index, k, num_candidates, recall, None, restrictions)
    if not given[3]:
        raise ValueError("`log_sum` needs candidates, but `num_candidates` is 0. Take 32, or leave it out.")
    scores, ids, log_sum = searched(*given, log_sum=True)
    return scores, ids, log_sum


def _arguments(
    queries: Array,
    index: VectorIndex,
    k: int,
    num_candidates: int,
    recall: float | None,
    metric: str | None,
    restrictions: dict[str, Any],
) -> tuple[Array, VectorIndex, int, int, Restrictions | None]:
    """Returns the arguments of `searched`, validated."""
    queries = _validated(queries, index, metric)
    k = validate.integer(k, "k")
    if recall is not None:
        row = calibrate.row(calibrate.grown(index), validate.share(recall, "recall"), k, index.capacity)
        num_candidates, index = int(row[0]), _probing(index, None if index.lists is None else int(row[-1]), None)
    k, num_candidates = validate_counts(k, num_candidates)
    if num_candidates and index.vectors is None:
        raise ValueError(
            "`index` keeps no vectors to rescore with. Build it with `keep_vectors=True`, or use `num_candidates=0`."
        )
    if restrictions["score_bias"] is not None and index.metric != "ip":
        raise ValueError(f"`score_bias` is added to products, but `index` is for {index.metric!r}. Leave it out.")
    if restrictions["always"] is not None and not num_candidates:
        raise ValueError(
            "`always` names vectors to rescore, but `num_candidates` is 0. Take candidates, or leave it out."
        )
    refuse_mapped_axes("search")
    return queries, index, k, num_candidates, validated(queries.shape[:-1], index.capacity, **restrictions)


@functools.partial(jax.jit, static_argnames=("k", "num_candidates", "log_sum"), inline=True)
def searched(
    queries: Float[Array, "... features"],
    index: VectorIndex,
    k: int,
    num_candidates: int,
    given: Restrictions | None = None,
    log_sum: bool = False,
) -> tuple[Any, ...]:
    """Searches with validated arguments; returns the scores, the ids, and the `LogSum` if it is asked for."""

    def on_rows(queries: Array, index: VectorIndex, *given: Restrictions) -> tuple[Any, ...]:
        rows = queries.reshape(-1, index.num_features).astype(jnp.float32)
        finite = jnp.isfinite(rows).all(-1, keepdims=True)
        flat = merged(*given).flat(queries.shape[:-1]) if given else None
        scaled = scaled_queries(jnp.where(finite, rows, 0.0), index, flat is not None and flat.score_bias is not None)
        on_devices = local if index.mesh is None else _sharded
        scores, ids, terms = on_devices(scaled, index, k, num_candidates, given=flat, log_sum=log_sum)
        # A missing score is constant: without this, its derivative would be that of what is added to it.
        scores = jnp.where(ids < 0, -jnp.inf, unscaled(scores, scaled, index, bool(num_candidates)))
        scores = jnp.where(finite, scores, jnp.nan)
        ids = jnp.where(finite, ids, -1)
        results = scores.reshape(*queries.shape[:-1], k), ids.reshape(*queries.shape[:-1], k)
        if terms is None:
            return results
        sums = (jnp.where(finite[:, 0], a, jnp.nan).reshape(queries.shape[:-1]) for a in combined(terms))
        return (*results, LogSum(*sums))

    if index.mesh is not None:  # the vectors are sharded, so that all devices see all queries
        return on_rows(replicated(queries), index, *([] if given is None else [replicated(given)]))
    if given is None:
        return by_rows(on_rows, queries, queries.ndim - 1, index)
    return by_rows(on_rows, queries, queries.ndim - 1, index, given.shared(), by_row=given.own())


def validate_counts(k: int, num_candidates: int) -> tuple[int, int]:
    """Returns both as ints, if `k >= 1` and `num_candidates` is 0 or at least `k`; raises an error otherwise."""
    k, num_candidates = validate.integer(k, "k"), validate.integer(num_candidates, "num_candidates")
    if k < 1 or num_candidates < 0:
        raise ValueError(
            f"`k` is {k} and `num_candidates` {num_candidates}; expected `k >= 1` and `num_candidates >= 0`."
        )
    if 0 < num_candidates < k:
        raise ValueError(
            f"`num_candidates` is {num_candidates}, less than `k`, which is {k}. Take more candidates, or none: "
            "`num_candidates=0`."
        )
    return k, num_candidates


def _sharded(
    scaled: Scaled, index: VectorIndex, k: int, num_candidates: int, given: Restrictions | None, log_sum: bool
) -> Found:
    """Searches every shard and takes the best results. Ids ascend with shards, so that ties go to the lower id."""
    axis, mesh = index.axis, index.mesh
    assert axis is not None
    assert mesh is not None
    if jax.sharding.get_abstract_mesh().manual_axes:
        raise ValueError(
            "`index` is sharded (`shard_index`), and `search` spreads such a search over its devices by itself. Call "
            "it outside of `jax.shard_map`, or pass an index that is not sharded."
        )
    rows_per_shard = len(index.ids) // mesh.shape[axis]

    def on_shard(scaled: Scaled, shard: VectorIndex, given: Restrictions | None) -> Found:
        count = jnp.clip(index.capacity - lax.axis_index(axis) * rows_per_shard, 0, rows_per_shard)
        *results, terms = local(scaled, shard, k, num_candidates, count, given, log_sum)
        scores, ids = (lax.all_gather(a, axis, axis=1, tiled=True) for a in results)
        return Found(*best(scores, ids, k), None if terms is None else gathered(terms, axis))

    given = None if given is None else given.padded(len(index.ids))
    specs = jax.tree.map(lambda _: PartitionSpec(), index)
    specs = VectorIndex(**(vars(specs) | dict.fromkeys(("codes", "ids"), PartitionSpec(axis))))
    for name in ("bias", "vectors"):
        if getattr(index, name) is not None:
            specs = VectorIndex(**(vars(specs) | {name: PartitionSpec(axis)}))
    return jax.jit(
        jax.shard_map(
            on_shard,
            mesh=mesh,
            in_specs=(PartitionSpec(), specs, None if given is None else given.specs(axis)),
            out_specs=PartitionSpec(),
            axis_names={axis},
            check_vma=False,
        )
    )(scaled, index, given)


def _validated(queries: Array, index: VectorIndex, metric: str | None) -> Array:
    validated_index(index)
    queries = validate.row_array(queries, "queries")
    if queries.shape[-1] != index.num_features:
        raise ValueError(
            f"`queries` have shape {queries.shape}; expected [..., {index.num_features}], as the vectors of the index."
        )
    if metric is not None and not (isinstance(metric, str) and metric == index.metric):
        raise ValueError(f"`metric` is {metric!r}, but `index` was built for {index.metric!r}. Build another one.")
    return queries
