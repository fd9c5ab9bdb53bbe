"""A reader of text lines, planned: PP-OCRv4's recogniser, its products replaced and its head decided by an index.

The model comes as an ONNX graph inside the package rapidocr-onnxruntime and is read into Flax (`onnx_models/`). `plan`
finds what its layers are worth replacing by, on rendered lines (`text_lines.py`), and may lose .5 % of 400 lines: those
whose text is no longer exactly that of the exact model. Other fonts may lose more. The largest of the head's 6,625
outputs is then found by an index, `top_k`. All models read the same lines, with words and fonts that nothing was
learned or chosen on.

All of it runs with one thread. Run it with `make example-ocr`; `python -m examples.ocr --help` shows the options.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_maddness
from examples import glosses, text_lines, text_reader
from examples.one_thread import pin
from examples.onnx_models.runtime import in_onnxruntime
from examples.rivals import compiled
from examples.text_reader import IndexHead, Reader
from jax_maddness import FitConfig, Rule
from jax_maddness.nn.planning import measure

BATCH = 8
RULE = Rule(".*", config=FitConfig("paper"))  # the quickest method: there are 47 products
CODEBOOKS, CANDIDATES = 30, 16
"""Size of the index of the head, and candidates that it rescores."""
Batch = tuple[np.ndarray, np.ndarray]
"""Pictures of lines, and the classes of their steps by the exact model."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the experiment: batches of lines to learn from, for the plan's metric, and for the test."""

    plan: int = 40
    held_out: int = 50
    test: int = 50
    plan_seconds: float = 600.0
    seconds: float = 30.0  # of timing the models


QUICK = Size(4, 2, 2, 30.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Lines:
    """Pictures of lines in batches, and their words."""

    pictures: list[np.ndarray]
    words: list[str]


def drawn(texts: Sequence[str], fonts: Sequence[pathlib.Path], batches: int, seed: int) -> Lines:
    """Draws lines of these texts in these fonts."""
    some = list(itertools.islice(text_lines.lines(texts, fonts, seed), batches * BATCH))
    pictures = np.stack([text_reader.scaled(picture) for _, picture in some])
    return Lines(list(pictures.reshape(batches, BATCH, *pictures.shape[1:])), [words for words, _ in some])


def call(model: nnx.Module, batch: Batch) -> jax.Array:
    """Runs the model for `plan`, whose batches contain the classes of the exact model as well."""
    return model(batch[0])


def equal_text(classes: jax.Array, batch: Batch) -> float:
    """Returns the metric: the share of lines whose text is exactly that of the exact model."""
    return float(np.mean((text_reader.collapsed(classes) == text_reader.collapsed(batch[1])).all(1)))


def with_index(model: Reader, exact: Reader, batches: Sequence[Batch]) -> Reader:
    """Returns a copy of `model` whose head is an index over the outputs of the exact one's."""
    run = nnx.jit(lambda trunk, pictures: trunk(pictures))
    features = np.concatenate([np.asarray(run(model.trunk, pictures)) for pictures, _ in batches])
    rows = features.reshape(-1, features.shape[-1])
    queries = rows[np.random.default_rng(0).permutation(len(rows))[:2048]]
    dense = exact.head.dense
    index = jax_maddness.build_index(dense.kernel[...].T, CODEBOOKS, bias=dense.bias[...], queries=queries)
    copy = nnx.clone(model)
    copy.head = IndexHead(index, CANDIDATES)
    return copy


def compare(
    runs: dict[str, Callable[[Any], Any]], lines: Lines, seconds: float
) -> list[tuple[str, float, float, float]]:
    """Returns, for each model, the first of which is the exact one, its row of the table.

    A row has the name, the share of texts that are equal to the exact model's, that of right words, and ms for a batch.
    """
    names = text_reader.characters()
    first = jnp.asarray(lines.pictures[0])
    times = measure.interleaved([functools.partial(run, first) for run in runs.values()], seconds)
    rows, exact = [], None
    for (name, run), (ms, _) in zip(runs.items(), times, strict=True):
        classes = np.concatenate([np.asarray(run(jnp.asarray(pictures))) for pictures in lines.pictures])
        exact = classes if exact is None else exact
        equal = equal_text(classes, (lines.pictures[0], exact))
        texts = text_reader.texts(classes, names)
        right = np.mean([a.replace(" ", "") == b.replace(" ", "") for a, b in zip(texts, lines.words, strict=True)])
        rows.append((name, equal, float(right), ms))
    return rows


def print_table(rows: Sequence[tuple[str, float, float, float]]) -> None:
    """Prints the results as Markdown; times are compared with those of the first row."""
    print(f"| model | same text as exact | right, without spaces | ms per batch of {BATCH} | speed-up |")
    print("|---|---|---|---|---|")
    for name, equal, right, ms in rows:
        print(f"| {name} | {100 * equal:.1f} % | {100 * right:.1f} % | {ms:.1f} | {rows[0][3] / ms:.2f}x |")


def main(args: argparse.Namespace) -> None:
    """Draws lines, plans, replaces, and prints the table."""
    pin()
    size, start = QUICK if args.quick else Size(), time.perf_counter()

    def done(what: str) -> None:
        print(f"{what}: {time.perf_counter() - start:.0f} s after the start", flush=True)

    texts, _ = glosses.load(20_000)
    for_plan = drawn(texts[:15_000], text_lines.matplotlib_fonts(), size.plan + size.held_out, seed=0)
    for_test = drawn(texts[15_000:], text_lines.other_fonts(), size.test, seed=1)
    model = text_reader.load()
    run = compiled(lambda model, x: model(x), model, jnp.asarray(for_plan.pictures[0]))
    batches = [(pictures, np.asarray(run(pictures))) for pictures in for_plan.pictures]
    done("exact")
    plan = jax_maddness.plan(
        model,
        batches[: size.plan],
        RULE,
        held_out=batches[size.plan :],
        max_drop=args.max_drop,
        metric=equal_text,
        ratios=(16,),
        max_seconds=args.seconds or size.plan_seconds,
        call=call,
    )
    done("planned")
    print(f"\n{plan}\n", flush=True)
    plan.html(args.page)
    planned = jax_maddness.replace(model, plan, batches[: size.plan], call=call) if plan.replaced else model
    indexed = with_index(planned, model, batches[: size.plan // 2])
    done("index")
    models = {"XLA f32": model, "as planned": planned, "as planned, head by an index": indexed}
    runs = {name: compiled(lambda model, x: model(x), one, jnp.asarray(batches[0][0])) for name, one in models.items()}
    if (rival := in_onnxruntime(text_reader.path())) is not None:
        runs["ONNX Runtime f32"] = lambda pictures: rival(pictures).argmax(-1)
    rows = compare(runs, for_test, size.seconds)
    print()
    print_table(rows)
    print(f"\n{len(for_test.words)} lines; the plan as a page: {args.page}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few lines and little time: only shows that it runs")
    parser.add_argument("--max-drop", type=float, default=0.005, help="share of lines whose text the plan may change")
    parser.add_argument("--seconds", type=float, help="for the plan's measurements")
    parser.add_argument("--page", type=pathlib.Path, default=pathlib.Path("ocr_plan.html"), help="the plan's page")
    main(parser.parse_args())
