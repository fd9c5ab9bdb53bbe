"""Advice in words, where something else than a plan's products would help more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jax_maddness.core.types import SMALL_BATCH
from jax_maddness.nn.layers.kinds import REWRITTEN
from jax_maddness.nn.planning.confidence import needed
from jax_maddness.nn.planning.record import Record
from jax_maddness.nn.planning.verdict import LayerPlan

_SHARE = 0.1
"""The least share of the model's time about which advice is given."""
_BEST_CASE = 1.1
"""A speed-up below which a model is not worth planning."""
_WIDE = 8192
"""Number of outputs from which on a last layer counts as wide."""
_FEW_ROWS = 1000
"""Rows of a layer that are looked at."""


def advice(plan: Record) -> list[str]:
    """Returns sentences on layers that take a large share of the time, and are better served in another way."""
    return [
        *_not_worth_it(plan),
        *_wide(plan),
        *_one_hot(plan),
        *_small_batches(plan),
        *_groups(plan),
        *_few_examples(plan),
    ]


def next_step(plan: Record) -> str:
    """Returns the first thing to do."""
    first = next(iter(advice(plan)), None)
    if first is not None and (plan.only_look or not plan.replaced):
        return first
    if plan.only_look:
        return "call `plan` without `only_look`."
    if not plan.finished:
        return "call `plan` again with more `max_seconds`, and with the same `path` to go on from here."
    if plan.replaced:
        return "`replace(model, plan)`, and report the metric on batches that the plan has not seen."
    return "allow a larger `max_drop` if the verdicts below are about it; else keep the model as it is."


def _not_worth_it(plan: Record) -> list[str]:
    if not plan.exact_ms or plan.best_case >= _BEST_CASE:
        return []
    return [
        f"The layers that rules ask for have {1 - plan.rest:.0%} of the model's time, so that it gains "
        f"{plan.best_case:.2f}x at most: profile the rest, or ask for more layers."
    ]


def _wide(plan: Record) -> list[str]:
    """A last layer with many outputs of which, mostly, only the largest are wanted."""
    last = plan.layers[-1]
    if last.shape[1] < _WIDE or plan.share(last) < _SHARE:
        return []
    return [
        f"{last.name!r} computes {last.shape[1]:,} outputs, {plan.share(last):.0%} of the time: if only the largest "
        "matter, look-ups find them and exact products decide: replace the layer by `Rule(..., top=...)` before you "
        "plan the others, or call `top_k` on its input."
    ]


def is_one_hot(rows: Float[np.ndarray, "rows groups features"]) -> bool:
    """Whether a single feature of every row is 1, and all others are 0; a few rows tell."""
    few = rows[:_FEW_ROWS]
    return few.size > 0 and few.shape[-1] > 1 and bool((few.max(-1) == 1).all() and ((few != 0).sum(-1) == 1).all())


def _one_hot(plan: Record) -> list[str]:
    """Layers whose product picks a row of the kernel."""
    return _if_large(
        plan,
        [line for line in plan.looked_at if line.one_hot],
        "{count} layers, {share:.0%} of the time, have one-hot inputs: their products pick rows of the kernel. Gather "
        "them, exactly and faster than by any product: pass ids to `nnx.Embed` (linen: `nn.Embed`) with that kernel.",
    )


def _small_batches(plan: Record) -> list[str]:
    """Calls of a few rows, whose time is that of reading the weights."""
    return _if_large(
        plan,
        [line for line in plan.looked_at if 0 < line.rows <= SMALL_BATCH],
        f"{{count}} layers, {{share:.0%}} of the time, have at most {SMALL_BATCH} rows a call, as the batches have: "
        "look-ups get the tables for small batches (`with_small_batch_tables`). For larger batches plan with these.",
    )


def _groups(plan: Record) -> list[str]:
    """Convolutions with groups, which XLA computes slowly on CPUs."""
    return _if_large(
        plan,
        [line for line in plan.looked_at if line.groups > 1 and not line.of(REWRITTEN) and line.choice is None],
        "{count} convolutions with groups have {share:.0%} of the time; XLA computes them slowly on CPUs. "
        'Depthwise ones are computed faster, with the same result, by `Rule(product="rewritten")`.',
    )


def _few_examples(plan: Record) -> list[str]:
    """Held-out examples that are too few to show a drop as small as the limit."""
    if not plan.is_approximate or plan.largest_drop is None or not 0 < plan.max_drop < 1:
        return []
    if plan.examples >= needed(plan.max_drop):
        return []
    return [
        f"{plan.examples:,} held-out examples are few to be sure of a drop of at most {plan.max_drop:.2g}: pass more "
        f"of them as `held_out`, {needed(plan.max_drop):,} or more."
    ]


def _if_large(plan: Record, lines: Sequence[LayerPlan], words: str) -> list[str]:
    """Returns `words` with the count and the share of lines, if they have a large share of the model's time."""
    share = sum(map(plan.share, lines))
    return [words.format(count=len(lines), share=share)] if share >= _SHARE else []
