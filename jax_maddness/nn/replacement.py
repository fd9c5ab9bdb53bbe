"""Replacements: the arrays that compute a unit's layers in place of their kernels, and how they enter a model."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jax_maddness.core.types import MaddnessOp
from jax_maddness.nn.layers import exact_kernel as exact_kernels
from jax_maddness.nn.layers.approximate import Spec, to_arrays
from jax_maddness.nn.layers.exact_kernel import ExactKernel
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.units import Unit


class Replacement(abc.ABC):
    """Computes a unit's layers, approximately."""

    @property
    @abc.abstractmethod
    def spec_kind(self) -> str:
        """The value of `Spec.trees`."""

    @property
    def num_features(self) -> int | None:
        """Features that trees were learned from; None where there are no trees."""
        return None

    @property
    def shares_codes(self) -> bool:
        """Whether the codes of a position are shared among a convolution's taps."""
        return False

    @abc.abstractmethod
    def arrays(self) -> dict[str, jax.Array]:
        """Returns the arrays by name, as modules hold them."""

    @abc.abstractmethod
    def with_kernel(self, unit: Unit) -> Replacement:
        """Adds the unit's exact kernel, for gradients, to look-ups that were learned with `keep_weights=False`."""


@dataclasses.dataclass(frozen=True)
class CodesReplacement(Replacement):
    """Look-ups.

    Attributes:
      op: stacked over the steps of a scan and over groups, where there are several.
      shares_codes: the codes of a position are shared among a convolution's taps.
      exact_kernel: for exact products, where the rule asks for any.
    """

    op: MaddnessOp
    shares_codes: bool = False
    exact_kernel: ExactKernel | None = None

    @property
    def spec_kind(self) -> str:
        return type(self.op.trees).__name__

    @property
    def num_features(self) -> int | None:
        return self.op.num_features

    def arrays(self) -> dict[str, jax.Array]:
        return {**to_arrays(self.op), **exact_kernels.to_arrays(self.exact_kernel)}

    def with_kernel(self, unit: Unit) -> CodesReplacement:
        w = unit.w
        weights = jnp.asarray(w.reshape(*unit.stack_shape, *w.shape[2:]))
        return dataclasses.replace(self, op=dataclasses.replace(self.op, weights=weights))


@dataclasses.dataclass(frozen=True)
class ProductReplacement(Replacement):
    """An int8, low-rank or rewritten product, or the greatest outputs of a layer.

    Attributes:
      kind: `"int8"`, `"low rank"`, `"rewritten"` or `"top outputs"`.
      product: its arrays by name, stacked over the steps of a scan, as `learn_product` returns them.
    """

    kind: str
    product: Mapping[str, jax.Array]

    @property
    def spec_kind(self) -> str:
        return self.kind

    def arrays(self) -> dict[str, jax.Array]:
        return dict(self.product)

    def with_kernel(self, unit: Unit) -> ProductReplacement:
        del unit  # gradients pass through these products without it
        return self


def specs_of(unit: Unit, replacement: Replacement) -> dict[str, Spec]:
    """Returns, by path, the static facts of each layer of the unit once it is replaced."""
    specs, start = {}, 0
    for layer in unit.layers:
        assert layer.form is not None
        part = (start, start + layer.shape[1]) if len(unit.layers) > 1 else None
        start += layer.shape[1]
        specs[layer.path] = Spec(
            form=layer.form,
            dtype=layer.dtype,
            param_dtype=layer.param_dtype,
            owner=unit.owner,
            trees=replacement.spec_kind,
            num_features=replacement.num_features,
            shared=replacement.shares_codes,
            steps=layer.steps,
            part=part,
            exact_rows=unit.rule.exact_rows,
            num_candidates=unit.rule.num_candidates,
            top=unit.rule.top,
            keeps_kernel=layer.keeps_kernel,
        )
    return specs


def with_replacements(model: Model, units: Sequence[Unit], replacements: Sequence[Replacement]) -> Model:
    """Returns a copy of the model in which each unit is computed by its replacement."""
    pairs = list(zip(units, replacements, strict=True))
    specs = {path: spec for unit, replacement in pairs for path, spec in specs_of(unit, replacement).items()}
    return model.replaced(specs, {unit.owner: replacement.arrays() for unit, replacement in pairs})
