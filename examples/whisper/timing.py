"""Times of the model on one thread: a step and its parts, and whole windows; everything in turns, with changing inputs.

Times are those that the processor spent on this process, so that other processes count less.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.whisper import weights
from examples.whisper.compiled import BEAMS, Compiled
from examples.whisper.heads import Head
from examples.whisper.log_mel import log_mel
from examples.whisper.model import Whisper

Call = Callable[[int], Any]
"""Takes the number of a round, by which its input changes."""
STEPS = 64
"""Number of steps that are measured together, all in one compiled loop."""
PARTS = ("attention", "cross", "mlp")


def medians(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Returns the median of the milliseconds of each call, over rounds in which all are called in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1, rounds):  # the first round compiles
        for name, call in calls.items():
            start = time.process_time()
            jax.block_until_ready(call(number))
            if number >= 0:
                times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(own) for name, own in times.items()}


class Skipped(nnx.Module):
    """Stands in for a part of a layer, and changes nothing."""

    def __call__(self, x: jax.Array, *_: Any) -> jax.Array:
        """Returns `x`."""
        return x

    def step(self, x: jax.Array, cache: Any, *_: Any) -> tuple[jax.Array, Any]:
        """Returns `x` and the cache."""
        return x, cache


def without(model: Whisper, part: str) -> Whisper:
    """Returns a copy of `model` whose decoder has layers without one of `PARTS`."""
    copy = nnx.clone(model)
    for layer in copy.decoder:
        setattr(layer, part, Skipped())
    return copy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoHead(Head):
    """Chooses tokens that change with the states, in next to no time."""

    def best(self, h: jax.Array, k: int, never: jax.Array) -> tuple[jax.Array, jax.Array]:
        return h[:, :k], jnp.abs(1000 * h[:, :k]).astype(jnp.int32) + jnp.arange(k)

    log_probabilities = best


def of_steps(
    split: tuple[Any, Any], heads: dict[str, Head], windows: Sequence[np.ndarray], tokens: weights.Tokens, rounds: int
) -> dict[str, dict[str, float]]:
    """Returns the milliseconds of a step, greedily ("greedy") and with `BEAMS` beams ("beams").

    A step is measured with each head, without a head (""), and without a head and one of `PARTS`. Nothing ends a
    transcript, so that each has the same number of steps.
    """
    model, endless = nnx.merge(*split), dataclasses.replace(tokens, end=-1)
    limit = STEPS + len(tokens.start)
    memories = [Compiled(*split, tokens).encode(samples) for samples in windows]
    models = {part: without(model, part) for part in PARTS} | {"": model} | dict.fromkeys(heads, model)
    results = {}
    for way in ("greedy", "beams"):
        calls: dict[str, Call] = {}
        for name, one in models.items():
            run, head = Compiled(*nnx.split(one), endless, limit), heads.get(name, NoHead())
            decoded = run.greedy if way == "greedy" else run.beam_search
            calls[name] = lambda number, head=head, decoded=decoded: decoded(head, memories[number % len(memories)])
        results[way] = {name: own / STEPS for name, own in medians(calls, rounds).items()}
    return results


def of_windows(
    split: tuple[Any, Any], heads: dict[str, Head], windows: Sequence[np.ndarray], tokens: weights.Tokens, rounds: int
) -> dict[str, dict[str, float]]:
    """Returns the milliseconds of a window, with each head and by CTranslate2 where it is installed.

    Each has the encoder ("encoder"), greedy decoding ("greedy") and beam search ("beams"), both without the encoder. A
    number is the median over rounds, of which each has all windows in turn.
    """
    run = Compiled(*split, tokens)
    memories = [run.encode(samples) for samples in windows]
    calls: dict[str, Call] = {"encoder": lambda number: run.encode(windows[number % len(windows)])}
    for name, head in heads.items():
        calls[f"{name}/greedy"] = lambda number, head=head: run.greedy(head, memories[number % len(memories)])
        calls[f"{name}/beams"] = lambda number, head=head: run.beam_search(head, memories[number % len(memories)])
    times = medians(calls | ctranslate2_calls(windows, tokens), rounds * len(windows))
    results: dict[str, dict[str, float]] = {name: {"encoder": times["encoder"]} for name in heads}
    for key, own in times.items():
        if "/" in key:
            name, part = key.split("/")
            results.setdefault(name, {})[part] = own
    return results


def ctranslate2_calls(windows: Sequence[np.ndarray], tokens: weights.Tokens) -> dict[str, Call]:
    """Returns the same steps by CTranslate2, where it is installed."""
    try:
        import ctranslate2
    except ModuleNotFoundError:
        return {}
    mels = [np.array(log_mel(samples))[None] for samples in windows]
    calls: dict[str, Call] = {}
    for kind in ("float32", "int8"):
        model = ctranslate2.models.Whisper(str(weights.folder()), compute_type=kind, intra_threads=1)

        def encode(number: int, model: Any = model) -> Any:
            return model.encode(ctranslate2.StorageView.from_array(mels[number % len(mels)]))

        encoded = [encode(number) for number in range(len(windows))]
        calls[f"CTranslate2 {kind}/encoder"] = lambda number, encode=encode: np.array(encode(number))
        for beams, way in ((1, "greedy"), (BEAMS, "beams")):
            calls[f"CTranslate2 {kind}/{way}"] = lambda number, model=model, beams=beams, encoded=encoded: (
                model.generate(encoded[number % len(encoded)], [list(tokens.start)], beam_size=beams, max_length=448)
            )
    return calls
