"""Search in WordNet by meaning: look-ups propose, exact products decide (`make example-search`).

    python -m examples.search "a place where one borrows books" "unable to sleep"

embeds 116,461 glosses with MiniLM (once, for some minutes; the vectors are stored in build/search), builds an index of
24 bytes per gloss, and prints the ten nearest glosses of each query, with the times of the search and of the exact
answer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

import jax_maddness
from examples import glosses, minilm

QUERIES = ("a place where one borrows books", "unable to sleep", "music made by a whole orchestra")


def exact(queries: jax.Array, database: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Searches without an index: computes every product and takes the greatest."""
    return jax.lax.top_k(queries @ database.T, k)


def milliseconds(calls: Sequence[Callable[[], object]], rounds: int = 21) -> list[float]:
    """Returns medians over rounds in which all calls are made in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


class Search:
    """The glosses, their vectors and index, and the model that embeds queries."""

    def __init__(self, args: argparse.Namespace):
        self.texts, self.words = glosses.load(args.limit)
        self.database = jnp.asarray(glosses.vectors(self.texts))
        start = time.perf_counter()
        self.index = jax_maddness.build_index(self.database, num_codebooks=args.codebooks)
        seconds = time.perf_counter() - start
        print(f"{len(self.texts):,} glosses; index built in {seconds:.1f} s; tier {jax_maddness.active_tier()}")
        self.model, self.tokenizer = minilm.load(), minilm.load_tokenizer()
        self.k, self.num_candidates = args.k, args.candidates
        self.search = jax.jit(jax_maddness.search, static_argnames=("k", "num_candidates"))
        self.exact = jax.jit(exact, static_argnames="k")

    def answer(self, query: str) -> None:
        """Prints the nearest glosses, and the time of the search and of the exact answer."""
        vector = jnp.asarray(minilm.embed([query], self.model, self.tokenizer))
        (embedding,) = milliseconds([lambda: minilm.embed([query], self.model, self.tokenizer)], rounds=3)
        calls = (
            lambda: self.search(vector, self.index, k=self.k, num_candidates=self.num_candidates),
            lambda: self.exact(vector, self.database, k=self.k),
        )
        (scores, ids), (_, exact_ids) = (call() for call in calls)
        quick, slow = milliseconds(calls)
        print(f"\n{query}")
        for score, i in zip(scores[0].tolist(), ids[0].tolist(), strict=True):
            print(f"  {score:.3f}  {self.words[i]}: {self.texts[i]}")
        common = len(set(ids[0].tolist()) & set(exact_ids[0].tolist()))
        print(
            f"  {quick:.2f} ms; {common} of the exact {exact_ids.shape[1]}, which take {slow:.2f} ms: "
            f"{slow / quick:.1f} times as long. Embedding the query: {embedding:.1f} ms."
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="*", default=QUERIES, help='each is answered; "-": line by line as typed')
    parser.add_argument("--limit", type=int, help="number of glosses, drawn at random, for a quick run")
    parser.add_argument("--k", type=int, default=10, help="neighbors")
    parser.add_argument("--candidates", type=int, default=64, help="candidates whose products are exact")
    parser.add_argument("--codebooks", type=int, default=48, help="half a byte each, of every gloss")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Answers the queries."""
    args = parse(argv)
    search = Search(args)
    for query in sys.stdin if list(args.queries) == ["-"] else args.queries:
        search.answer(query.strip())


if __name__ == "__main__":
    main()
