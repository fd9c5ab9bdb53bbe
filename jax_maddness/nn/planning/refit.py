"""Fits the answer of a plan again, as `plan` is asked to, and keeps what makes the drop smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jax_maddness.nn.planning.bench import Bench
from jax_maddness.nn.planning.clock import Clock
from jax_maddness.nn.planning.ledger import Ledger
from jax_maddness.nn.planning.record import Record
from jax_maddness.nn.planning.verdict import CALIBRATED, Mix, Refit

SHARE = 0.25
"""The share of the time of a plan that is kept for this, if it is asked for."""

Refits = Sequence[tuple[str, int]]
"""The kinds that are asked for, in their order, each with its number of steps."""


def same_refits(plan: Record, asked: Refits) -> bool:
    """Whether a plan has just what is asked for."""
    return [(refit.kind, refit.steps) for refit in plan.refits] == (list(asked) if plan.replaced else [])


def refit(ledger: Ledger, bench: Bench, clock: Clock, mix: Mix, asked: Refits, known: tuple[Refit, ...]) -> None:
    """Fits the answer again, step by step, each beginning with the best so far; the plan is updated in place.

    Args:
      ledger: of the plan.
      bench: fits and measures.
      clock: the time that is left.
      mix: the answer.
      asked: what is to be done.
      known: what an earlier run of the plan did.

    Raises:
      TimeUpError: There was no time for all of it; what was done is kept.
    """
    plan, trial = ledger.plan, ledger.trial(mix)
    if trial is None:  # nothing is replaced
        return
    done = [(one.kind, one.steps, one.replaced) for one in known] == [(*one, trial.replaced) for one in asked]
    if done and not any((name, *product) in plan.learned for name, product in mix.items()):
        plan.refits = known  # `replace` learns the layers as these say
        return
    drop = trial.drop
    for kind, steps in asked:
        words = "the answer, calibrated" if kind == CALIBRATED else "the answer, fine-tuned"
        with clock.doing(kind, words):
            try:
                after, learned = bench.refit(mix, kind, steps)
                one = Refit(kind, steps, trial.replaced, drop, after)
            except MemoryError:
                one = Refit(kind, steps, trial.replaced, drop, math.inf, "there is not enough memory")
            except ValueError as error:
                one = Refit(kind, steps, trial.replaced, drop, math.inf, str(error))
        if one.kept:
            plan.learned |= learned
            drop = one.after
        plan.refits = (*plan.refits, one)
        ledger.write()
