"""Units: the layers that get one op. One layer each, or several layers that read the same array."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from jax_maddness.learn.config import FitConfig
from jax_maddness.nn.layers.form import Form
from jax_maddness.nn.layers.kinds import CODES, FACTORS, INT8, REWRITTEN, TOP
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.rules import Rule


@dataclasses.dataclass(frozen=True)
class Unit:
    """Layers that get one op: one layer, or several layers with the same input.

    Attributes:
      layers: in the order of their calls.
      rule: decides how the op is learned; with several layers, the rule of the first.
    """

    layers: tuple[Layer, ...]
    rule: Rule

    @property
    def first(self) -> Layer:
        """The first layer. All others have the same input, and so the same rows."""
        return self.layers[0]

    @property
    def form(self) -> Form:
        """The form of the first layer."""
        assert self.first.form is not None  # rules never choose layers without one
        return self.first.form

    @property
    def steps(self) -> int:
        """Number of steps of the scan that the layers are in; 0: they are in none."""
        return self.first.steps

    @property
    def learns(self) -> bool:
        """Whether the product of the rule is learned from rows; int8 and rewritten products are made from weights."""
        return self.choice[0] not in (INT8, REWRITTEN)

    @property
    def owner(self) -> str:
        """Place of the op's arrays: the path of the layer, or the layers' parent and joined names."""
        if len(self.layers) == 1:
            return self.first.path
        joined = "+".join(layer.path.rpartition("/")[2] for layer in self.layers)
        return f"{self.first.parent}/{joined}" if self.first.parent else joined

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the layers."""
        return tuple(layer.path for layer in self.layers)

    @property
    def shape(self) -> tuple[int, int]:
        """[D, M] of a group's product, with M of all layers together."""
        return self.first.shape[0], sum(layer.shape[1] for layer in self.layers)

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The axes over which the unit's ops are stacked: [steps, groups], each only where there is such an axis."""
        return (*[self.steps] * bool(self.steps), *[self.form.groups] * (self.form.groups > 1))

    @property
    def rows_per_call(self) -> int:
        """The largest number of rows of a call of the first layer in the first batch, in one step of a scan."""
        per_row = self.first.shape[1] * self.form.groups
        return max(call.y.size // per_row for call in self.first.calls)

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks C of the op; for a convolution, of the codes that a whole patch sees."""
        return self.rule.codebooks(self.shape[0])

    @property
    def config(self) -> FitConfig:
        """Decides how the op is learned. Factors of full rank are the whole product in int8, where no ops are stacked.

        Stacked ops are of one kind, but each of them would choose its own rounding of rows.
        """
        config = self.rule.config
        if self.rule.product != FACTORS:
            return config
        rank = self.rule.size(self.shape)
        whole = rank == min(self.shape) and not self.stack_shape
        return FitConfig("int8", seed=config.seed) if whole else FitConfig("paper", rank=rank, seed=config.seed)

    @property
    def choice(self) -> tuple[str, int]:
        """The kind of product that replaces the layers, and its size."""
        return self.rule.product, self.rule.size(self.shape)

    @property
    def w(self) -> np.ndarray:
        """The weights, [steps or 1, groups, D, M of all layers], in float32."""
        return np.concatenate([layer.weights() for layer in self.layers], -1)

    @property
    def bias(self) -> np.ndarray:
        """The biases, [steps or 1, groups, M of all layers], in float32."""
        return np.concatenate([layer.biases() for layer in self.layers], -1)


def units(chosen: Sequence[tuple[Layer, Rule]]) -> list[Unit]:
    """Groups layers that read the same array, in the order of their first calls.

    Args:
      chosen: the layers that are to be replaced, each with its rule.

    Raises:
      ValueError: A rule asks for something that its layer does not have.
    """
    by_input: dict[Hashable, list[tuple[Layer, Rule]]] = {}
    for layer, rule in chosen:
        _validate(layer, rule)
        shares = rule.share and rule.product != TOP and not layer.is_table
        by_input.setdefault(_input_key(layer) if shares else layer.path, []).append((layer, rule))
    return [Unit(tuple(layer for layer, _ in group), group[0][1]) for group in by_input.values()]


def _validate(layer: Layer, rule: Rule) -> None:
    """Raises unless the layer can be replaced as the rule says."""
    assert layer.form is not None
    if rule.product == REWRITTEN and not layer.form.can_rewrite(layer.shape[0]):
        raise ValueError(
            f"{layer.path!r} is no depthwise or 1x1 convolution, as product 'rewritten' of {rule.pattern!r} requires. "
            "Put a rule before it that skips this layer, or call `plan`, which finds the layers that can be rewritten."
        )
    if rule.product not in (CODES, FACTORS, REWRITTEN) and layer.form.groups > 1:
        raise ValueError(
            f"{layer.path!r} has several groups, as look-ups and factors may have, but not {rule.product}."
        )
    if rule.product == TOP and layer.steps:
        raise ValueError(
            f"{layer.path!r} is in a scan or a vmap, which does not support `top`. Give it a rule without it."
        )
    if rule.needs_kernel and (layer.steps or layer.form.groups > 1):
        raise ValueError(
            f"{layer.path!r} is in a scan or has several groups, which support neither `exact_rows` nor "
            "`num_candidates`. Give it a rule without these, before the others."
        )
    if rule.needs_kernel and rule.num_candidates is not None and not layer.form.has_positions:
        raise ValueError(f"{layer.path!r} is no convolution, as `num_candidates` of {rule.pattern!r} requires.")


def _input_key(layer: Layer) -> Hashable:
    """Returns a key that is equal for layers whose rows are the same."""
    assert layer.form is not None
    rows = layer.form.input_key()
    if rows is None or len(layer.calls) != 1:  # of several calls, each may read another array
        return layer.path
    # Identity of the traced array tells that it is the same input.
    return layer.parent, id(layer.calls[0].x), *rows, layer.dtype, layer.param_dtype, layer.steps
