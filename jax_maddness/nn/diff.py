"""What `replace` does to each layer, and why: prints as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jax_maddness.core.types import LEAVES
from jax_maddness.nn.calibrate import Unit
from jax_maddness.nn.layers.kinds import CODES, INT8, LOW_RANK
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.rules import Rule, first_match


@dataclasses.dataclass(frozen=True)
class Change:
    """What becomes of one layer.

    Attributes:
      path, kind: of the layer.
      shape: `[D, M]` of the product, of one group.
      product: what takes its place, `"codes"`, `"int8"` or `"low rank"`; None: the layer stays.
      size: C, or the rank, or 0.
      reason: why it stays; or with which layers it shares its op.
      bytes_before: of kernel and bias.
      bytes_after: of the tables; those of the trees, some hundred per codebook, come on top.
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
    """What `replace` does: `print` it.

    Attributes:
      changes: of every layer with a kernel, in the order in which the model calls them.
      unused: patterns of rules that decide on no layer.
    """

    changes: tuple[Change, ...]
    unused: tuple[str, ...]

    @property
    def replaced(self) -> tuple[Change, ...]:
        """Those that do not stay."""
        return tuple(change for change in self.changes if change.product is not None)

    def __str__(self) -> str:
        lines = ["| layer | kind | D x M | becomes | bytes | then | |", "|---|---|---|---|---|---|---|"]
        for c in self.changes:
            lines.append(
                f"| {c.path or '(the model)'} | {c.kind} | {c.shape[0]} x {c.shape[1]} | {_name(c)} | "
                f"{c.bytes_before:,} | {c.bytes_after:,} | {c.reason} |"
            )
        before, after = (sum(getattr(c, name) for c in self.changes) for name in ("bytes_before", "bytes_after"))
        lines.append(f"| {len(self.replaced)} of {len(self.changes)} replaced | | | | {before:,} | {after:,} | |")
        if self.unused:
            lines.append(f"Rules that decide on no layer: {', '.join(map(repr, self.unused))}.")
        return "\n".join(lines)


def diff(layers: Sequence[Layer], rules: Sequence[Rule], units: Sequence[Unit]) -> Diff:
    """The table of what `rules` do to `layers`."""
    of = {layer.path: unit for unit in units for layer in unit.layers}
    changes = [_change(layer, first_match(rules, layer.path, *layer.others), of.get(layer.path)) for layer in layers]
    used = {id(first_match(rules, layer.path, *layer.others)) for layer in layers}
    return Diff(tuple(changes), tuple(rule.pattern for rule in rules if id(rule) not in used))


def _change(layer: Layer, rule: Rule | None, unit: Unit | None) -> Change:
    arrays = [a for a in (layer.kernel, layer.bias) if a is not None]
    before = sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in arrays)
    if unit is None:
        reason = layer.reason if rule is not None and not rule.skip else ""
        reason = reason or ("no rule matches" if rule is None else f"skipped by {rule.pattern!r}")
        return Change(layer.path, layer.kind, layer.shape, None, 0, reason, before, before)
    assert layer.form is not None
    stacked = max(layer.steps, 1) * layer.form.groups
    product, size = unit.choice
    d, m = layer.shape
    after = stacked * {CODES: m * (size * LEAVES + 8), INT8: m * (d + 8), LOW_RANK: 4 * (size * (d + m) + m)}[product]
    after += stacked * 4 * m * d if unit.rule.needs_kernel else 0
    others = [other.path for other in unit.layers if other is not layer]
    reason = f"one op with {', '.join(others)}" if others else ""
    return Change(layer.path, layer.kind, layer.shape, product, size, reason, before, after)


def _name(change: Change) -> str:
    return {None: "", CODES: f"C = {change.size}", LOW_RANK: f"rank {change.size}"}.get(change.product, INT8)
