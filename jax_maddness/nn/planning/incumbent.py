"""`Incumbent`: the answer of a plan so far, and the trials by which another mix takes its place."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

from jax_maddness.nn.layers.kinds import SAME
from jax_maddness.nn.planning import measure, verdict
from jax_maddness.nn.planning.bench import Bench
from jax_maddness.nn.planning.clock import Clock, TimeUpError
from jax_maddness.nn.planning.ledger import Ledger
from jax_maddness.nn.planning.verdict import Mix, Trial

_COMPARISONS = 3
"""The most comparisons of the exact and the planned model."""


@dataclasses.dataclass
class Incumbent:
    """The best mix that was measured so far; at first, the quickest one that an earlier run of the plan measured.

    Attributes:
      ledger: the plan, whose times are kept up to date.
      bench: measures.
      clock: the time that is left.
      mix: the products of the lines that are replaced.
      given_up: the speed-up of a mix that `confirm` gave up, if it did.
    """

    ledger: Ledger
    bench: Bench
    clock: Clock

    def __post_init__(self) -> None:
        plan = self.ledger.plan
        self.mix: Mix = {}
        self.given_up: float | None = None
        plan.fast_ms = plan.exact_ms
        close = [trial for trial in plan.trials if trial.measured and verdict.within(trial.drop, plan.max_drop)]
        for trial in sorted(close, key=lambda trial: (not _is_exact(trial.mix), -trial.speedup)):
            if trial.speedup * plan.fast_ms >= plan.exact_ms * (1 + least_gain(self.mix, trial.mix)):
                self.mix, plan.fast_ms = trial.mix, plan.exact_ms / trial.speedup
        if plan.measured_ms is not None and {line.name: (line.by, line.choice) for line in plan.replaced} == self.mix:
            plan.fast_ms = plan.exact_ms * plan.measured_ms[1] / plan.measured_ms[0]
        else:
            plan.measured_ms = None

    def drop(self, mix: Mix, words: str, predicted: float) -> float:
        """Returns the metric's drop for a mix; a trial that was made is not made again.

        Args:
          mix: the products of the lines that are replaced.
          words: for the progress line.
          predicted: how many times as fast as the exact model the mix is expected to be.
        """
        if (trial := self.ledger.trial(mix)) is not None:
            return trial.drop
        try:
            with self.clock.doing("drop", f"the metric of {words}"):
                drop = self.bench.drop(mix)
        except MemoryError:
            drop = float("inf")
        replaced = tuple(sorted((name, *product) for name, product in mix.items()))
        self.ledger.put_trial(Trial(replaced, predicted, drop))
        return drop

    def challenge(self, mix: Mix, words: str, predicted: float) -> float:
        """Measures a mix, which becomes the incumbent if it is close enough and faster; returns its drop."""
        if not mix:
            return 0.0
        plan, drop = self.ledger.plan, self.drop(mix, words, predicted)
        trial = self.ledger.trial(mix)
        if trial is None or trial.measured or not verdict.within(drop, plan.max_drop):
            return drop
        try:
            with self.clock.doing("compare", f"the time of {words}", _rounds([plan.fast_ms] * 2)):
                (old, old_noise), (new, noise) = self.bench.compare([self.mix, mix])
        except MemoryError:
            return drop
        # The exact model, which may be many times as slow, is not timed again: times are in units of its first time.
        speedup = plan.exact_ms / plan.fast_ms * old / new
        self.ledger.put_trial(dataclasses.replace(trial, speedup=speedup, measured=True))
        if self._is_better(mix, old, new, old_noise + noise):
            plan.measured_ms = None if self.mix else (old, new)
            self.mix, plan.fast_ms = mix, plan.exact_ms / speedup
            self.clock.best(f"{speedup:.2f}x at drop {max(drop, 0.0):.2g}")
            self.clock.reserve("compare", _rounds([plan.exact_ms, plan.fast_ms]))
            self.ledger.write()
        return drop

    def _is_better(self, mix: Mix, old: float, new: float, noise: float) -> bool:
        """Whether a mix that takes `new` milliseconds takes the place of the incumbent, which takes `old`."""
        least = least_gain(self.mix, mix)
        if least > 0:
            return verdict.gains(old, new, noise, least)
        plan = self.ledger.plan  # exact in place of an approximation: it must itself gain over the model as it is
        return old / new >= 1 + least and verdict.gains(
            plan.exact_ms, plan.fast_ms * new / old, noise, verdict.MIN_MODEL_GAIN
        )

    def confirm(self) -> None:
        """Times the exact model and the incumbent in turns, if the time allows it: its speed-up is then a measured one.

        Until then it is a product of ratios, each of an incumbent and the one before, which were chosen for being
        large. An incumbent that turns out to be slower than the exact model is given up, by the median of three
        comparisons where the first one shows no gain: other processes may have disturbed it.
        """
        self.clock.release()
        plan, trial, timings = self.ledger.plan, self.ledger.trial(self.mix), list[tuple[float, float]]()
        if trial is None:  # nothing is replaced
            return
        least, words = _rounds([plan.exact_ms, plan.fast_ms]), "the times of the exact and the planned model"
        with contextlib.suppress(MemoryError, TimeUpError):
            while len(timings) < _COMPARISONS and not (len(timings) == 1 and _gain(timings[0]) >= 1):
                with self.clock.doing("compare", words, least):
                    (exact, _), (fast, _) = self.bench.compare([{}, self.mix])
                timings.append((exact, fast))
        if not timings:
            return
        exact, fast = sorted(timings, key=_gain)[(len(timings) - 1) // 2]
        plan.measured_ms, plan.fast_ms = (exact, fast), plan.exact_ms * fast / exact
        if fast > exact:
            self.given_up = exact / fast
            self.ledger.put_trial(dataclasses.replace(trial, speedup=self.given_up))
            self.mix, plan.fast_ms, plan.measured_ms = {}, plan.exact_ms, None


def least_gain(incumbent: Mix, mix: Mix) -> float:
    """Returns the gain, as a share, with which a mix takes the place of an incumbent.

    What is exact takes the place of an approximation unless that is faster by as much as it must be.
    """
    if _is_exact(incumbent) == _is_exact(mix):
        return verdict.MIN_MODEL_GAIN
    least = verdict.MIN_APPROXIMATE_GAIN
    return 1 / (1 + least) - 1 if _is_exact(mix) else least


def _is_exact(mix: Mix) -> bool:
    """Whether a mix computes what the exact model does, up to rounding."""
    return all(kind in SAME for kind, _ in mix.values())


def _gain(timing: tuple[float, float]) -> float:
    """Returns the speed-up from the first time to the second, in units of the least that counts."""
    return timing[0] / timing[1] / (1 + verdict.MIN_MODEL_GAIN)


def _rounds(ms: Sequence[float]) -> float:
    """Returns the least number of seconds for which models that take these milliseconds are timed."""
    return measure.MIN_ROUNDS * sum(ms) / 1000
