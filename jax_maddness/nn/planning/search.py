"""The search for a plan: a safe answer early, then better ones. It runs nothing itself: a `Bench` does.

    look:    the time of the model, and of each layer as it is; layers of small share are left out
    whole:   depthwise and 1x1 convolutions rewritten, then all layers by int8, XLA's or ours: the quickest model that
             is close enough is the incumbent
    layers:  each layer's products, those that are learned in seconds first, then look-ups: time, error, and the drop of
             the metric where this layer alone is replaced
    mixes:   the quickest mix whose predicted drop is small enough (`mix.py`), tried in the model
    confirm: the incumbent and the exact model, timed in turns
    refit:   the incumbent's layers are learned once more, if `plan` is asked to (`refit.py`)

A model replaces the incumbent only if its drop is at most `max_drop`, and it is faster by more than the noise, measured
in turns. So whatever ends the search, the incumbent is a model that was measured as a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence

from jax_maddness.nn.layers.kinds import CODES, EXACT, FACTORS, INT8, LOW_RANK, REWRITTEN
from jax_maddness.nn.planning import verdict
from jax_maddness.nn.planning.bench import Bench
from jax_maddness.nn.planning.clock import Clock, TimeUpError
from jax_maddness.nn.planning.decide import decide
from jax_maddness.nn.planning.incumbent import Incumbent, least_gain
from jax_maddness.nn.planning.ledger import Ledger
from jax_maddness.nn.planning.mix import Mixer
from jax_maddness.nn.planning.refit import SHARE, Refits, refit, same_refits
from jax_maddness.nn.planning.report import Plan
from jax_maddness.nn.planning.verdict import Mix, Option, Product

_ROUNDS = 6
"""Largest number of mixes that are tried in a row."""
_LEAST_LEARNING = 1.0
"""Seconds below which no look-ups are learned."""


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """The options of a search.

    Attributes:
      only_look: times the layers as they are, and tries nothing.
      refits: how the answer is fitted again.
    """

    only_look: bool = False
    refits: Refits = ()


@dataclasses.dataclass
class Search:
    """A plan in the making.

    Attributes:
      plan: is updated in place.
      bench: learns and measures.
      clock: the time that is left.
      names: of the lines that rules ask for and that can be learned.
      write: keeps the plan; it is called after each step.
      options: of the search.
    """

    plan: Plan
    bench: Bench
    clock: Clock
    names: Sequence[str]
    write: Callable[[], None]
    options: SearchOptions = SearchOptions()

    def __post_init__(self) -> None:
        self._ledger = Ledger(self.plan, self.write)
        self._incumbent = Incumbent(self._ledger, self.bench, self.clock)
        self._planned, self._done = tuple(self.names), set[str]()
        # Those of an earlier run are of its answer, and of ops that this run does not have.
        self._refits, self.plan.refits = self.plan.refits, ()
        # Models that were scored by an earlier run are not scored again, and may have told that the metric is no share.
        self._examples = self.plan.examples if self.plan.trials else sys.maxsize

    def run(self) -> bool:
        """Measures, decides, and completes the plan; returns whether it was interrupted (Ctrl-C)."""
        if self.options.only_look:
            self.plan.only_look = True
            with contextlib.suppress(TimeUpError):
                self._look()
            decide(self.plan, self._planned, {}, self._planned, self._planned)
            return False
        with self.clock.doing("drop", "the metric of the model as it is", always=True):
            self.plan.before = self.bench.before()  # first, as a metric that cannot be used is found in seconds
        self.clock.hold(SHARE * bool(self.options.refits))
        interrupted = self._interrupted(self._search)
        self.clock.hold(0.0)
        interrupted = interrupted or self._interrupted(self._incumbent.confirm) or self._interrupted(self._refit)
        self._decide()
        return interrupted

    def _interrupted(self, steps: Callable[[], None]) -> bool:
        """Takes steps until they end or the time is up; returns whether they were interrupted (Ctrl-C)."""
        try:
            steps()
        except TimeUpError:
            pass
        except KeyboardInterrupt:
            return True
        except Exception:
            self.write()
            raise
        return False

    def _search(self) -> None:
        """Finds the answer."""
        self._look()
        if self._worth_it:
            self._try_whole()
            self._refine()

    def _refit(self) -> None:
        """Fits the answer again."""
        refit(self._ledger, self.bench, self.clock, self._incumbent.mix, self.options.refits, self._refits)

    def _look(self) -> None:
        """Measures the time of the model and of its layers as they are."""
        missing = [name for name in self.names if not self._ledger.line(name).of(EXACT)]
        if missing:
            with self.clock.doing("look", f"the times of {len(missing)} layers"):
                options = self.bench.exact(missing)
            for name, option in zip(missing, options, strict=True):
                self._ledger.put(dataclasses.replace(self._ledger.line(name), options=(option,)))
        if not self.plan.exact_ms:
            with self.clock.doing("look", "the time of the model"):
                self.plan.exact_ms, self.plan.rest_ms = self.bench.whole_model()
            self.plan.fast_ms = self.plan.exact_ms

    def _fold(self) -> None:
        """Leaves out layers whose share of the incumbent's time is too small to matter."""
        shares = {name: self._ledger.line(name).exact.ms / self.plan.fast_ms for name in self._planned}
        self._done = verdict.folded(shares) - self._incumbent.mix.keys()
        self.names = sorted((name for name in shares if name not in self._done), key=lambda name: -shares[name])

    def _try_whole(self) -> None:
        """Tries what can be rewritten, then int8, XLA's and ours, except where groups were rewritten."""
        for kind in (REWRITTEN, INT8, FACTORS):
            self._fold()  # of a model without slow convolutions, other layers have a larger share
            mix = {name: product for name, product in self._incumbent.mix.items() if product[0] == REWRITTEN}
            for name in self.names:
                line, sizes = self._ledger.line(name), dict(self._whole(name))
                if kind not in sizes or kind not in line.products or (name in mix and line.groups > 1):
                    continue
                if self._error(name, (kind, sizes[kind])) is not None:
                    mix[name] = (kind, sizes[kind])
            self._try(mix, f"all layers: {kind}")

    def _refine(self) -> None:
        """Measures the options of layers, the largest first, and tries mixes of them."""
        for name in self.names:
            self._measure(name, self._whole(name))
        exact = self._mixer.best_exact()  # some convolutions may be slower when they are rewritten
        if self._mixer.gain(exact) >= 1 + least_gain(self._incumbent.mix, exact):
            self._try(exact, "the layers that are faster rewritten")
        self._try_mixes(verdict.MIN_MODEL_GAIN)
        for name in self.names:
            sizes = [product for product in self._products(name) if product[0] in (FACTORS, LOW_RANK)]
            for product in sorted(sizes, key=lambda product: (product[0], -product[1])):
                self._try_product(name, product)
            self._try_mixes(2 * verdict.MIN_MODEL_GAIN)
        for name in self.names:
            with contextlib.suppress(TimeUpError):  # shorter steps may still be in time
                self._look_ups(name)
                self._done.add(name)
                self._try_mixes(2 * verdict.MIN_MODEL_GAIN)
        self._try_mixes(verdict.MIN_MODEL_GAIN)

    def _whole(self, name: str) -> list[Product]:
        """Returns the nearly exact products of a line: rewritten, XLA's int8, which is always measured, and ours."""
        products = self._products(name, every=True)
        kinds = [kind for kind in (REWRITTEN, INT8, FACTORS) if kind in dict(products)]
        return [next(product for product in reversed(products) if product[0] == kind) for kind in kinds]

    def _look_ups(self, name: str) -> None:
        """Measures look-ups of a layer, the fewest first, until their own drop is small enough."""
        for product in self._products(name):
            if product[0] == CODES:
                self._try_product(name, product)
                option = self._ledger.line(name).option(product)
                if option is not None and verdict.within(option.drop, self.plan.max_drop):
                    break

    def _try_product(self, name: str, product: Product) -> None:
        """Measures a product of a layer, and the drops of options that are faster than the incumbent's."""
        line, mixer = self._ledger.line(name), self._mixer
        known = self.bench.known_ms(name, product)
        if mixer.may_serve(line, product) and (known is None or mixer.may_gain(line, product, known)):
            self._measure(name, [product])
            self._try_alone(name)

    def _try_alone(self, name: str) -> None:
        """Measures the drops of a layer's options that are faster than the incumbent's, until one is small enough."""
        for option in self._mixer.faster(self._ledger.line(name)):
            if option.drop is None and self._mixer.hopeless(self._ledger.line(name), option):
                continue
            if option.drop is None:
                mix, words = {name: option.product}, f"{name or 'the model'}, {option.kind} {option.size or ''}"
                drop = self._incumbent.drop(mix, words, self._mixer.predicted(mix))
                self._ledger.put(self._ledger.line(name).with_drop(option, drop))
                option = dataclasses.replace(option, drop=drop)
            if verdict.within(option.drop, self.plan.max_drop):
                return

    def _try_mixes(self, least_gain: float) -> None:
        """Tries the best mix by prediction, and others for a larger or smaller limit where the prediction fails."""
        limit = self.plan.max_drop
        for _ in range(_ROUNDS):
            mix = self._mixer.best(limit)
            if self._mixer.gain(mix) < 1 + least_gain:
                return
            drop = self._try(mix, "a mix of products")
            if verdict.within(drop, self.plan.max_drop):
                if limit == 0 or drop > self.plan.max_drop / 2:
                    return
                limit *= 2
            else:
                limit *= max(0.1, min(0.8, 0.8 * self.plan.max_drop / drop)) if drop > 0 else 0.1

    def _try(self, mix: Mix, words: str) -> float:
        """Measures a mix, which becomes the incumbent if it is close enough and faster; returns its drop."""
        return self._incumbent.challenge(mix, words, self._mixer.predicted(mix))

    def _measure(self, name: str, products: Sequence[Product]) -> None:
        """Measures time and error of products of a line."""
        new = [product for product in products if self._ledger.line(name).option(product) is None]
        errors = {product: self._error(name, product) for product in new}
        new = [product for product in new if errors[product] is not None]
        if not new:
            return
        try:
            with self.clock.doing("times", f"{name or 'the model'}, times"):
                timings = self.bench.times(name, new)
        except MemoryError:
            self._ledger.fail(name, "the machine has not enough memory for its replacements")
            return
        options = [Option(*p, *timing, errors[p] or 0.0) for p, timing in zip(new, timings, strict=True)]
        self._ledger.put(
            dataclasses.replace(self._ledger.line(name), options=(*self._ledger.line(name).options, *options))
        )

    def _error(self, name: str, product: Product) -> float | None:
        """Learns a product and returns its error; None if there is not enough memory for it."""
        kind, least = ("codes", _LEAST_LEARNING) if product[0] == CODES else ("learn", 0.0)
        words = verdict.name_of(product, self._ledger.line(name).shape)
        try:
            with self.clock.doing(kind, f"{name or 'the model'}, {words}", least):
                return self.bench.error(name, product)
        except MemoryError:
            self._ledger.fail(name, f"{words}: not enough memory to learn it")
            return None

    def _products(self, name: str, every: bool = False) -> list[Product]:
        """Returns the products of a line that may replace it; with `every` also int8, which is measured to compare."""
        return [p for p in self.bench.products(name) if p[0] in (*self._ledger.line(name).products, *[INT8] * every)]

    @property
    def _mixer(self) -> Mixer:
        lines = [self._ledger.line(name) for name in self.names]
        return Mixer(lines, self._incumbent.mix, self.plan.trials, self.plan.max_drop, self.plan.exact_ms)

    def _decide(self) -> None:
        """Writes the verdicts."""
        small = {name for name in self._planned if name not in self.names}
        answer = self._incumbent
        decide(self.plan, self._planned, answer.mix, small, self._done, answer.given_up)
        self.plan.examples = min(self.bench.examples, self._examples)
        self.plan.finished = self.plan.finished and same_refits(self.plan, self.options.refits)
        self.write()

    @property
    def _worth_it(self) -> bool:
        """Whether the model could become measurably faster; if not, nothing is left to be measured."""
        alone = sum(line.exact.ms for line in self.plan.looked_at) / self.plan.exact_ms
        if max(self.plan.best_case, 1 / max(1 - alone, 0.01)) >= 1 + verdict.MIN_MODEL_GAIN:
            return True
        self._done, self.names = set(self._planned), ()
        return False
