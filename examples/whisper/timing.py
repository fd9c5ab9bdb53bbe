"""Times of the model on one thread: parts of a step, and whole windows; everything in turns, with inputs that change.

Times are those that the processor spent on this process, so that other processes count less.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.whisper import decode, weights
from examples.whisper.compiled import BEAMS, Compiled
from examples.whisper.heads import Head
from examples.whisper.log_mel import log_mel
from examples.whisper.model import Whisper

Call = Callable[[int], Any]
"""Takes the number of a round, by which its input changes."""


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


def parts(model: Whisper, beams: int, states: np.ndarray) -> dict[str, Call]:
    """Returns the parts of a step without the head, each with all layers, for `states [rounds, beams, width]`."""
    graph, state = nnx.split(model)
    caches = model.caches(beams, decode.LIMIT)
    memories = jax.jit(lambda state, mel: nnx.merge(graph, state).encode(mel))(
        state, jnp.zeros((model.config.mels, 2 * model.config.frames))
    )
    rounds = jnp.asarray(states)
    seen = jnp.broadcast_to(jnp.eye(beams, dtype=bool), (decode.LIMIT, beams, beams))

    @functools.partial(jax.jit, donate_argnums=2)
    def attend(state: nnx.State, x: jax.Array, caches: list, position: jax.Array) -> tuple[jax.Array, list]:
        model, later = nnx.merge(graph, state), []
        tokens = jnp.abs(x[:, 0] * 1000).astype(jnp.int32)
        x = x + model.embedding[...][tokens] + model.positions[...][position]
        for layer, cache in zip(model.decoder, caches, strict=True):
            x, cache = layer.attention.step(x, cache, position, seen)
            later.append(cache)
        return x, later

    def attention(number: int) -> jax.Array:
        nonlocal caches
        y, caches = attend(state, rounds[number % len(rounds)], caches, np.int32(number % decode.LIMIT))
        return y

    @jax.jit
    def cross(state: nnx.State, x: jax.Array, memories: list) -> jax.Array:
        for layer, memory in zip(nnx.merge(graph, state).decoder, memories, strict=True):
            x = layer.cross(x, memory)
        return x

    @jax.jit
    def mlp(state: nnx.State, x: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        for layer in model.decoder:
            x = layer.mlp(x)
        return model.decoder_norm(x)

    return {
        "embedding, self-attention": attention,
        "cross-attention": lambda number: cross(state, rounds[number % len(rounds)], memories),
        "MLPs": lambda number: mlp(state, rounds[number % len(rounds)]),
    }


def choose(head: Head, beams: int, states: np.ndarray, tokens: weights.Tokens) -> Call:
    """Returns the choice of the next token by a head, or with several beams of twice as many tokens for each."""
    rounds, none = jnp.asarray(states), jnp.full(len(tokens.never_first), -1)
    if beams == 1:
        run = jax.jit(lambda head, h: head.best(h, 1, none))
    else:
        run = jax.jit(lambda head, h: head.log_probabilities(h, 2 * beams, none))
    return lambda number: run(head, rounds[number % len(rounds)])


def of_steps(
    split: tuple[Any, Any], heads: dict[str, Head], states: np.ndarray, tokens: weights.Tokens, rounds: int
) -> dict[int, dict[str, float]]:
    """Returns the milliseconds of the parts of a step, and of each head, for one beam and for `BEAMS`.

    The other parts are computed before each head, as in a step, so that no head finds its own weights in the cache.
    """
    model, results = nnx.merge(*split), {}
    for beams in (1, BEAMS):
        rows = states[: len(states) // beams * beams].reshape(-1, beams, states.shape[1])
        calls: dict[str, Call] = {}
        for name, head in heads.items():
            calls |= {f"{part} before {name}": call for part, call in parts(model, beams, rows).items()}
            calls[name] = choose(head, beams, rows, tokens)
        times = medians(calls, rounds)
        first = next(iter(heads))
        own = {part: times[f"{part} before {first}"] for part in parts(model, beams, rows)}
        results[beams] = own | {name: times[name] for name in heads}
    return results


def of_windows(
    split: tuple[Any, Any], heads: dict[str, Head], windows: Sequence[np.ndarray], tokens: weights.Tokens, rounds: int
) -> dict[str, float]:
    """Returns the milliseconds of a window by encoder, then greedily and by beam search with each head.

    Each number is the median over rounds, of which each has its own window, of all windows in turn.
    """
    run = Compiled(*split, tokens)
    memories = [run.encode(samples) for samples in windows]
    calls: dict[str, Call] = {"encoder": lambda number: run.encode(windows[number % len(windows)])}
    for name, head in heads.items():
        calls[f"{name}, greedy"] = lambda number, head=head: run.greedy(head, memories[number % len(memories)])
        calls[f"{name}, beams"] = lambda number, head=head: run.beam_search(head, memories[number % len(memories)])
    return medians(calls | ctranslate2_calls(windows, tokens), rounds * len(windows))


def ctranslate2_calls(windows: Sequence[np.ndarray], tokens: weights.Tokens) -> dict[str, Call]:
    """Returns transcription of windows by CTranslate2 itself, where it is installed."""
    try:
        import ctranslate2
    except ModuleNotFoundError:
        return {}
    mels = [ctranslate2.StorageView.from_array(np.array(log_mel(samples))[None]) for samples in windows]
    calls: dict[str, Call] = {}
    for kind in ("float32", "int8"):
        model = ctranslate2.models.Whisper(str(weights.folder()), compute_type=kind, intra_threads=1)
        for beams, way in ((1, "greedy"), (BEAMS, "beams")):
            calls[f"CTranslate2 {kind}, {way}"] = lambda number, model=model, beams=beams: model.generate(
                mels[number % len(mels)], [list(tokens.start)], beam_size=beams, max_length=2 * decode.LIMIT
            )
    return calls
