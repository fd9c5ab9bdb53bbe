"""Search over vectors that are spread over processes, as over hosts (`make example-distributed`).

    python -m examples.distributed_search

indexes vectors as a whole and in two halves (once, in minutes; the files are kept in build/distributed_search), then
serves them by one process and by two, and prints times and memory side by side. Exact answers must be the same. On
several hosts, start one process on each:

    python -m examples.distributed_search --coordinator host0:9876 --processes 4 --rank 0   # on host0; 1 on the next

All processes search for the same queries, in one of two ways:

    own        every process has an index of its own vectors only; the `k` best of each are gathered, and the best of
               these are the answer
    sharded    every process loads the index of all vectors, and keeps its part of it (`shard_index`)
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType

import jax_maddness

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""Queries and a number of candidates -> scores and ids."""
WAYS = ("own", "sharded")
FEATURES, RANK, BLOCK, SEED = 128, 24, 4096, 0


def vectors(start: int, stop: int) -> np.ndarray:
    """Makes the vectors with the ids from `start` to `stop`: the same ones in every process, without the others."""
    mix = np.random.default_rng(SEED).standard_normal((RANK, FEATURES))
    blocks = range(start // BLOCK, -(-stop // BLOCK))
    parts = [np.random.default_rng([SEED, 1, block]).standard_normal((BLOCK, RANK + FEATURES)) for block in blocks]
    rows = [np.float32(part[:, :RANK] @ mix + part[:, RANK:]) for part in parts]
    return np.concatenate(rows)[start - blocks.start * BLOCK :][: stop - start]


def queries_of(args: argparse.Namespace) -> np.ndarray:
    """Makes the queries: some of the vectors with noise. They must be the same in every process."""
    stored = vectors(0, args.queries)
    return stored + np.float32(np.random.default_rng([SEED, 2]).standard_normal(stored.shape))


def merged(scores: jax.Array, ids: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Gathers the best vectors of every process, `[queries, k]`, and returns the best `k` of all.

    Of equal scores the lower id comes first, as in `search`.
    """
    both = np.stack(
        [np.asarray(scores).view(np.int32), np.asarray(ids)]
    )  # one array, so that one collective gathers it
    gathered = multihost_utils.process_allgather(both)  # [processes, 2, queries, k]
    bits, all_ids = np.moveaxis(gathered, 0, -2).reshape(*both.shape[:-1], -1)
    all_scores = bits.view(np.float32)
    order = np.lexsort((all_ids, -all_scores))[..., : both.shape[-1]]
    return np.take_along_axis(all_scores, order, -1), np.take_along_axis(all_ids, order, -1)


def part(args: argparse.Namespace) -> jax_maddness.VectorIndex:
    """Returns the index of this process's vectors: from a file, or built and written if there is none."""
    name = f"{args.vectors}x{args.codebooks}.{args.rank}_of_{args.processes}.index"
    path = args.folder / name
    if not path.exists():
        start, stop = (args.vectors * (args.rank + i) // args.processes for i in range(2))
        begin = time.perf_counter()
        ids = np.arange(start, stop)  # ids in the whole
        index = jax_maddness.build_index(vectors(start, stop), args.codebooks, metric="cosine", ids=ids, progress=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        jax_maddness.save_index(path, index)
        print(f"indexed {len(ids):,} vectors in {time.perf_counter() - begin:.0f} s: {path}", flush=True)
    return jax_maddness.load_index(path)


def searcher(args: argparse.Namespace) -> tuple[jax_maddness.VectorIndex, Search]:
    """Returns the index, and a function that searches the vectors of all processes, which must call it together."""
    jitted = jax.jit(jax_maddness.search, static_argnames=("k", "num_candidates"))
    if args.way == "sharded":
        mesh = jax.make_mesh((jax.device_count(),), ("vectors",), axis_types=(AxisType.Auto,))
        whole = argparse.Namespace(**(vars(args) | {"rank": 0, "processes": 1}))
        index = jax_maddness.shard_index(part(whole), mesh, "vectors")
    else:
        index = part(args)

    def search(queries: np.ndarray, num_candidates: int) -> tuple[np.ndarray, np.ndarray]:
        scores, ids = jitted(queries, index, k=args.k, num_candidates=num_candidates)
        return (np.asarray(scores), np.asarray(ids)) if args.way == "sharded" else merged(scores, ids)

    return index, search


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """Returns the median time of a call that all processes make together."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def megabytes() -> float:
    """Returns the memory that this process holds now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def serve(args: argparse.Namespace) -> dict[str, object]:
    """Indexes the vectors of one process and answers queries together with the others; returns what it measured."""
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    if args.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(args.coordinator, args.processes, args.rank)
    index, search = searcher(args)
    queries = queries_of(args)
    one = milliseconds(lambda: search(queries[:1], args.candidates), args.rounds)
    many = milliseconds(lambda: search(queries, args.candidates), args.rounds) / len(queries)
    memory = megabytes()
    _, ids = search(queries, args.candidates)
    _, exact = search(queries, args.vectors)
    recall = np.mean([len(set(a) & set(b)) / args.k for a, b in zip(ids.tolist(), exact.tolist(), strict=True)])
    return {
        "index MB": sum(s.data.nbytes for a in jax.tree.leaves(index) for s in a.addressable_shards) / 1e6,
        "memory MB": memory,
        "one ms": one,
        "many ms": many,
        "recall": float(recall),
        "ids": ids.tolist(),
        "exact": exact.tolist(),
    }


def build(args: argparse.Namespace, processes: int) -> None:
    """Builds the parts of `processes` processes that are missing, in a process of its own: learning takes memory."""
    for rank in range(processes):
        subprocess.run([*command(args, processes), f"--rank={rank}", "--only-build"], check=True)


def command(args: argparse.Namespace, processes: int) -> list[str]:
    """Returns the command of one of `processes` processes, without its rank."""
    names = ("folder", "vectors", "codebooks", "k", "candidates", "queries", "rounds")
    options = [f"--{name}={getattr(args, name)}" for name in names]
    return [sys.executable, __file__, *options, f"--processes={processes}"]


def start(args: argparse.Namespace, processes: int, cores: Sequence[int | None], way: str = "own") -> list[dict]:
    """Runs `processes` processes on this machine, each on its core if there is one, and returns what each measured."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [pathlib.Path(folder, str(rank)) for rank in range(processes)]
        running = [
            subprocess.Popen(
                [*command(args, processes), f"--coordinator=localhost:{port}", f"--way={way}"]
                + [f"--rank={rank}", f"--output={output}"]
                + ([] if core is None else [f"--core={core}"])
            )
            for rank, (output, core) in enumerate(zip(outputs, cores, strict=True))
        ]
        try:
            codes = [process.wait() for process in running]
        finally:
            for process in running:
                process.kill()
        if any(codes):
            raise SystemExit(f"The processes ended with the exit codes {codes}.")
        return [json.loads(output.read_text()) for output in outputs]


def row(name: str, results: list[dict]) -> str:
    """Returns a row of the table; memory is that of the largest process."""
    index, memory = (max(result[key] for result in results) for key in ("index MB", "memory MB"))
    first = results[0]
    return (
        f"| {name} | {index:.0f} | {memory:.0f} | {first['one ms']:.2f} | {first['many ms']:.3f} "
        f"| {first['recall']:.4f} |"
    )


def compare(args: argparse.Namespace) -> None:
    """Prints the table: one process with all vectors, and `args.processes` with a share each."""
    cores = sorted(os.sched_getaffinity(0))
    own = cores[: args.processes] if len(cores) >= args.processes else [None] * args.processes
    for processes in (1, args.processes):
        build(args, processes)
    runs = {
        "1 process, 1 core": start(args, 1, cores[:1]),
        f"1 process, {len(cores)} cores": start(args, 1, [None]),
        **{f"{args.processes} processes, 1 core each, {way}": start(args, args.processes, own, way) for way in WAYS},
    }
    print(
        f"\n{args.vectors:,} vectors of {FEATURES} features; tier {jax_maddness.active_tier()}\n\n"
        "| processes | index, MB per process | resident, MB per process | ms, one query "
        f"| ms per query, {args.queries} at once | recall |\n|---|---|---|---|---|---|"
    )
    for name, results in runs.items():
        print(row(name, results))
    first, *others = (results[0] for results in runs.values())
    shares = [np.mean(np.asarray(other["ids"]) == np.asarray(first["ids"])) for other in others]
    print(f"\nids that searches have in common with the first: {', '.join(f'{share:.4f}' for share in shares)}")
    if any(result["exact"] != first["exact"] for results in runs.values() for result in results):
        raise SystemExit("The exact answers of the processes are not those of one process.")
    print("ids of the exact answers: the same")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("build/distributed_search"))
    parser.add_argument("--vectors", type=int, default=400_000, help="number of vectors in all")
    parser.add_argument("--codebooks", type=int, default=24, help="half a byte each, of every vector")
    parser.add_argument("--k", type=int, default=10, help="neighbors")
    parser.add_argument("--candidates", type=int, default=64, help="candidates whose products are exact, per process")
    parser.add_argument("--queries", type=int, default=64, help="queries of a batch")
    parser.add_argument("--rounds", type=int, default=101, help="timed calls")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--coordinator", help="host:port of process 0, to start a single process of several")
    parser.add_argument("--rank", type=int, help="number of this process, from 0")
    parser.add_argument("--way", choices=WAYS, default=WAYS[0], help="of what a process has an index")
    parser.add_argument("--core", type=int, help="the core that this process may use")
    parser.add_argument("--only-build", action="store_true", help="build the index of this process, and end")
    parser.add_argument("--output", type=pathlib.Path, help="where to write what was measured, as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one process, or starts and compares several."""
    args = parse(argv)
    if args.rank is None:
        compare(args)
        return
    if args.only_build:
        part(args)
        return
    results = serve(args)
    if args.output is not None:
        args.output.write_text(json.dumps(results))
    else:
        print(row(f"process {args.rank} of {args.processes}", [results]))


if __name__ == "__main__":
    main()
