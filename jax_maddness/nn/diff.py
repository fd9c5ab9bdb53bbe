"""`Diff`: the change that `replace` makes to each layer, and the reason, as a table."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np

from jax_maddness.core.types import LEAVES
from jax_maddness.nn.layers.kinds import CODES, FACTORS, INT8, LOW_RANK, REWRITTEN, TOP
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.rules import Rule, first_match
from jax_maddness.nn.units import Unit


@dataclasses.dataclass(frozen=True)
class Change:
    """The change to one layer.

    Attributes:
      path, kind: of the layer.
      shape: `[D, M]` of the product of one group.
      product: the product that replaces it, one of `PRODUCTS`; None: the layer stays.
      size: C, or the rank, or 0.
      reason: the reason why it stays; or the layers with which it shares its op.
      bytes_before: bytes of kernel and bias.
      bytes_after: bytes of the tables; the trees add some hundred per codebook.
    """

    path: str
    kind: str
    shape: tuple[int, int]
    product: str | None
    size: int
    reason: str
    bytes_before: int
    bytes_after: int


@dataclasses.dataclass(frozen=True)
class Diff:
    """The changes that `replace` makes to a model: `print` it.

    Attributes:
      changes: of every layer with a kernel, in the order in which the model calls them.
      unused: patterns of rules that decide on no layer.
    """

    changes: tuple[Change, ...]
    unused: tuple[str, ...]

    @property
    def replaced(self) -> tuple[Change, ...]:
        """The changes of layers that do not stay."""
        return tuple(change for change in self.changes if change.product is not None)

    def __str__(self) -> str:
        lines = ["| layer | kind | D x M | becomes | bytes | then | |", "|---|---|---|---|---|---|---|"]
        for c in self.changes:
            lines.append(
                f"| {c.path or '(the model)'} | {c.kind} | {c.shape[0]} x {c.shape[1]} | {_product_name(c)} | "
                f"{c.bytes_before:,} | {c.bytes_after:,} | {c.reason} |"
            )
        before, after = (sum(getattr(c, name) for c in self.changes) for name in ("bytes_before", "bytes_after"))
        lines.append(f"| {len(self.replaced)} of {len(self.changes)} replaced | | | | {before:,} | {after:,} | |")
        if self.unused:
            lines.append(f"Rules that decide on no layer: {', '.join(map(repr, self.unused))}.")
        return "\n".join(lines)


def diff(layers: Sequence[Layer], rules: Sequence[Rule], units: Sequence[Unit]) -> Diff:
    """Lists the changes that `rules` make to `layers`; `units` are the layers to replace."""
    unit_of = {layer.path: unit for unit in units for layer in unit.layers}
    rule_of = {layer.path: first_match(rules, layer.path, *layer.others) for layer in layers}
    changes = [_change(layer, rule_of[layer.path], unit_of.get(layer.path)) for layer in layers]
    used = set(map(id, rule_of.values()))
    return Diff(tuple(changes), tuple(rule.pattern for rule in rules if id(rule) not in used))


def validate_diff(change: Diff) -> None:
    """Raises if nothing is replaced, and warns about rules without effect; called by a public function directly.

    Raises:
      ValueError: No layer is replaced; the message has the whole table.
    """
    if not change.replaced:
        raise ValueError(f"No layer would be replaced; nothing was done.\n{change}")
    if change.unused:
        # Level 4 is the caller of the public function that called this one.
        warnings.warn(f"Rules that decide on no layer of the model: {change.unused}.", UserWarning, stacklevel=4)


def _change(layer: Layer, rule: Rule | None, unit: Unit | None) -> Change:
    arrays = [a for a in (layer.kernel, layer.bias) if a is not None]
    before = sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in arrays)
    if unit is None:
        reason = layer.reason if rule is not None and not rule.skip else ""
        reason = reason or ("no rule matches" if rule is None else f"skipped by {rule.pattern!r}")
        return Change(layer.path, layer.kind, layer.shape, None, 0, reason, before, before)
    assert layer.form is not None
    num_products = max(layer.steps, 1) * layer.form.groups
    product, size = unit.choice
    d, m = layer.shape
    # Tables: 16 bytes per codebook and output, scale and offset. int8: weights, step and bias. Low rank: floats.
    # Factors: two of int8, the center and scale of features; of full rank the weights alone.
    factors = m * (d + 8) if size == min(d, m) else size * (d + m) + 8 * (d + m)
    by_product = {
        CODES: m * (size * LEAVES + 8),
        FACTORS: factors,
        INT8: m * (d + 8),
        REWRITTEN: 4 * m * (d + 1),
        LOW_RANK: 4 * (size * (d + m) + m),
        TOP: m * (size + 1) // 2 + 4 * m * (d + 1) + 4 * size * LEAVES * (d + 1),  # codes, exact weights, prototypes
    }
    after = num_products * by_product[product]
    after += num_products * 4 * m * d if unit.rule.needs_kernel else 0
    after += before if layer.keeps_kernel else 0
    after -= 4 * m * d if layer.is_table and product == TOP else 0  # the exact weights are the table
    others = [other.path for other in unit.layers if other is not layer]
    reason = f"one op with {', '.join(others)}" if others else ""
    return Change(layer.path, layer.kind, layer.shape, product, size, reason, before, after)


def _product_name(change: Change) -> str:
    names = {CODES: f"C = {change.size}", FACTORS: f"factors {change.size}", LOW_RANK: f"rank {change.size}"}
    return "" if change.product is None else names.get(change.product, change.product)
