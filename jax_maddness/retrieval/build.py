"""vectors -> index: codes, what they stand for, and how many candidates a search should rescore. Outside of
`jax.jit`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int32, UInt8

from jax_maddness.core.encode import encode as encode_by_trees
from jax_maddness.core.types import ObliqueTrees
from jax_maddness.learn.config import FitConfig
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.fit import fit
from jax_maddness.learn.progress import Progress
from jax_maddness.retrieval import calibrate, quantizer, scan
from jax_maddness.retrieval import validate as arguments
from jax_maddness.retrieval.index import VectorIndex, whole

SAMPLE = 2**15
"""Vectors that prototypes are learned from, at most."""
CALIBRATION = 256
"""Queries on which recall is measured, at most."""
_pack = jax.jit(scan.pack)
_SHRINK = 0.1  # of the queries' second moment toward that of queries from everywhere, in units of its mean


def build_index(
    database: Float[ArrayLike, "vectors features"],
    num_codebooks: int = 48,
    *,
    metric: str = "ip",
    bias: Float[ArrayLike, " vectors"] | None = None,
    queries: Float[ArrayLike, "queries features"] | None = None,
    ids: Int32[ArrayLike, " vectors"] | None = None,
    keep_vectors: Any = True,
    method: str = "kmeans",
    seed: int = 0,
    progress: bool | None = None,
) -> VectorIndex:
    """Encodes vectors so that `search` finds those nearest to a query by look-ups: half a byte per codebook and vector.

    Codes are learned from a random sample of `SAMPLE` vectors so that products with `queries` have the least error.
    The same arguments give the same index on the same machine. Call it outside of `jax.jit`.

    Without `queries`, some hundreds of the vectors stand in for them, which are not learned from and do not find
    themselves. That is right where queries are like the vectors, as in "which sentence is like this one". Where they
    are not, as for the outputs of a layer, pass some hundreds of real ones: half of them are learned from, on the
    others, at most `CALIBRATION`, recall is measured.

    Args:
      database: real, finite; learned from in float32.
      num_codebooks: C, from 1 to the number of features, at most 256.
      metric: "ip", the inner product; "l2", the distance; or "cosine".
      bias: what is added to the products of each vector; for "ip" only: the bias of a layer.
      queries: samples of what will be searched for.
      ids: names of the vectors, not negative, none twice; by default 0, 1, 2, ...
      keep_vectors: keep them for exact products: True, False, or the dtype to keep them in. True keeps float16 and
        bfloat16 as they are, all others as float32.
      method: "kmeans", or "trees": codes by split trees, quicker to find and less accurate, for vectors that come and
        go (`add_vectors`).
      seed: of samples.
      progress: show a progress bar; None shows it where building takes longer than two seconds.

    Raises:
      TypeError: an argument is of the wrong kind, or is traced.
      ValueError: shapes do not match, there are no vectors, values are not finite or overflow, or an option is unknown.

    Example:
      >>> vectors = np.random.default_rng(0).standard_normal((1000, 8))
      >>> build_index(vectors, 4, metric="l2")
      VectorIndex(1,000 x 8, l2, 4 codebooks, exact vectors: float32, 46,692 bytes)
    """
    arguments.options(metric, method, bias)
    given = database if hasattr(database, "dtype") else np.asarray(database)
    rows, added = arguments.rows(given, metric, bias)
    codebooks = arguments.codebooks(num_codebooks, rows.shape[1])
    names, order = arguments.names(ids, len(rows))
    rows, added = rows[order], None if added is None else added[order]
    kept = arguments.kept(keep_vectors, given)
    asked = None if queries is None else arguments.rows(queries, metric, None, rows.shape[1], "queries")[0]
    learned_from, others, held_out = _split(np.random.default_rng(seed), len(rows), asked)
    with Progress(progress, "build_index") as bar, modes():
        bar.expect(quantizer.ROUNDS + 1 + math.ceil(len(rows) / quantizer.BLOCK))
        augmented = _augmented(rows, added)
        moment = _moment(rows[learned_from] if others is None else others)
        found, trees = _learn(augmented[learned_from], moment, codebooks, method, seed, bar)
        codes = _pack(_encode(augmented, found, trees, bar))
        bias = None if added is None else jnp.asarray(added)
        exact = VectorIndex(codes, found, jnp.asarray(names), bias, jnp.asarray(rows), trees, metric, len(rows))
        bar.stage("recall")
        asked, own = (rows[held_out], held_out) if asked is None else (asked[held_out], None)
        measured = calibrate.measure(exact, asked, own)
    return dataclasses.replace(exact, vectors=None if kept is None else jnp.asarray(rows, kept), recall=measured)


def add_vectors(
    index: VectorIndex,
    vectors: Float[ArrayLike, "more features"],
    ids: Int32[ArrayLike, " more"] | None = None,
    *,
    bias: Float[ArrayLike, " more"] | None = None,
) -> VectorIndex:
    """A new index with `vectors` besides those of `index`; by default with the ids that follow its greatest.

    The codes are those that `build_index` would have given them with the prototypes of `index`, which were learned from
    other vectors: build anew when the kind of vectors has changed. A sharded index comes back whole. The measured
    recall is that of the index that was built.

    Raises:
      TypeError, ValueError: as `build_index`; or an id is there already.
    """
    index = whole(index)
    if (bias is None) != (index.bias is None or index.metric == "l2"):
        raise ValueError("`bias` is to be given if, and only if, `index` was built with one.")
    rows, added = arguments.rows(vectors, index.metric, bias, index.num_features, "vectors")
    old = np.asarray(index.ids)
    new, order = arguments.names(ids, len(rows), int(old.max(initial=-1)) + 1)
    if len(twice := np.intersect1d(old, new)):
        raise ValueError(
            f"`ids` has {len(twice)} that are there already, such as {twice[0]}. `remove_vectors` them first."
        )
    rows, added = rows[order], None if added is None else added[order]
    with modes():
        codes = _encode(_augmented(rows, added), index.quantizer, index.trees, None)
    names = np.concatenate([old, new])
    return _rearranged(index, names, np.argsort(names), codes, rows, added)


def remove_vectors(index: VectorIndex, ids: Int32[ArrayLike, " gone"]) -> VectorIndex:
    """A new index without the vectors called `ids`. A sharded index comes back whole.

    Raises:
      ValueError: an id is not there.
    """
    index = whole(index)
    old, gone = np.asarray(index.ids), np.unique(np.asarray(ids))
    if len(unknown := np.setdiff1d(gone, old)):
        raise ValueError(f"`ids` has {len(unknown)} that are not in `index`, such as {unknown[0]}.")
    return _rearranged(index, old, np.flatnonzero(~np.isin(old, gone)))


def _rearranged(
    index: VectorIndex,
    names: np.ndarray,
    order: np.ndarray,
    codes: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    added: np.ndarray | None = None,
) -> VectorIndex:
    """The vectors of `index`, then `rows` with their codes, in another order."""

    def with_new(old: Any, new: np.ndarray | None) -> Any:
        if old is None:
            return None
        both = np.asarray(old) if new is None else np.concatenate([np.asarray(old), new.astype(old.dtype)])
        return jnp.asarray(both[order])

    there = np.asarray(scan.unpack(index.codes))[: index.count, : index.num_codebooks]
    return dataclasses.replace(
        index,
        codes=_pack(with_new(there, codes)),
        ids=jnp.asarray(names[order]),
        bias=with_new(index.bias, added),
        vectors=with_new(index.vectors, rows),
        count=len(order),
    )


def _learn(
    sample: np.ndarray, moment: np.ndarray, codebooks: int, method: str, seed: int, bar: Progress
) -> tuple[quantizer.Quantizer, ObliqueTrees | None]:
    bar.stage("prototypes")
    if method == "kmeans":
        return quantizer.learn(sample, moment, codebooks, seed, bar.step), None
    values, axes = np.linalg.eigh(moment)
    root = axes * np.sqrt(np.maximum(values, 0.0))  # |e @ root|^2 = e^T M e: what `fit` makes small
    trees = fit(sample, root, num_codebooks=codebooks, progress=False, config=FitConfig("oblique")).trees
    assert isinstance(trees, ObliqueTrees)
    center = sample.mean(0, dtype=np.float64).astype(np.float32)
    bar.step(quantizer.ROUNDS + 1)
    return quantizer.regress(sample, np.asarray(encode_by_trees(jnp.asarray(sample), trees)), center, moment), trees


def _encode(
    augmented: np.ndarray, found: quantizer.Quantizer, trees: ObliqueTrees | None, bar: Progress | None
) -> UInt8[np.ndarray, "vectors codebooks"]:
    step = (lambda: None) if bar is None else bar.step
    if bar is not None:
        bar.stage("codes")
    if trees is None:
        return quantizer.encode(found, augmented, step=step)
    codes = [
        np.asarray(encode_by_trees(jnp.asarray(augmented[at : at + quantizer.BLOCK]), trees))
        for at in range(0, len(augmented), quantizer.BLOCK)
    ]
    return np.concatenate(codes)


def _augmented(rows: np.ndarray, added: np.ndarray | None) -> Float[np.ndarray, "vectors features+1"]:
    """Vectors with what is added to their products as one feature more."""
    return np.concatenate([rows, (np.zeros(len(rows), np.float32) if added is None else added)[:, None]], 1)


def _moment(queries: np.ndarray) -> Float[np.ndarray, "features+1 features+1"]:
    """The second moment of queries with a 1 at the end, shrunk: products are to be right in every direction."""
    moment = _augmented(queries, np.ones(len(queries), np.float32)).astype(np.float64)
    moment = moment.T @ moment / len(queries)
    features = len(moment) - 1
    moment[:-1, :-1] += _SHRINK * max(np.trace(moment[:-1, :-1]) / features, 1e-30) * np.eye(features)
    return moment


def _split(
    rng: np.random.Generator, count: int, asked: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Which vectors to learn from; queries to learn from, if there are others; and which to measure recall with."""
    if asked is None:
        held_out = rng.choice(count, min(CALIBRATION, count // 8), replace=False)
        rest = np.setdiff1d(np.arange(count), held_out)
        return np.sort(rng.permutation(rest)[:SAMPLE]), None, held_out
    order = rng.permutation(len(asked))
    held_out = order[: min(CALIBRATION, len(asked) // 2)]
    return np.sort(rng.permutation(count)[:SAMPLE]), asked[order[len(held_out) :]], held_out
