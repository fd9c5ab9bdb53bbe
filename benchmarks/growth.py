"""Time of adding and removing vectors, and of the first search after it, of an index with room and of one without.

    taskset -c 1 python -m benchmarks.growth [--save]   # one thread; prints a table; a minute

The vectors have the size of sentence embeddings, are random, and have correlated features. Every change has other
vectors than the one before. Without room, an index has another size after every change, for which a search of one query
is compiled anew; what else is compiled, for the change itself, counts too. So few vectors are removed that they keep
their places in an index with room.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import jax_maddness
from benchmarks import measured
from benchmarks.records import Record

VECTORS, FEATURES, CODEBOOKS, CANDIDATES, K = 55_896, 384, 24, 64, 10
CHANGES = {"add 1": 1, "add 100": 100, "remove 1": 0}
"""Number of vectors that come with each change."""
ROUND = ("add 1", "add 100", "remove 1", "add 100")
"""The order of changes, in which no number of vectors comes back: its search would be compiled already."""


def embeddings(count: int) -> np.ndarray:
    """Returns vectors [count, features]."""
    rng = np.random.default_rng(0)
    causes = rng.standard_normal((64, FEATURES))
    noise = 0.3 * rng.standard_normal((count, FEATURES), np.float32)
    return (rng.standard_normal((count, 64)) @ causes).astype(np.float32) + noise


class Growing:
    """An index that changes, and the milliseconds that its changes and the searches after them took."""

    def __init__(self, index: jax_maddness.VectorIndex, **options: bool):
        self._index, self._options = index, options
        self.figures: dict[str, list[tuple[float, float]]] = {}

    def change(self, name: str, rows: np.ndarray, removed: np.ndarray, search: Callable[..., Any]) -> None:
        """Adds rows, or removes ids where there are none, and searches for one of the vectors."""
        start = time.perf_counter()
        if len(rows):
            self._index = jax_maddness.add_vectors(self._index, rows, **self._options)
        else:
            self._index = jax_maddness.remove_vectors(self._index, removed, **self._options)
        jax.block_until_ready(self._index)
        changed = time.perf_counter()
        jax.block_until_ready(search(self._index))
        searched = time.perf_counter()
        self.figures.setdefault(name, []).append((1e3 * (changed - start), 1e3 * (searched - changed)))


def indexes(vectors: np.ndarray, capacity: int) -> dict[str, Growing]:
    """Returns the indexes that change, by their names in the table."""
    index = jax_maddness.build_index(vectors, CODEBOOKS, metric="cosine", progress=False)
    return {
        "without room": Growing(index),
        "with room, copied": Growing(jax_maddness.with_capacity(index, capacity)),
        "with room, `donate=True`": Growing(jax_maddness.with_capacity(index, capacity), donate=True),
    }


def measure(vectors: np.ndarray, new: np.ndarray, rounds: int) -> list[Record]:
    """Makes all changes of one index after the other. The first of each compiles for all of its kind, and is apart.

    Changes of another index in between would leave the caches cold, which takes longer than a change in place.
    """
    run = jax.jit(lambda query, index: jax_maddness.search(query, index, K, num_candidates=CANDIDATES)[1])
    growing = indexes(vectors, len(vectors) + len(new))
    removed = np.random.default_rng(1).permutation(len(vectors))[: rounds + 1, None]
    for index in growing.values():
        at = 0
        for turn in range(rounds + 1):
            search = functools.partial(run, vectors[turn : turn + 1])
            for name in ROUND:
                rows, at = new[at : at + CHANGES[name]], at + CHANGES[name]
                index.change(name, rows, removed[turn], search)
    return [
        {"index": name, "change": change, "vectors": len(vectors), "first_ms": own[0][0],
         "ms": statistics.median(ms for ms, _ in own[1:]), "search_ms": statistics.median(ms for _, ms in own[1:])}
        for name, index in growing.items() for change, own in index.figures.items()
    ]  # fmt: skip


def table(records: Sequence[Record]) -> str:
    """Returns a row for each index, and two columns for each change."""
    changes = list(dict.fromkeys(r["change"] for r in records))
    lines = [
        f"| index | {' | '.join(f'{change}, ms | search after it, ms' for change in changes)} |",
        "|---" * (2 * len(changes) + 1) + "|",
    ]
    for name in dict.fromkeys(r["index"] for r in records):
        own = {r["change"]: r for r in records if r["index"] == name}
        cells = [f"{own[change]['ms']:.2f} | {own[change]['search_ms']:.2f}" for change in changes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=VECTORS)
    parser.add_argument("--rounds", type=int, default=20, help="number of times that every change is made")
    measured.add_option(parser)
    args = parser.parse_args(argv)
    run = measured.Run("growth", argv)
    rows = embeddings(args.vectors + sum(CHANGES[name] for name in ROUND) * (args.rounds + 1))
    records = measure(rows[: args.vectors], rows[args.vectors :], args.rounds)
    run.finish(records, table(records), save=args.save)


if __name__ == "__main__":
    main()
