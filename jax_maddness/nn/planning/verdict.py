"""Measurements of layers -> which layers are replaced, and why, in words. Pure functions: nothing is measured here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from jax_maddness.nn.layers.kinds import CODES, EXACT, INT8, LOW_RANK
from jax_maddness.nn.nmse import finite_or_infinite

MIN_GAIN = 0.05
"""A layer that would gain less stays."""
MIN_MODEL_GAIN = 0.02
"""A model that would gain less stays as it is."""
_NEARLY_EXACT = 1e-3
"""An NMSE below which a product counts as nearly exact."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to compute the layers of a line, measured.

    Attributes:
      kind: `"exact"`, `"int8"` (dynamic), `"low rank"` or `"codes"`.
      size: the rank, or C; 0 for the other kinds.
      ms: median milliseconds of all calls in one run of the model.
      noise: half the interquartile range, as a share of `ms`.
      nmse: |y - y_exact|^2 / |y_exact - mean|^2 on held-out rows.
      drop: of the metric, where only these layers are replaced; None: not measured.
    """

    kind: str
    size: int
    ms: float
    noise: float
    nmse: float
    drop: float | None = None

    def __post_init__(self) -> None:
        # NaN would pass some comparisons and fail others: what is no number counts as infinitely bad.
        for name in ("ms", "noise", "nmse", "drop"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, finite_or_infinite(value))


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """One line of a plan: a layer, or several layers that share an op.

    Attributes:
      name: the layer's path, or the paths joined.
      paths: of all layers of the line.
      kind: of the layer.
      shape: `[D, M]` of the product, with M of all layers together.
      rows: number of rows of one call, for the first batch.
      options: the measured ones; none where no rule asks for the layer, or it is not supported.
      choice: C, or the rank, or 0 for int8; None: the layer stays.
      words: the verdict and its reason, for people.
      by: the kind of the option that replaces it, if one does.
      products: the kinds that are allowed to.
      unmeasured: the layer stays because something about it was not measured for lack of time.
    """

    name: str
    paths: tuple[str, ...]
    kind: str
    shape: tuple[int, int]
    rows: int
    options: tuple[Option, ...] = ()
    choice: int | None = None
    words: str = ""
    by: str = CODES
    products: tuple[str, ...] = (CODES,)
    unmeasured: bool = False

    def of(self, kind: str) -> list[Option]:
        """Returns the options of a kind, fastest first; of equally fast ones the most accurate first."""
        return sorted((o for o in self.options if o.kind == kind), key=lambda o: (o.ms, o.nmse))

    @property
    def exact(self) -> Option:
        """The layer as it is."""
        return self.of(EXACT)[0]

    @property
    def chosen(self) -> Option | None:
        """The option that replaces the layer, if one does."""
        return next((o for o in self.of(self.by) if o.size == self.choice), None)

    def speedup(self, option: Option) -> float:
        """Returns how many times as fast as the exact layer an option is."""
        return self.exact.ms / option.ms

    def with_drop(self, option: Option, drop: float) -> LayerPlan:
        """Returns the line with the measured drop of one of its options."""
        options = tuple(dataclasses.replace(o, drop=drop) if o == option else o for o in self.options)
        return dataclasses.replace(self, options=options)


def pays(layer: LayerPlan, option: Option) -> bool:
    """Whether an option gains more than `MIN_GAIN`, and more than the noise of both measurements."""
    return gains(layer.exact.ms, option.ms, layer.exact.noise + option.noise, MIN_GAIN)


def gains(exact_ms: float, ms: float, noise: float, least: float) -> bool:
    """Whether `ms` is less than `exact_ms` by more than the share `least` and more than `noise`; False for NaN."""
    return ms > 0 and exact_ms < math.inf and noise < math.inf and exact_ms / ms >= 1 + max(least, noise)


def within(drop: float | None, max_drop: float) -> bool:
    """Whether a drop was measured, is a finite number, and is at most `max_drop`, which may be infinite."""
    return drop is not None and math.isfinite(drop) and drop <= max_drop


def rival(layer: LayerPlan, option: Option) -> Option | None:
    """Returns the fastest product that is as fast and as close as `option`, but not allowed to replace the layer."""
    better = [o for o in _not_allowed(layer) if o.ms <= option.ms and o.nmse <= option.nmse]
    return min(better, key=lambda o: (o.ms, o.nmse), default=None)


def worth_trying(layer: LayerPlan) -> list[Option]:
    """Returns options that pay and have no rival, fastest first; a slower one must be closer than all faster ones.

    An option whose error is not finite is none of them.
    """
    worth: list[Option] = []
    for option in sorted((o for kind in layer.products for o in layer.of(kind)), key=lambda o: (o.ms, o.nmse)):
        closer_than_faster = all(option.nmse < o.nmse for o in worth)
        if math.isfinite(option.nmse) and pays(layer, option) and closer_than_faster and rival(layer, option) is None:
            worth.append(option)
    return worth


def best(layer: LayerPlan, max_drop: float) -> Option | None:
    """Returns the fastest option worth trying whose own drop is at most `max_drop`."""
    return next((o for o in worth_trying(layer) if within(o.drop, max_drop)), None)


Choice = tuple[LayerPlan, Option]
"""A line of the plan with the option that replaces it."""


def accepted(layers: Sequence[LayerPlan], max_drop: float) -> list[Choice]:
    """Returns the layers that have a `best` option, with that option."""
    return [(layer, option) for layer in layers if (option := best(layer, max_drop)) is not None]


def closer(choices: Sequence[Choice]) -> Choice | None:
    """Returns the next closer option of the layer with the largest drop that has one: it gives up some speed."""
    steps = []
    for layer, option in choices:
        closer_options = [o for o in worth_trying(layer) if o.nmse < option.nmse]
        if closer_options:
            steps.append((option.drop or 0.0, layer, closer_options[0]))
    return max(steps, key=lambda step: step[0])[1:] if steps else None


def ordered(choices: Sequence[Choice]) -> list[Choice]:
    """Sorts by time gained for each unit of the metric lost, largest first; options without a drop come first."""

    def rank(choice: Choice) -> tuple[bool, float]:
        layer, option = choice
        gained, drop = layer.exact.ms - option.ms, option.drop or 0.0
        return (drop > 0, -gained / drop if drop > 0 else -gained)

    return sorted(choices, key=rank)


def longest(count: int, holds: Callable[[int], bool]) -> int:
    """Returns the longest prefix of `count` things for which `holds` is true: all are tried first, then bisection."""
    if count == 0 or holds(count):
        return count
    low, high = 0, count  # `low` holds, as nothing is replaced there; `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def decided(layer: LayerPlan, option: Option | None, max_drop: float, instead: str = "") -> LayerPlan:
    """Returns the line with its verdict.

    Args:
      layer: the line with all measurements.
      option: the option that replaces the layer; None: it stays.
      max_drop: of the metric.
      instead: the reason why the layer stays although it has a `best` option.
    """
    if option is None:
        reason, unmeasured = _reason_to_stay(layer, max_drop)
        return dataclasses.replace(layer, choice=None, words=f"stays: {reason or instead}", unmeasured=unmeasured)
    words = f"replaced, {name_of(option)}: {layer.speedup(option):.1f}x, alone a drop of {option.drop:.2g}"
    codes = [o for o in layer.of(CODES) if o.drop is not None]
    if option.kind != CODES and codes:
        words += f"; codes {layer.speedup(codes[0]):.1f}x, alone a drop of {codes[0].drop:.2g}"
    return dataclasses.replace(layer, choice=option.size, by=option.kind, words=words, unmeasured=False)


def _reason_to_stay(layer: LayerPlan, max_drop: float) -> tuple[str, bool]:
    """Returns why the line has no `best` option, "" if it has, and whether that is for lack of time."""
    if not layer.of(CODES):
        return "nothing was measured, as the time was up", True
    tried = worth_trying(layer)
    if not tried:
        return _reason_not_to_try(layer), False
    if best(layer, max_drop) is not None:
        return "", False
    measured = [o for o in tried if o.drop is not None]
    if not measured:
        option = f"{tried[0].kind} {layer.speedup(tried[0]):.1f}x"
        return f"{option}, but what that costs was not measured, as the time was up", True
    least = min(measured, key=lambda o: o.drop if o.drop is not None else 0)
    option = f"{least.kind} {layer.speedup(least):.1f}x"
    return f"{option}, but alone a drop of {least.drop:.2g}, more than {max_drop:.2g}", False


def _reason_not_to_try(layer: LayerPlan) -> str:
    """Returns why no option of the line is worth trying."""
    codes = layer.of(CODES)
    gain, paying = layer.speedup(codes[0]), [o for o in codes if pays(layer, o)]
    other = rival(layer, paying[0]) if paying else _nearly_exact_rival(layer)
    own = f"codes {gain:.2f}x"
    if not any(math.isfinite(o.nmse) for o in codes):
        return "codes return numbers that are not finite on held-out rows"
    if other is not None:
        return f"{name_of(other)} would be faster: {layer.speedup(other):.1f}x at NMSE {other.nmse:.2g}; {own}"
    if gain < 1:
        return f"codes would be slower, {gain:.2f}x"
    noise = layer.exact.noise + codes[0].noise
    return f"{own}, " + (f"less than {MIN_GAIN:.0%}" if gain < 1 + MIN_GAIN else f"within the noise of {noise:.0%}")


def name_of(option: Option) -> str:
    """Returns the option's kind and size in words."""
    return {CODES: f"C = {option.size}", LOW_RANK: f"low rank {option.size}"}.get(option.kind, option.kind)


def _not_allowed(layer: LayerPlan) -> list[Option]:
    """Returns the options that are measured, but not allowed to replace the layer."""
    return [o for kind in (INT8, LOW_RANK) if kind not in layer.products for o in layer.of(kind)]


def _nearly_exact_rival(layer: LayerPlan) -> Option | None:
    """Returns the fastest nearly exact product that pays, but is not allowed to replace the layer."""
    rivals = [o for o in _not_allowed(layer) if pays(layer, o) and o.nmse < _NEARLY_EXACT]
    return min(rivals, key=lambda o: o.ms, default=None)


def predicted(layers: Sequence[LayerPlan], exact_ms: float) -> float:
    """Predicts how many times as fast the model will be with the choices, by Amdahl's law from the layers' times."""
    gained = sum(layer.exact.ms - layer.chosen.ms for layer in layers if layer.chosen is not None)
    kept = sum(layer.chosen.ms for layer in layers if layer.chosen is not None)
    return exact_ms / max(exact_ms - gained, kept) if exact_ms > 0 and gained else 1.0
