"""The report of a plan in words: three lines that say what matters, a table of the layers, and the totals."""

from __future__ import annotations

import collections

from jax_maddness.nn.layers.kinds import CODES, FACTORS, INT8, LOW_RANK, REWRITTEN
from jax_maddness.nn.planning import advice
from jax_maddness.nn.planning.confidence import CONFIDENCE
from jax_maddness.nn.planning.record import HELD_OUT, Record
from jax_maddness.nn.planning.verdict import (
    LEAST_SHARE,
    MIN_MODEL_GAIN,
    TUNED,
    LayerPlan,
    Option,
    Refit,
    allowed,
    predicted,
)

_COLUMNS = (REWRITTEN, INT8, LOW_RANK, FACTORS, CODES)
"""The products in the order of the table's columns."""
_DIFFERENT = 0.1
"""A difference, as a share, between the time of layers alone and in the model that is worth a sentence."""
_NAMED = 3
"""The most layers that are named in a line for several."""


def headline(plan: Record) -> list[str]:
    """Returns three lines: what you get, what limits it, and what to do next."""
    return [
        f"What you get: {_gain(plan)}",
        f"What limits it: {_limit(plan)}",
        f"What to do next: {advice.next_step(plan)}",
    ]


def _gain(plan: Record) -> str:
    if plan.only_look:
        return f"nothing yet, this was only a look. At most {plan.best_case:.3g}x, if the layers took no time."
    if not plan.replaced:
        return "nothing is replaced, the model stays as it is."
    kinds = collections.Counter(line.by for line in plan.replaced)
    by = ", ".join(f"{count} by {kind}" for kind, count in kinds.most_common())
    drop = (
        "" if plan.before is None or plan.after is None else f" at a drop of {max(plan.before - plan.after, 0.0):.2g}"
    )
    speedup, known = plan.exact_ms / plan.fast_ms, _known(plan)
    return f"{speedup:.2f}x{drop}, {_times(plan)} a batch, {known}: {len(plan.replaced)} replaced, {by}."


def _known(plan: Record) -> str:
    """Returns in a word how the speed-up of the planned model is known."""
    return "estimated" if plan.measured_ms is None else "measured"


def _times(plan: Record) -> str:
    """Returns the times of the exact and the planned model, those that were measured in turns where there are any."""
    before, after = plan.measured_ms or (plan.exact_ms, plan.fast_ms)
    return f"{before:.3g} ms -> {after:.3g} ms"


def _limit(plan: Record) -> str:
    """Returns the reason why the model is not faster still."""
    if not plan.exact_ms:
        return "the time was up before the model was timed."
    if plan.rest > 0.5:
        where = "is not in layers that the rules ask for"
        return f"{plan.rest:.0%} of the model's time {where}: at most {plan.best_case:.3g}x."
    late = sum(line.unmeasured for line in plan.layers)
    if late:
        return f"the time: not all products of {late} layers were measured."
    if plan.only_look or not any(allowed(line) for line in plan.layers):
        return f"the rest of the model, {plan.rest:.0%} of its time: at most {plan.best_case:.3g}x."
    if plan.replaced and plan.rest * plan.exact_ms > plan.fast_ms / 2:
        return f"the rest of the model, which was {plan.rest:.0%} of its time and is now most of it."
    staying = [line for line in plan.looked_at if line.choice is None]
    if staying and plan.share(staying[0]) > 2 * MIN_MODEL_GAIN:
        line = staying[0]
        return f"{_name(line)}, {plan.share(line):.0%} of the time: {line.words.removeprefix('stays: ')}."
    return f"faster products would cost more than {plan.max_drop:.2g} of the metric, or gain nothing."


def _judged(plan: Record) -> str:
    """Returns a sentence on the batches on which drops were measured."""
    if not plan.held_out:
        return ""
    batches = "1 held-out batch" if plan.held_out == 1 else f"{plan.held_out} held-out batches"
    which = "`held_out`" if HELD_OUT in plan.fingerprint else "the last of `batches`"
    words = f" Drops measured on {batches}, {which}."
    if plan.is_approximate and plan.largest_drop is not None:
        few = f"{plan.examples:,} examples, so that it may be up to {plan.largest_drop:.2g} on others"
        words += f" The drop is that of {few} ({CONFIDENCE:.0%} confidence)."
    return words


def _refit(refit: Refit) -> str:
    """Returns a sentence on what it brought to fit the answer again."""
    what = "Calibrated after the layers before it, each layer"
    if refit.kind == TUNED:
        what = f"Fine-tuned in {refit.steps} steps"
    if refit.failed:
        return f"{what}: not possible, {refit.failed.rstrip('.')}."
    return f"{what}: drop {refit.before:.2g} -> {refit.after:.2g}, {'kept' if refit.kept else 'not kept'}."


def columns(plan: Record) -> list[str]:
    """Returns the kinds of products that have a column: those that were measured."""
    return [kind for kind in _COLUMNS if any(line.of(kind) for line in plan.layers)]


def head(plan: Record) -> list[str]:
    """Returns the names of the table's columns."""
    return ["layer", "D -> M (rows)", "share", "exact ms", *columns(plan), "verdict"]


def table(plan: Record) -> list[str]:
    """Returns a Markdown table: measured layers by their share of the time, then the others in groups."""
    names = head(plan)
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    measured, others = folded(plan)
    lines += [f"| {' | '.join(cells(plan, line))} |" for line in measured]
    lines += [f"| {layers} {'| ' * (len(names) - 1)}{words} |" for layers, words in others]
    return lines


def folded(plan: Record) -> tuple[list[LayerPlan], list[tuple[str, str]]]:
    """Returns the lines to be shown one by one, and for the others names and words of those with the same words."""
    shown = [line for line in plan.looked_at if allowed(line) or line.choice is not None or plan.only_look]
    shown = [line for line in shown if plan.share(line) >= LEAST_SHARE or line.choice is not None]
    shown += [line for line in plan.layers if line.choice is not None and line not in shown]
    few = f"stays: below {LEAST_SHARE:.1%} of the model's time each"
    groups: dict[str, list[LayerPlan]] = {}
    for line in plan.layers:
        if line not in shown:
            small = line in plan.looked_at and plan.share(line) < LEAST_SHARE
            groups.setdefault(few if small else line.words, []).append(line)
    return shown, [(_names(lines), words) for words, lines in groups.items()]


def _names(lines: list[LayerPlan]) -> str:
    named = ", ".join(_name(line) for line in lines[:_NAMED])
    return named if len(lines) <= _NAMED else f"{named} and {len(lines) - _NAMED} more"


def _name(line: LayerPlan) -> str:
    return line.name or "(the model)"


def cells(plan: Record, line: LayerPlan) -> list[str]:
    """Returns a row of the table: times with the NMSE in brackets, those of several sizes one after the other."""
    d, m = line.shape
    about = [_name(line), f"{d} -> {m} ({line.rows:,})"]
    products = ["; ".join(_option_cell(o) for o in line.options if o.kind == kind) for kind in columns(plan)]
    if not line.options:
        return [*about, "", "", *products, line.words]
    return [*about, f"{plan.share(line):.1%}", f"{line.exact.ms:.3g}", *products, line.words]


def _option_cell(option: Option) -> str:
    rank = f"r = {option.size}: "
    name = {LOW_RANK: rank, FACTORS: rank, CODES: f"C = {option.size}: "}.get(option.kind, "")
    return f"{name}{option.ms:.3g} ({option.nmse:.2g})"


def totals(plan: Record) -> list[str]:
    """Returns sentences on the gain of the whole model, on its cost, and on what was measured."""
    lines = []
    if plan.replaced:
        known = all(line.chosen is not None for line in plan.replaced)
        expected = f", predicted {predicted(plan.layers, plan.exact_ms):.2f}x" if known else ""
        lines.append(
            f"{len(plan.replaced)} of {len(plan.layers)} lines replaced. The whole model: {_times(plan)}, "
            f"{_known(plan)} {plan.exact_ms / plan.fast_ms:.2f}x{expected}."
        )
    elif not plan.only_look:
        lines.append("Nothing is replaced: the model stays as it is.")
    if plan.before is not None and plan.after is not None:
        values = f"{plan.before:.4g} before, {plan.after:.4g} after; at most {plan.max_drop:.2g} less"
        lines.append(f"{plan.metric}: {values}.{_judged(plan)}")
    lines += map(_refit, plan.refits)
    if abs(plan.scale - 1) > _DIFFERENT:
        alone = sum(line.exact.ms for line in plan.looked_at)
        lines.append(
            f"Alone, the layers take {alone:.3g} ms, in the model {plan.scale * alone:.3g} ms: their shares are scaled "
            "to that."
        )
    if not plan.finished and not plan.only_look:
        lines.append("The time was up before all was measured: call `plan` again with the same `path` to go on.")
    about = [text for text in (plan.machine, plan.batch and f"batch {plan.batch}", plan.versions, plan.date) if text]
    return [*lines, *advice.advice(plan), f"Measured on {'; '.join(about)}."]
