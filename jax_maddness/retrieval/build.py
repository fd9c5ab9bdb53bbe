"""Builds vector indices: prototypes, codes, and the recall that a number of candidates reaches.

All functions run outside of `jax.jit`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Integer, UInt8

from jax_maddness.core.arguments import integer
from jax_maddness.core.encode import encode as encode_by_trees
from jax_maddness.core.pytrees import register_with_flax
from jax_maddness.core.types import ObliqueTrees
from jax_maddness.learn.config import FitConfig
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.fit import fit
from jax_maddness.learn.progress import Progress
from jax_maddness.retrieval import calibrate, calibrate_lists, centers, quantizer, scan
from jax_maddness.retrieval import criterion as criteria
from jax_maddness.retrieval import validate as arguments
from jax_maddness.retrieval.bias import shielded
from jax_maddness.retrieval.frame import augmented, frame_of, in_frame, unit32
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.lists import Bases, arranged
from jax_maddness.retrieval.powers import exponent_of

SAMPLE = 2**15
"""Greatest number of vectors that prototypes are learned from."""
CALIBRATION = 256
"""Greatest number of queries on which recall is measured."""
pack = jax.jit(scan.pack)
_SHRINK = 0.1
"""Weight of the identity that is added to the second moment of the queries, in units of its mean diagonal entry.

Queries that are searched for later differ from the sample, so that products must be right in every direction.
"""


def build_index(
    database: Float[ArrayLike, "vectors features"],
    num_codebooks: int = 48,
    *,
    metric: str = "ip",
    bias: Float[ArrayLike, " vectors"] | None = None,
    queries: Float[ArrayLike, "queries features"] | None = None,
    ids: Integer[ArrayLike, " vectors"] | Sequence[int] | None = None,
    keep_vectors: Any = True,
    method: str = "kmeans",
    num_lists: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> VectorIndex:
    """Encodes vectors for `search`, which finds those nearest to a query by look-ups.

    An index takes half a byte per codebook and vector, besides the exact vectors. Prototypes are learned from a random
    sample of at most `SAMPLE` (32,768) vectors, such that scores of `queries` have the least error (additive
    quantization, Babenko & Lempitsky 2014; see `quantizer.py`), above all those of vectors near a query (see
    `criterion.py`). The same arguments give the same index on the same machine. Call the function outside of `jax.jit`.

    Without `queries`, some hundreds of held-out vectors take their place; these do not find themselves. That is right
    if queries are like the vectors, as in "which sentence is like this one". If they are not, as for the outputs of a
    layer, pass some hundreds of real queries: one half is learned from, and recall is measured on the other half, with
    at most `CALIBRATION` (256) held-out queries.

    Args:
      database: the vectors, `[vectors, features]`, of any real dtype, with finite values; computed with in float32.
      num_codebooks: C, from 1 to the number of features, and at most 256.
      metric: "ip" for the inner product, "l2" for the Euclidean distance, or "cosine".
      bias: number that is added to the products of each vector, `[vectors]`, such as the bias of a layer; only for
        "ip".
      queries: samples of later queries, `[queries, features]`.
      ids: distinct int32 ids of the vectors, 0 or greater, `[vectors]`; None: 0, 1, 2, ...
      keep_vectors: whether the index keeps the exact vectors for rescoring: True, False, or the dtype to keep them in.
        True keeps float16 and bfloat16 as they are and all other dtypes as float32.
      method: "kmeans", or "trees" for codes by split trees, which are faster to compute and less accurate; they suit
        an index whose vectors change often (`add_vectors`).
      num_lists: number of lists into which the vectors are sorted, so that `search` scans those near a query only. From
        about 100,000 vectors on, take between one and four times the square root of their number. None: no lists.
      seed: seed of the random samples.
      progress: whether to show a progress bar; None shows it if building takes longer than two seconds.

    Returns:
      The index, on the default device. Its vectors are in ascending order of ids.

    Raises:
      TypeError: an argument has the wrong type, or is traced.
      ValueError: shapes do not match, there are no vectors, values are not finite or overflow, or an option is unknown.

    Example:
      >>> vectors = np.random.default_rng(0).standard_normal((1000, 8))
      >>> build_index(vectors, 4, metric="l2")
      VectorIndex(1,000 x 8, l2, 4 codebooks, exact vectors: float32, 42,724 bytes)
    """
    register_with_flax()
    arguments.options(metric, method, bias)
    given = arguments.array(database, "database")
    rows = arguments.rows(given, metric)
    added = None if bias is None else arguments.bias(bias, len(rows))
    codebooks = arguments.codebooks(num_codebooks, rows.shape[1])
    names, order = arguments.names(ids, len(rows))
    rows, added = rows[order], None if added is None else added[order]
    dtype = arguments.kept(keep_vectors, given)
    samples = None if queries is None else arguments.samples(queries, rows.shape[1])
    num_lists = None if num_lists is None else arguments.lists(num_lists, len(rows))
    learned_from, query_rows, held_out = _split(np.random.default_rng(integer(seed, "seed", 0)), len(rows), samples)
    frame = frame_of(rows, metric)
    with Progress(progress, "build_index") as bar, modes():
        bar.expect(quantizer.ROUNDS + 1 + math.ceil(len(rows) / quantizer.BLOCK))
        like_queries = rows[learned_from] if query_rows is None else query_rows
        coded = added if added is None else shielded(added, like_queries, rows[learned_from])
        encoded = augmented(rows, coded, metric, frame)
        bases = None if num_lists is None else based(encoded, num_lists, metric, seed, bar)
        moment = _moment(in_frame(like_queries, metric, frame))
        of_sample = None if bases is None else bases.of(learned_from)
        learned, criterion, trees = _learn(
            encoded[learned_from], moment, codebooks, metric, method, seed, bar, of_sample
        )
        codes, lists = encode(encoded, learned, criterion, trees, bar, bases), None
        if bases is not None:
            codes, lists = arranged(codes, bases, len(bases.centers))
        del encoded
        vectors = arguments.held(unit32(rows) if metric == "cosine" else rows, dtype or np.float32, "database")
        index = VectorIndex(
            pack(codes), learned, jnp.asarray(names), _on_device(added), jnp.asarray(vectors), trees, metric, len(rows)
        )
        index = dataclasses.replace(
            index, origin=_on_device(frame.origin), exponent=frame.exponent, criterion=criterion, lists=lists
        )
        bar.stage("recall")
        index = _measured(index, rows, *((rows[held_out], held_out) if samples is None else (samples[held_out], None)))
    return index if dtype is not None else dataclasses.replace(index, vectors=None)


def _measured(index: VectorIndex, rows: np.ndarray, queries: np.ndarray, own: np.ndarray | None) -> VectorIndex:
    """Returns the index with the recall that held-out queries measure, and with as many lists to scan as that takes."""
    if index.lists is None:
        return dataclasses.replace(index, recall=calibrate.measure(index, rows, queries, own))
    recall, probe = calibrate_lists.measure(index, rows, queries, own)
    return dataclasses.replace(index, recall=recall, lists=dataclasses.replace(index.lists, probe=probe))


def _on_device(array: np.ndarray | None) -> jax.Array | None:
    return None if array is None else jnp.asarray(array)


def _learn(
    sample: np.ndarray,
    moment: np.ndarray,
    codebooks: int,
    metric: str,
    method: str,
    seed: int,
    bar: Progress,
    bases: Bases | None,
) -> tuple[quantizer.Quantizer, criteria.Criterion, ObliqueTrees | None]:
    bar.stage("prototypes")
    if method == "kmeans":
        return *criteria.learn(sample, moment, metric, codebooks, seed, bar.step, bases), None
    values, axes = np.linalg.eigh(moment)
    root = axes * np.sqrt(np.maximum(values, 0.0))  # |e @ root|^2 = e^T M e, which `fit` therefore minimizes
    trees = fit(sample, root, num_codebooks=codebooks, progress=False, config=FitConfig("oblique")).trees
    assert isinstance(trees, ObliqueTrees)
    center = sample.mean(0, dtype=np.float64).astype(np.float32)
    bar.step(quantizer.ROUNDS + 1)
    codes = np.asarray(encode_by_trees(jnp.asarray(sample), trees))
    return quantizer.regress(sample, codes, center, moment), (), trees


def based(encoded: np.ndarray, num_lists: int, metric: str, seed: int, bar: Progress) -> Bases:
    """Learns the centers of lists and finds the list of each vector; subtracts the centers from `encoded`."""
    bar.expect(centers.STEPS)
    bar.stage("lists")
    rng = np.random.default_rng(seed)
    size = min(len(encoded), max(SAMPLE, centers.PER_LIST * num_lists))
    sample = encoded[np.sort(rng.choice(len(encoded), size, replace=False)), :-1]
    learned = centers.learn(sample, num_lists, rng, bar.step)
    of_vectors = centers.assign(encoded[:, :-1], learned)[0]
    if metric == "l2":
        numbers = -np.einsum("ld,ld->l", learned, learned) / 2
    else:
        counts = np.bincount(of_vectors, minlength=num_lists)
        numbers = np.bincount(of_vectors, encoded[:, -1], minlength=num_lists) / np.maximum(counts, 1)
    bases = Bases(np.column_stack([learned, numbers]).astype(np.float32), of_vectors)
    for at in range(0, len(encoded), quantizer.BLOCK):
        encoded[at : at + quantizer.BLOCK] -= bases.at(slice(at, at + quantizer.BLOCK))
    return bases


def encode(
    encoded: np.ndarray,
    learned: quantizer.Quantizer,
    criterion: criteria.Criterion,
    trees: ObliqueTrees | None,
    bar: Progress | None,
    bases: Bases | None = None,
    gram: jax.Array | None = None,
) -> UInt8[np.ndarray, "vectors codebooks"]:
    """Returns the codes of vectors as `augmented` made them: by `trees`, or by `criterion` without them.

    If there are `bases`, these have been subtracted from the vectors. `gram` is as for `quantizer.encode`.
    """
    step = (lambda: None) if bar is None else bar.step
    if bar is not None:
        bar.stage("codes")
    if trees is None:
        return criteria.encode(learned, encoded, criterion, step, bases, gram)
    codes = [
        np.asarray(encode_by_trees(jnp.asarray(encoded[at : at + quantizer.BLOCK]), trees))
        for at in range(0, len(encoded), quantizer.BLOCK)
    ]
    return np.concatenate(codes)


def _moment(queries: Float[np.ndarray, "queries features"]) -> Float[np.ndarray, "features+1 features+1"]:
    """Returns the second moment of queries with a 1 appended, shrunk toward the identity by `_SHRINK`.

    It is divided by a power of two, such that it fits into float32: codes do not depend on its scale.
    """
    queries = np.concatenate([queries, np.ones((len(queries), 1))], 1)
    moment = queries.T @ queries / len(queries)
    features = len(moment) - 1
    moment[:-1, :-1] += _SHRINK * max(np.trace(moment[:-1, :-1]) / features, 1e-30) * np.eye(features)
    return np.ldexp(moment, -exponent_of(np.diagonal(moment)))


def _split(
    rng: np.random.Generator, count: int, queries: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Chooses what to learn from and what to measure recall with.

    Returns:
      The row numbers of the vectors that prototypes are learned from; the queries that the second moment is learned
      from, or None if there are no `queries`; and the row numbers of the held-out queries, or of the held-out vectors
      if there are no `queries`.
    """
    if queries is None:
        held_out = rng.choice(count, min(CALIBRATION, count // 8), replace=False)
        remaining = np.setdiff1d(np.arange(count), held_out)
        return np.sort(rng.permutation(remaining)[:SAMPLE]), None, held_out
    order = rng.permutation(len(queries))
    held_out = order[: min(CALIBRATION, len(queries) // 2)]
    return np.sort(rng.permutation(count)[:SAMPLE]), queries[order[len(held_out) :]], held_out
