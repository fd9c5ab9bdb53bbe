"""Measurements of layers -> which layers are replaced, and why, in words. Pure functions: nothing is measured here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from jax_maddness.nn.layers.kinds import CODES, EXACT, FACTORS, INT8, LOW_RANK, REWRITTEN
from jax_maddness.nn.nmse import finite_or_infinite

MIN_GAIN = 0.05
"""A layer that would gain less stays."""
MIN_MODEL_GAIN = 0.02
"""A model that would gain less stays as it is."""
MIN_APPROXIMATE_GAIN = 0.05
"""A model that computes the same as the exact one stays if an approximation would gain less."""
MIN_OUTPUTS = 4
"""Groups of a convolution with fewer outputs gain nothing by look-ups or factors."""
LEAST_SHARE, FOLDED_SHARE = 0.005, 0.02
"""A layer with less than the first share of the model's time is not looked at, unless all such layers together have
more than the second."""
NOT_ALL = "other products were not measured, as the time was up"
"""The last words of the verdict of a line of which not all options were measured."""


Product = tuple[str, int]
"""The kind and the size of a product that replaces a layer."""
Mix = Mapping[str, Product]
"""By name, the products of the lines that are replaced; the others stay."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to compute the layers of a line, measured.

    Attributes:
      kind: `"exact"`, `"int8"` (dynamic), `"low rank"`, `"factors"`, `"rewritten"` or `"codes"`.
      size: the rank, or C; 0 for the other kinds. Factors of full rank are the whole product in int8.
      ms: median milliseconds of all calls in one run of the model.
      noise: half the interquartile range, as a share of `ms`.
      nmse: `|y - y_exact|^2 / |y_exact - mean|^2` on held-out rows.
      drop: of the metric, where only these layers are replaced; None: not measured.
    """

    kind: str
    size: int
    ms: float
    noise: float
    nmse: float
    drop: float | None = None

    @property
    def product(self) -> Product:
        """The kind and the size."""
        return self.kind, self.size

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
      unmeasured: something about the layer was not measured for lack of time.
      groups: of a convolution's features.
      failed: products that could not be learned, and why, in words.
      one_hot: its captured inputs are one-hot.
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
    failed: tuple[str, ...] = ()
    groups: int = 1
    one_hot: bool = False

    def of(self, kind: str) -> list[Option]:
        """Returns the options of a kind, fastest first; of equally fast ones the most accurate first."""
        return sorted((o for o in self.options if o.kind == kind), key=lambda o: (o.ms, o.nmse))

    @property
    def exact(self) -> Option:
        """The layer as it is."""
        return self.of(EXACT)[0]

    def option(self, product: Product) -> Option | None:
        """Returns the option of a kind and size, if it was measured."""
        return next((o for o in self.options if o.product == product), None)

    @property
    def chosen(self) -> Option | None:
        """The option that replaces the layer, if one does."""
        return None if self.choice is None else self.option((self.by, self.choice))

    def speedup(self, option: Option) -> float:
        """Returns how many times as fast as the exact layer an option is."""
        return self.exact.ms / option.ms

    def with_drop(self, option: Option, drop: float) -> LayerPlan:
        """Returns the line with the measured drop of one of its options."""
        options = tuple(dataclasses.replace(o, drop=drop) if o == option else o for o in self.options)
        return dataclasses.replace(self, options=options)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A model with some layers replaced, run on the held-out batches.

    Attributes:
      replaced: for each replaced line its name, the kind of product, and its size.
      speedup: predicted from the layers' times, or measured.
      drop: of the metric.
      measured: the model was timed, in turns with the exact one.
    """

    replaced: tuple[tuple[str, str, int], ...]
    speedup: float
    drop: float
    measured: bool = False

    @property
    def mix(self) -> Mix:
        """By name, the products of the lines that are replaced."""
        return {name: (kind, size) for name, kind, size in self.replaced}


CALIBRATED, TUNED = "calibrated", "tuned"
"""The kinds of a `Refit`: each layer is learned again, from its inputs after the layers before it were replaced; and
tables are trained, all layers at once."""


@dataclasses.dataclass(frozen=True)
class Refit:
    """The answer of a plan, fitted again and run on the held-out batches.

    Attributes:
      kind: `CALIBRATED` or `TUNED`.
      steps: of training; 0 for `CALIBRATED`.
      replaced: the answer, as in `Trial`.
      before, after: the drop without and with it.
      failed: why it could not be done, in words.
    """

    kind: str
    steps: int
    replaced: tuple[tuple[str, str, int], ...]
    before: float
    after: float
    failed: str = ""

    @property
    def kept(self) -> bool:
        """Whether the answer is better with it."""
        return self.after < self.before


def pays(layer: LayerPlan, option: Option) -> bool:
    """Whether an option gains more than `MIN_GAIN`, and more than the noise of both measurements."""
    return gains(layer.exact.ms, option.ms, layer.exact.noise + option.noise, MIN_GAIN)


def gains(exact_ms: float, ms: float, noise: float, least: float) -> bool:
    """Whether `ms` is less than `exact_ms` by more than the share `least` and more than `noise`; False for NaN."""
    return ms > 0 and exact_ms < math.inf and noise < math.inf and exact_ms / ms >= 1 + max(least, noise)


def within(drop: float | None, max_drop: float) -> bool:
    """Whether a drop was measured, is a finite number, and is at most `max_drop`, which may be infinite."""
    return drop is not None and math.isfinite(drop) and drop <= max_drop


def worth_trying(layer: LayerPlan) -> list[Option]:
    """Returns options that pay, fastest first; a slower one must be closer than all faster ones.

    An option whose error is not finite is none of them.
    """
    worth: list[Option] = []
    for option in allowed(layer):
        closer_than_faster = all(option.nmse < o.nmse for o in worth)
        if math.isfinite(option.nmse) and pays(layer, option) and closer_than_faster:
            worth.append(option)
    return worth


def allowed(layer: LayerPlan) -> list[Option]:
    """Returns the options that may replace the layer, fastest first; of equally fast ones the most accurate first."""
    return sorted((o for o in layer.options if o.kind in layer.products), key=lambda o: (o.ms, o.nmse))


def folded(shares: Mapping[str, float]) -> set[str]:
    """Returns the names of layers whose share of the model's time is too small to matter, of all layers' shares."""
    total, names = 0.0, set()
    for name in sorted(shares, key=lambda name: shares[name]):
        total += shares[name]
        if shares[name] >= LEAST_SHARE or total > FOLDED_SHARE:
            break
        names.add(name)
    return names


def decided(layer: LayerPlan, product: Product | None, max_drop: float, instead: str = "") -> LayerPlan:
    """Returns the line with its verdict.

    Args:
      layer: the line with all measurements.
      product: the kind and size of the product that replaces the layer; None: it stays.
      max_drop: of the metric.
      instead: the reason why the layer stays although an option is worth trying and its own drop small enough.
    """
    option = None if product is None else layer.option(product)
    notes = [*layer.failed, *_left_out(layer, option)]
    if product is None:
        words = f"stays: {_reason_to_stay(layer, max_drop, instead)}"
    else:
        words = f"replaced, {name_of(product, layer.shape)}"
    if option is not None:
        words += f": {layer.speedup(option):.1f}x"
        words += "" if option.drop is None else f", alone a drop of {option.drop:.2g}"
    if layer.unmeasured and (product is not None or allowed(layer)):
        notes.append(NOT_ALL)
    kind, size = (layer.by, None) if product is None else product
    return dataclasses.replace(layer, choice=size, by=kind, words="; ".join([words, *notes]))


def _reason_to_stay(layer: LayerPlan, max_drop: float, instead: str) -> str:
    """Returns why no option replaces the line."""
    options, tried = allowed(layer), worth_trying(layer)
    if not options and layer.groups > 1 and layer.shape[1] < MIN_OUTPUTS:
        return "its groups have too few outputs for look-ups or factors"
    if not options:
        return "nothing was measured" + (", as the time was up" if layer.unmeasured else "")
    if not tried:
        return _reason_not_to_try(layer, options)
    measured = [(o.drop, o) for o in tried if o.drop is not None]
    if not measured or any(within(drop, max_drop) for drop, _ in measured):
        return instead
    drop, option = min(measured, key=lambda pair: pair[0])
    words = f"{name_of(option.product, layer.shape)} {layer.speedup(option):.1f}x, but alone a drop of {drop:.2g}"
    return f"{words}, more than {max_drop:.2g}"


def _reason_not_to_try(layer: LayerPlan, options: Sequence[Option]) -> str:
    """Returns why none of the options that are allowed is worth trying."""
    if not any(math.isfinite(o.nmse) for o in options):
        return "its replacements return numbers that are not finite on held-out rows"
    fastest = options[0]
    gain, name = layer.speedup(fastest), name_of(fastest.product, layer.shape)
    if gain < 1:
        return f"{name} would be slower, {gain:.2f}x"
    noise = layer.exact.noise + fastest.noise
    reason = f"less than {MIN_GAIN:.0%}" if gain < 1 + MIN_GAIN else f"within the noise of {noise:.0%}"
    return f"{name} {gain:.2f}x, {reason}"


def _left_out(layer: LayerPlan, option: Option | None) -> list[str]:
    """Returns words on the int8 product, if `products` leaves it out and it would be faster."""
    rivals = layer.of(INT8) if INT8 not in layer.products else []
    if not rivals or not pays(layer, rivals[0]) or (option is not None and option.ms <= rivals[0].ms):
        return []
    speedup, error = layer.speedup(rivals[0]), rivals[0].nmse
    return [f"int8, which `products` leaves out, would be faster: {speedup:.1f}x at NMSE {error:.2g}"]


def name_of(product: Product, shape: tuple[int, int]) -> str:
    """Returns a product's kind and size in words; `shape` is that of the exact product."""
    kind, size = product
    if kind == FACTORS:
        return "whole int8 product" if size == min(shape) else f"factors of rank {size}"
    return {CODES: f"C = {size}", LOW_RANK: f"low rank {size}", REWRITTEN: "rewritten exactly"}.get(kind, kind)


def predicted(layers: Sequence[LayerPlan], exact_ms: float) -> float:
    """Predicts how many times as fast the model will be with the choices, by Amdahl's law from the layers' times."""
    gained = sum(layer.exact.ms - layer.chosen.ms for layer in layers if layer.chosen is not None)
    kept = sum(layer.chosen.ms for layer in layers if layer.chosen is not None)
    return exact_ms / max(exact_ms - gained, kept) if exact_ms > 0 and gained else 1.0
