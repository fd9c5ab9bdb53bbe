"""Google's model of file types with its convolution replaced by look-ups: agreement and time (`make example-magika`).

Nearly all of the model's work is a convolution over 512 groups of four bytes, of which only the maxima over positions
are used. Look-ups propose the positions of the maxima, and exact products decide, each of which takes 0.2 % of the
work; some outlier positions stay exact. With `--ranks`, int8 factors propose, too, which are not tuned. Files are those
of this machine, without labels; packages of the test are not trained on. Agreement is the share of files whose most
probable type is that of the exact model. Times are of one thread. Run `python -m examples.file_types --help` for its
options.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_maddness
from examples import file_bytes, file_type_model
from examples.file_type_model import FileTypes
from examples.one_thread import compiled, milliseconds, on_one_thread
from jax_maddness import FitConfig, Rule
from jax_maddness.nn import Term

BATCH = 16
FILES = {"training": 3600, "validation": 500, "test": 1200}
QUICK = {"training": 128, "validation": 32, "test": 64}
CODEBOOKS = 32
"""Number of codebooks of a position, which is four bytes of 64 channels each."""
TAPS = 5
"""Number of positions that an output sees."""
EXACT = 16
"""Number of positions, of 508, that stay exact."""
ROWS = 2**17
"""Number of training rows, each of one position."""
STEPS = 300
"""Number of steps of tuning."""
NUM_CANDIDATES = (1, 4, 8, 16)
"""Numbers of candidates for each output."""


def rule(codebooks: int, quick: bool, rank: int = 0) -> Rule:
    """Returns the rule for the convolution: each position is encoded or projected once, for all of its taps.

    Args:
      codebooks: of a position; 0: none.
      quick: learn by the quickest method.
      rank: number of directions of a position for int8 factors.
    """
    config = FitConfig("paper") if quick else FitConfig("oblique", width=64)  # a tree sees a whole byte
    config = dataclasses.replace(config, rank=TAPS * rank)
    return Rule(
        "conv", num_codebooks=TAPS * codebooks, conv="shared", config=config, exact_rows=EXACT / 508, num_candidates=1
    )


def with_options(model: FileTypes, **options: float | None) -> FileTypes:
    """Returns a copy of a replaced model, with the same tables and other options of the rule."""
    copy = nnx.clone(model)
    copy.conv.spec = dataclasses.replace(copy.conv.spec, **options)
    return copy


class Int8(nnx.Module):
    """The alternative to look-ups: XLA's int8 dot of patches, with a scale per output and one per input."""

    def __init__(self, conv: nnx.Conv):
        w = conv.kernel[...].reshape(-1, conv.out_features)
        scale = jnp.max(jnp.abs(w), axis=0) / 127
        self.w = nnx.data(jnp.round(w / scale).astype(jnp.int8))
        self.scale, self.bias = nnx.data(scale), nnx.data(conv.bias[...])
        self.taps = conv.kernel_size[0]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `x [batch, positions, channels]` to its maxima over positions, as one position.

        The maximum is taken before rescaling, which is increasing.
        """
        step = jnp.maximum(jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True), 1e-12) / 127
        q = jnp.round(x / step).astype(jnp.int8)
        last = x.shape[1] - self.taps + 1
        patches = jnp.concatenate([q[:, tap : tap + last] for tap in range(self.taps)], -1)
        sums = jnp.matmul(patches, self.w, preferred_element_type=jnp.int32)
        return sums.max(1, keepdims=True) * (step * self.scale) + self.bias


def in_int8(model: FileTypes) -> FileTypes:
    """Returns a copy of `model` with its convolution in int8."""
    copy = nnx.clone(model)
    copy.conv = Int8(model.conv)
    return copy


def batches(tokens: np.ndarray) -> list[jax.Array]:
    """Returns all full batches."""
    return [jnp.asarray(tokens[i : i + BATCH]) for i in range(0, len(tokens) - BATCH + 1, BATCH)]


def tune(fast: FileTypes, model: FileTypes, training: np.ndarray, validation: np.ndarray, quick: bool) -> FileTypes:
    """Distills the exact model into the tables: types, inputs of the head, and the ranking of positions per output.

    The ranking needs the outputs at all positions, so that rescoring is switched off meanwhile.
    """
    steps = 4 if quick else STEPS
    tuned = jax_maddness.finetune(
        with_options(fast, num_candidates=None),
        teacher=model,
        batches=batches(training),
        held_out=batches(validation)[: 2 if quick else 10],
        steps=steps,
        look_every=max(1, steps // 4),
        learning_rate=0.006,
        loss=[Term("kl"), Term("nmse", 0.3, layers="pooled_norm"), Term("ranks", layers="conv")],
    )
    return with_options(tuned, num_candidates=fast.conv.spec.num_candidates)


def answers(model: nnx.Module, tokens: np.ndarray) -> np.ndarray:
    """Returns the most probable type of each file."""
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x).argmax(-1))
    filled = np.concatenate([tokens, tokens[: -len(tokens) % BATCH]])
    return np.concatenate([np.asarray(run(state, batch)) for batch in batches(filled)])[: len(tokens)]


def medians(models: list[tuple[Any, Any]], tokens: np.ndarray, rounds: int) -> list[float]:
    """Returns the milliseconds of each model, split by `nnx.split`."""
    x = jnp.asarray(tokens)
    return [statistics.median(own) for own in milliseconds([compiled(*model, x) for model in models], rounds)]


def print_table(models: dict[str, nnx.Module], tuned: dict[str, nnx.Module], test: np.ndarray, rounds: int) -> None:
    """Prints agreement with the first model on the test files, and milliseconds per file with one thread, as Markdown.

    Models of the same names in `tuned` have other tables, which take the same time.
    """
    split = [nnx.split(model) for model in models.values()]
    times = [on_one_thread(medians, split, test[:size], rounds) for size in (1, BATCH)]
    exact = answers(next(iter(models.values())), test)

    def agreement(model: nnx.Module) -> str:
        return f"{np.mean(answers(model, test) == exact):.3f}"

    alone, together = "ms, a file alone", f"ms a file of {BATCH}"
    print(f"| convolution | agreement | tuned | {alone} | over f32 | over int8 | {together} | over f32 | over int8 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for i, (name, model) in enumerate(models.items()):
        cells = [agreement(model), agreement(tuned[name]) if name in tuned else ""]
        for size, own in zip((1, BATCH), times, strict=True):
            cells += [f"{own[i] / size:.2f}", *(f"{own[rival] / own[i]:.1f}x" for rival in (0, 1))]
        print("|", " | ".join([name, *cells]), "|")


def variants(fast: FileTypes, what: str = "look-ups") -> dict[str, nnx.Module]:
    """Returns models with the same tables or factors, with and without exact positions and rescoring."""
    models = {what: with_options(fast, exact_rows=0.0, num_candidates=0)}
    models[f"and {EXACT} exact positions"] = with_options(fast, num_candidates=0)
    for num_candidates in NUM_CANDIDATES:
        models[f"and rescoring {num_candidates}"] = with_options(fast, num_candidates=num_candidates)
    return {name if name == what else f"{what} {name}": model for name, model in models.items()}


def main(args: argparse.Namespace) -> None:
    """Replaces, tunes, measures and prints the table."""
    files = file_bytes.load(QUICK if args.quick else FILES)
    print(", ".join(f"{len(rows)} files for {name}" for name, rows in files.items()), flush=True)
    training, validation, test = files.values()
    model, start = file_type_model.load(), time.perf_counter()

    def done(what: str) -> None:
        print(f"{what}: {time.perf_counter() - start:.0f} s after the start", flush=True)

    rows = 1024 if args.quick else ROWS
    rescored = jax_maddness.replace(model, rule(args.codebooks, args.quick), batches(training), max_rows=rows)
    done("replaced")
    tuned = tune(rescored, model, training, validation, args.quick)
    done("tuned")
    models = {"exact f32": model, "int8 dynamic": in_int8(model), **variants(rescored)}
    for rank in args.ranks:
        factored = jax_maddness.replace(model, rule(0, args.quick, rank), batches(training), max_rows=rows)
        done(f"factors of rank {rank}")
        models |= variants(factored, f"rank {rank}")
    print()
    print_table(models, variants(tuned), validation if args.validation else test, 3 if args.quick else 60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few files and few steps: only shows that it runs")
    parser.add_argument("--validation", action="store_true", help="measure on the files that choices are made on")
    parser.add_argument("--codebooks", type=int, default=CODEBOOKS, help="of each position, which is four bytes")
    parser.add_argument(
        "--ranks",
        type=int,
        nargs="*",
        default=(),
        help="also measure int8 factors in place of codes: directions of each",
    )
    main(parser.parse_args())
