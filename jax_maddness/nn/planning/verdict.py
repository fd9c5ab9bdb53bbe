"""Measurements of layers -> which are replaced, and why, in words. Pure functions: nothing is measured here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from jax_maddness.nn.layers.kinds import CODES, EXACT, INT8, LOW_RANK

MIN_GAIN = 0.05
"""A layer that would gain less stays."""
MIN_MODEL_GAIN = 0.02
"""A model that would gain less stays as it is."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to compute what layers compute, measured.

    Attributes:
      kind: `"exact"`, `"int8"` (dynamic), `"low rank"` or `"codes"`.
      size: the rank, or C; 0 for the others.
      ms: median milliseconds of all calls in one run of the model.
      noise: half the distance of the quartiles, as a share of `ms`.
      nmse: |y - y_exact|^2 / |y_exact - mean|^2 on rows held out.
      drop: of the metric, where nothing but these layers is replaced; None: not measured.
    """

    kind: str
    size: int
    ms: float
    noise: float
    nmse: float
    drop: float | None = None


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """One line of a plan: a layer, or several that share an op.

    Attributes:
      name: the layer's path, or the paths joined.
      paths: of all layers of the line.
      kind: of layer.
      shape: `[D, M]` of the product, M of all layers together.
      rows: of one call, as the first batch gave them.
      options: what was measured; none where no rule asks for the layer, or it is not supported.
      choice: C, or the rank, or 0 for int8; None: the layer stays.
      words: the verdict, and why.
      by: which kind of option replaces it, if any does.
      products: the kinds that may.
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

    def of(self, kind: str) -> list[Option]:
        """The options of a kind, fastest first; of equally fast ones the most accurate first."""
        return sorted((o for o in self.options if o.kind == kind), key=lambda o: (o.ms, o.nmse))

    @property
    def exact(self) -> Option:
        """The layer as it is."""
        return self.of(EXACT)[0]

    @property
    def chosen(self) -> Option | None:
        """What replaces it, if anything does."""
        return next((o for o in self.of(self.by) if o.size == self.choice), None)

    def speedup(self, option: Option) -> float:
        """How many times as fast as the exact layer."""
        return self.exact.ms / option.ms

    def with_drop(self, option: Option, drop: float) -> LayerPlan:
        """The line with the drop of one of its options."""
        measured = tuple(dataclasses.replace(o, drop=drop) if o == option else o for o in self.options)
        return dataclasses.replace(self, options=measured)


def pays(layer: LayerPlan, option: Option) -> bool:
    """Whether it gains more than `MIN_GAIN`, and more than the noise of both measurements."""
    return layer.speedup(option) >= 1 + max(MIN_GAIN, layer.exact.noise + option.noise)


def rival(layer: LayerPlan, option: Option) -> Option | None:
    """The fastest of int8 and low rank, where these may not replace the layer, as fast as `option` and as close."""
    better = [o for o in _others(layer) if o.ms <= option.ms and o.nmse <= option.nmse]
    return min(better, key=lambda o: (o.ms, o.nmse), default=None)


def worth_trying(layer: LayerPlan) -> list[Option]:
    """What pays and has no rival, fastest first; a slower one only if it is closer than all faster ones."""
    found: list[Option] = []
    for option in sorted((o for kind in layer.products for o in layer.of(kind)), key=lambda o: (o.ms, o.nmse)):
        if pays(layer, option) and rival(layer, option) is None and all(option.nmse < o.nmse for o in found):
            found.append(option)
    return found


def best(layer: LayerPlan, max_drop: float) -> Option | None:
    """The fastest of these that on its own stays within `max_drop`."""
    return next((o for o in worth_trying(layer) if o.drop is not None and o.drop <= max_drop), None)


Choice = tuple[LayerPlan, Option]


def accepted(layers: Sequence[LayerPlan], max_drop: float) -> list[Choice]:
    """The layers for which there is a `best`, with that."""
    return [(layer, option) for layer in layers if (option := best(layer, max_drop)) is not None]


def closer(choices: Sequence[Choice]) -> Choice | None:
    """The next closer codes of the layer that costs most, among those that have any: what to give up speed for."""
    found = []
    for layer, option in choices:
        after = [o for o in worth_trying(layer) if o.nmse < option.nmse]
        if after:
            found.append((option.drop or 0.0, layer, after[0]))
    return max(found, key=lambda item: item[0])[1:] if found else None


def ordered(choices: Sequence[Choice]) -> list[Choice]:
    """What to replace first: the most time gained for each bit of the metric; what costs none before all others."""

    def rank(item: Choice) -> tuple[bool, float]:
        layer, option = item
        gained, drop = layer.exact.ms - option.ms, option.drop or 0.0
        return (drop > 0, -gained / drop if drop > 0 else -gained)

    return sorted(choices, key=rank)


def longest(count: int, holds: Callable[[int], bool]) -> int:
    """The most of `count` things in order for which `holds` says yes: all of them first, then by bisection."""
    if count == 0 or holds(count):
        return count
    low, high = 0, count  # `low` holds, as nothing is replaced there; `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def decided(layer: LayerPlan, option: Option | None, max_drop: float, instead: str = "") -> LayerPlan:
    """The line with its verdict.

    Args:
      layer: with all that was measured.
      option: the codes that replace it; None: it stays.
      max_drop: of the metric.
      instead: why it stays although `best` has something for it.
    """
    if option is not None:
        words = f"replaced, {name_of(option)}: {layer.speedup(option):.1f}x, alone a drop of {option.drop:.2g}"
        codes = [o for o in layer.of(CODES) if o.drop is not None]
        if option.kind != CODES and codes:
            words += f"; codes {layer.speedup(codes[0]):.1f}x, alone a drop of {codes[0].drop:.2g}"
        return dataclasses.replace(layer, choice=option.size, by=option.kind, words=words)
    return dataclasses.replace(layer, choice=None, words="stays: " + (_why_not(layer, max_drop) or instead))


def _why_not(layer: LayerPlan, max_drop: float) -> str:
    """Why the line has no `best`; "" if it has."""
    codes = layer.of(CODES)
    if not codes:
        return "nothing was measured, as the time was up"
    tried, fastest = worth_trying(layer), codes[0]
    if not tried:
        paying = [o for o in codes if pays(layer, o)]
        other = rival(layer, paying[0]) if paying else _faster(layer)
        own = f"codes {layer.speedup(fastest):.2f}x"
        if other is not None:
            return f"{name_of(other)} would be faster: {layer.speedup(other):.1f}x at NMSE {other.nmse:.2g}; {own}"
        gain = layer.speedup(fastest)
        noise = layer.exact.noise + fastest.noise
        if gain < 1:
            return f"codes would be slower, {gain:.2f}x"
        return f"{own}, " + (f"less than {MIN_GAIN:.0%}" if gain < 1 + MIN_GAIN else f"within the noise of {noise:.0%}")
    if best(layer, max_drop) is not None:
        return ""
    measured = [o for o in tried if o.drop is not None]
    if not measured:
        said = f"{tried[0].kind} {layer.speedup(tried[0]):.1f}x"
        return f"{said}, but what that costs was not measured, as the time was up"
    least = min(measured, key=lambda o: o.drop if o.drop is not None else 0)
    return f"{least.kind} {layer.speedup(least):.1f}x, but alone a drop of {least.drop:.2g}, more than {max_drop:.2g}"


def name_of(option: Option) -> str:
    """In words."""
    return {CODES: f"C = {option.size}", LOW_RANK: f"low rank {option.size}"}.get(option.kind, option.kind)


def _others(layer: LayerPlan) -> list[Option]:
    """The options that may not replace the layer."""
    return [o for kind in (INT8, LOW_RANK) if kind not in layer.products for o in layer.of(kind)]


def _faster(layer: LayerPlan) -> Option | None:
    """The closest of int8 and low rank that pays, if it is nearly exact."""
    found = [o for o in _others(layer) if pays(layer, o) and o.nmse < 1e-3]
    return min(found, key=lambda o: o.ms, default=None)


def predicted(layers: Sequence[LayerPlan], exact_ms: float) -> float:
    """How many times as fast the model will be with what is chosen, by Amdahl's law from the layers' times."""
    gained = sum(layer.exact.ms - layer.chosen.ms for layer in layers if layer.chosen is not None)
    kept = sum(layer.chosen.ms for layer in layers if layer.chosen is not None)
    return exact_ms / max(exact_ms - gained, kept) if exact_ms > 0 and gained else 1.0


def is_finished(layer: LayerPlan) -> bool:
    """Whether nothing about it was left out for lack of time."""
    return "the time was up" not in layer.words
