"""Who searches: look-ups with exact rescoring, XLA's exact products, faiss with as many bytes a vector. Imports JAX."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks import contenders, records
from benchmarks.contenders import Contender
from benchmarks.search_report import EXACT, FAISS, FAISS_FLAT, FAISS_ROTATED, LOOK_UPS
from jax_maddness.retrieval import scan


@dataclasses.dataclass(frozen=True)
class Searcher:
    """Finds neighbours, or the greatest outputs: queries [n, D], as `native` hands them over -> ids [n, k]."""

    what: str
    answer: Callable[[Any], Any]
    num_candidates: int = 0
    native: Callable[[np.ndarray], Any] = jnp.asarray

    def ids(self, queries: np.ndarray, batch: int) -> np.ndarray:
        """The answers to all queries, [n, k]; so many at a time, the last ones filled up with the first."""
        rows = np.resize(np.arange(len(queries)), -(-len(queries) // batch) * batch).reshape(-1, batch)
        found = [np.asarray(self.answer(self.native(queries[some]))) for some in rows]
        return np.concatenate(found)[: len(queries)]

    def contender(self, queries: np.ndarray, batch: int) -> Contender:
        """A call answers the next `batch` of the queries, over and over."""
        whole = len(queries) // batch * batch
        turns = itertools.cycle([self.native(some) for some in queries[:whole].reshape(-1, batch, queries.shape[1])])
        return Contender(self.what, "search", lambda: jax.block_until_ready(self.answer(next(turns))))


def neighbours(
    database: np.ndarray, indices: Mapping[str, Any], k: int, candidate_counts: Sequence[int]
) -> Iterator[Searcher]:
    """All that find the `k` vectors of greatest product; `indices` have their searchers' names."""
    yield Searcher(EXACT, exact(jnp.asarray(database), k))
    for what, index in indices.items():
        if what == LOOK_UPS:
            yield from (
                Searcher(what, look_ups(index, k, num_candidates), num_candidates)
                for num_candidates in candidate_counts
            )
        else:
            own = _faiss().deserialize_index(index)
            for num_candidates in [0] if what == FAISS_FLAT else candidate_counts:
                yield Searcher(what, faiss_search(own, k, num_candidates), num_candidates, native=np.ascontiguousarray)


def exact(database: jax.Array, k: int) -> Callable[[jax.Array], jax.Array]:
    """XLA's product with all of [M, D], and its top_k."""
    run = jax.jit(lambda queries, database: jax.lax.top_k(queries @ database.T, k)[1])
    return lambda queries: run(queries, database)


def look_ups(index: jax_maddness.VectorIndex, k: int, num_candidates: int) -> Callable[[jax.Array], jax.Array]:
    """jax_maddness.search."""
    run = jax.jit(lambda queries, index: jax_maddness.search(queries, index, k, num_candidates=num_candidates)[1])
    return lambda queries: run(queries, index)


# ---- faiss, where it is installed ----


def has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def _faiss() -> Any:
    import faiss

    return faiss


def faiss_indices(database: np.ndarray, codebooks: int) -> dict[str, Callable[[], np.ndarray]]:
    """What builds each of faiss's indices of half a byte a codebook, serialised, by name; nothing without faiss."""
    names = (FAISS_FLAT, FAISS, FAISS_ROTATED) if has_faiss() else ()
    return {what: functools.partial(_faiss_index, what, database, codebooks) for what in names}


def _faiss_index(what: str, database: np.ndarray, codebooks: int) -> np.ndarray:
    faiss = _faiss()
    features, metric = database.shape[1], faiss.METRIC_INNER_PRODUCT
    codes = faiss.IndexPQFastScan(features, codebooks, 4, metric)
    rotation = faiss.OPQMatrix(features, codebooks)
    rotation.pq = quantizer = faiss.ProductQuantizer(features, codebooks, 4)  # by itself it would learn 8 bits
    rotation.max_train_points = 16 * 1024  # 1,024 a prototype; faiss itself takes 256
    rotated = faiss.IndexPreTransform(rotation, codes)
    indices = {
        FAISS_FLAT: lambda: faiss.IndexFlat(features, metric),
        FAISS: lambda: faiss.IndexRefineFlat(codes),
        FAISS_ROTATED: lambda: faiss.IndexRefineFlat(rotated),
    }
    index = indices[what]()
    index.train(database)
    index.add(database)
    del quantizer  # faiss holds pointers only: it had to live until here
    return faiss.serialize_index(index)


def faiss_search(index: Any, k: int, num_candidates: int) -> Callable[[np.ndarray], np.ndarray]:
    """`num_candidates` of them by codes, the best `k` of them by exact products; every product where
    `num_candidates` is 0.
    """
    more = {"params": _faiss().IndexRefineSearchParameters(k_factor=num_candidates / k)} if num_candidates else {}
    return lambda queries: index.search(queries, k, **more)[1]


def set_faiss_threads(threads: int) -> None:
    if has_faiss():
        _faiss().omp_set_num_threads(threads)


# ---- A head with many outputs ----


def head(w: np.ndarray, index: Any, k: int, candidate_counts: Sequence[int], threads: int) -> Iterator[Searcher]:
    """All that find the `k` greatest outputs of `x @ w [D, M]`."""
    weights = jnp.asarray(w)
    logits = jax.jit(lambda x, w: jax.lax.top_k(x @ w, k)[1])
    yield Searcher(EXACT, lambda x: logits(x, weights))
    for num_candidates in candidate_counts:
        yield Searcher(LOOK_UPS, greatest(index, k, num_candidates), num_candidates)
    linear = contenders.torch_linear(w, threads)
    if linear is not None:
        import torch

        def answer(x: Any) -> Any:
            with torch.inference_mode():
                return torch.topk(linear(x), k).indices

        yield Searcher(records.TORCH, answer, native=torch.from_numpy)


def greatest(index: jax_maddness.VectorIndex, k: int, num_candidates: int) -> Callable[[jax.Array], jax.Array]:
    """jax_maddness.top_k."""
    run = jax.jit(lambda x, index: jax_maddness.top_k(x, index, k=k, num_candidates=num_candidates)[1])
    return lambda x: run(x, index)


# ---- The scan alone ----


def scans(vectors: int, codebooks: int, kept: int) -> list[Contender]:
    """One query against so many vectors of random codes, the best `kept` of them; and plain reads of their bytes."""
    rng = np.random.default_rng(0)
    blocks = -(-vectors // scan.BLOCK)
    codes = jnp.asarray(rng.integers(0, 256, (blocks, -(-codebooks // 2), scan.BLOCK), np.uint8))
    tables = jnp.asarray(rng.integers(0, scan.MAX_ENTRY + 1, (1, codebooks, 16), np.uint8))
    call = contenders.run(functools.partial(scan.scan, k=kept), codes, tables, jnp.int32(vectors))
    return [Contender("scan", "scan", call), *contenders.reads(jnp.asarray(np.asarray(codes).view(np.uint32)))]
