"""Contenders of search.py: look-ups with rescoring, XLA's exact products, faiss with as many bytes per vector."""

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
    """A function that finds neighbors or the greatest outputs.

    Attributes:
      what: the name.
      answer: maps queries [n, D] to ids [n, k].
      num_candidates: number of candidates that are rescored; 0 if all products are computed.
      native: converts queries from NumPy for `answer`.
    """

    what: str
    answer: Callable[[Any], Any]
    num_candidates: int = 0
    native: Callable[[np.ndarray], Any] = jnp.asarray

    def ids(self, queries: np.ndarray, batch: int) -> np.ndarray:
        """Answers all queries, [n, k], in batches; the last batch is filled up with the first queries."""
        rows = np.resize(np.arange(len(queries)), -(-len(queries) // batch) * batch).reshape(-1, batch)
        answers = [np.asarray(self.answer(self.native(queries[some]))) for some in rows]
        return np.concatenate(answers)[: len(queries)]

    def contender(self, queries: np.ndarray, batch: int) -> Contender:
        """Returns a contender, each call of which answers the next batch of the queries, cyclically."""
        whole = len(queries) // batch * batch
        turns = itertools.cycle([self.native(some) for some in queries[:whole].reshape(-1, batch, queries.shape[1])])
        return Contender(self.what, "search", lambda: jax.block_until_ready(self.answer(next(turns))))


def neighbors(
    database: np.ndarray, indices: Mapping[str, Any], k: int, candidate_counts: Sequence[int]
) -> Iterator[Searcher]:
    """Yields all searchers for the `k` vectors of greatest product; `indices` maps their names to indices."""
    yield Searcher(EXACT, exact(jnp.asarray(database), k))
    for name, index in indices.items():
        if name == LOOK_UPS:
            yield from (
                Searcher(name, look_ups(index, k, num_candidates), num_candidates)
                for num_candidates in candidate_counts
            )
        else:
            own = _faiss().deserialize_index(index)
            for num_candidates in [0] if name == FAISS_FLAT else candidate_counts:
                yield Searcher(name, faiss_search(own, k, num_candidates), num_candidates, native=np.ascontiguousarray)


def exact(database: jax.Array, k: int) -> Callable[[jax.Array], jax.Array]:
    """Searches by XLA's product with the whole database, and its top_k."""
    run = jax.jit(lambda queries, database: jax.lax.top_k(queries @ database.T, k)[1])
    return lambda queries: run(queries, database)


def look_ups(index: jax_maddness.VectorIndex, k: int, num_candidates: int) -> Callable[[jax.Array], jax.Array]:
    """Searches by `jax_maddness.search`."""
    run = jax.jit(lambda queries, index: jax_maddness.search(queries, index, k, num_candidates=num_candidates)[1])
    return lambda queries: run(queries, index)


# ---- faiss, if it is installed ----


def has_faiss() -> bool:
    """Returns whether faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


def _faiss() -> Any:
    import faiss

    return faiss


def faiss_indices(database: np.ndarray, codebooks: int) -> dict[str, Callable[[], np.ndarray]]:
    """Returns functions that build and serialize indices of faiss, by name; none without faiss."""
    names = (FAISS_FLAT, FAISS, FAISS_ROTATED) if has_faiss() else ()
    return {name: functools.partial(_faiss_index, name, database, codebooks) for name in names}


def _faiss_index(name: str, database: np.ndarray, codebooks: int) -> np.ndarray:
    faiss = _faiss()
    features, metric = database.shape[1], faiss.METRIC_INNER_PRODUCT
    codes = faiss.IndexPQFastScan(features, codebooks, 4, metric)
    rotation = faiss.OPQMatrix(features, codebooks)
    rotation.pq = quantizer = faiss.ProductQuantizer(features, codebooks, 4)  # the default would be codes of 8 bits
    rotation.max_train_points = 16 * 1024  # 1,024 a prototype; faiss itself takes 256
    rotated = faiss.IndexPreTransform(rotation, codes)
    indices = {
        FAISS_FLAT: lambda: faiss.IndexFlat(features, metric),
        FAISS: lambda: faiss.IndexRefineFlat(codes),
        FAISS_ROTATED: lambda: faiss.IndexRefineFlat(rotated),
    }
    index = indices[name]()
    index.train(database)
    index.add(database)
    del quantizer  # faiss keeps only a pointer to it, so that it had to live until here
    return faiss.serialize_index(index)


def faiss_search(index: Any, k: int, num_candidates: int) -> Callable[[np.ndarray], np.ndarray]:
    """Searches by faiss: codes propose `num_candidates`, exact products decide; 0 computes every product."""
    options = {"params": _faiss().IndexRefineSearchParameters(k_factor=num_candidates / k)} if num_candidates else {}
    return lambda queries: index.search(queries, k, **options)[1]


def set_faiss_threads(threads: int) -> None:
    """Limits faiss to `threads` threads, if it is installed."""
    if has_faiss():
        _faiss().omp_set_num_threads(threads)


# ---- A head with many outputs ----


def head(w: np.ndarray, index: Any, k: int, candidate_counts: Sequence[int], threads: int) -> Iterator[Searcher]:
    """Yields all searchers for the `k` greatest outputs of `x @ w [D, M]`."""
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
    """Searches by `jax_maddness.top_k`."""
    run = jax.jit(lambda x, index: jax_maddness.top_k(x, index, k=k, num_candidates=num_candidates)[1])
    return lambda x: run(x, index)


# ---- The scan alone ----


def scans(vectors: int, codebooks: int, kept: int) -> list[Contender]:
    """Returns the scan of one query over random codes, which keeps the best `kept`, and plain reads of the codes."""
    rng = np.random.default_rng(0)
    blocks = -(-vectors // scan.BLOCK)
    codes = jnp.asarray(rng.integers(0, 256, (blocks, -(-codebooks // 2), scan.BLOCK), np.uint8))
    tables = jnp.asarray(rng.integers(0, scan.MAX_ENTRY + 1, (1, codebooks, 16), np.uint8))
    call = contenders.run(functools.partial(scan.scan, k=kept), codes, tables, jnp.int32(vectors))
    return [Contender("scan", "scan", call), *contenders.reads(jnp.asarray(np.asarray(codes).view(np.uint32)))]
