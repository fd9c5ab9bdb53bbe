"""`decide`: writes the verdicts of a finished search into its plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from jax_maddness.nn.planning import verdict
from jax_maddness.nn.planning.record import Record
from jax_maddness.nn.planning.verdict import Mix


def decide(
    plan: Record,
    planned: Collection[str],
    incumbent: Mix,
    untried: Collection[str],
    done: Collection[str],
    given_up: float | None = None,
) -> None:
    """Completes a plan.

    Args:
      plan: with all measurements; is updated in place.
      planned: names of the lines that rules ask for.
      incumbent: the answer.
      untried: names of lines of which only the share of the model's time counts.
      done: names of lines about which nothing is left to be measured.
      given_up: the speed-up of an answer that turned out to be slower than the exact model; None: there is none.
    """
    if plan.before is not None:
        drop = sum(trial.drop for trial in plan.trials if incumbent and trial.mix == incumbent)
        plan.after = plan.before - min([drop, *(refit.after for refit in plan.refits)])
    tried = max((trial.speedup for trial in plan.trials if trial.measured), default=None)
    tried = tried if given_up is None else given_up
    instead = "others gain more for what they cost"
    if not incumbent and tried is not None:
        gain = "too little for an approximation" if tried >= 1 + verdict.MIN_MODEL_GAIN else "nothing measurable"
        instead = f"the whole model gains {gain}, {tried:.2f}x"
    lines = []
    for line in plan.layers:
        if line.name in planned:
            line = dataclasses.replace(line, unmeasured=line.name not in done)
            if line.name in untried and line.name not in incumbent:
                line = dataclasses.replace(
                    line, choice=None, words=f"stays: {plan.share(line):.1%} of the model's time"
                )
            else:
                line = verdict.decided(line, incumbent.get(line.name), plan.max_drop, instead)
        lines.append(line)
    plan.layers = tuple(lines)
    plan.finished = not any(line.unmeasured for line in lines)
