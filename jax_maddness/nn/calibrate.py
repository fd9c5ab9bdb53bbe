"""rows that layers saw -> ops: one for each layer that is replaced, or one for layers that read the same array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core.amm import amm
from jax_maddness.core.types import MaddnessOp, ObliqueTrees
from jax_maddness.learn import validate
from jax_maddness.learn.data.rows import Rows
from jax_maddness.learn.fit import FitConfig, learn
from jax_maddness.learn.fit_taps import first_tap, fit_taps
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.refit import refit_tables
from jax_maddness.nn.capture import Captured, record
from jax_maddness.nn.layers import exact_kernel
from jax_maddness.nn.layers.approximate import Spec, to_arrays
from jax_maddness.nn.layers.exact_kernel import ExactKernel, fit_exact_kernel
from jax_maddness.nn.layers.form import Form
from jax_maddness.nn.layers.int8_low_rank import learn_product
from jax_maddness.nn.layers.kinds import CODES
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.rules import Rule

if TYPE_CHECKING:
    from jaxtyping import Float

HELD_OUT_SHARE = 0.15
"""Share of the rows on which "shared" and "patches" are compared."""
CLOSE = 1.05
"""Codes are shared among taps unless patches have an error smaller by more than this factor."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """Layers that get one op: one layer, or several with the same input."""

    layers: tuple[Layer, ...]
    rule: Rule

    @property
    def owner(self) -> str:
        """Where the op's arrays are."""
        first = self.layers[0]
        if len(self.layers) == 1:
            return first.path
        joined = "+".join(layer.path.rpartition("/")[2] for layer in self.layers)
        return f"{first.parent}/{joined}" if first.parent else joined

    @property
    def paths(self) -> tuple[str, ...]:
        """Of its layers."""
        return tuple(layer.path for layer in self.layers)

    @property
    def shape(self) -> tuple[int, int]:
        """[D, M of all]."""
        return self.layers[0].shape[0], sum(layer.shape[1] for layer in self.layers)

    @property
    def num_codebooks(self) -> int:
        """C of the op: for a convolution of patches, whichever way it is encoded."""
        return self.rule.codebooks(self.layers[0].shape[0])

    @property
    def choice(self) -> tuple[str, int]:
        """The kind of product, and its size."""
        return self.rule.product, self.rule.size((self.layers[0].shape[0], self.shape[1]))

    @property
    def w(self) -> np.ndarray:
        """[steps or 1, groups, D, M of all]."""
        return np.concatenate([layer.weights() for layer in self.layers], -1)

    @property
    def bias(self) -> np.ndarray:
        """[steps or 1, groups, M of all]."""
        return np.concatenate([layer.biases() for layer in self.layers], -1)


def units(chosen: Sequence[tuple[Layer, Rule]]) -> list[Unit]:
    """Layers that read the same array together, in the order of their first calls."""
    found: dict[Any, list[tuple[Layer, Rule]]] = {}
    for layer, rule in chosen:
        _check(layer, rule)
        found.setdefault(_reads(layer) if rule.share else layer.path, []).append((layer, rule))
    return [Unit(tuple(layer for layer, _ in group), group[0][1]) for group in found.values()]


def _check(layer: Layer, rule: Rule) -> None:
    assert layer.form is not None
    if rule.product != CODES and layer.form.groups > 1:
        raise ValueError(f"{layer.path!r} has several groups, which only look-ups can replace, not {rule.product}.")
    if rule.needs_kernel and (layer.steps or layer.form.groups > 1):
        raise ValueError(
            f"{layer.path!r} is in a scan or has several groups, where there is neither `exact_rows` nor "
            f"`num_candidates`. "
            "Give it a rule without these, before the others."
        )
    if rule.num_candidates is not None and not layer.form.has_positions:
        raise ValueError(f"{layer.path!r} is no convolution, as `num_candidates` of {rule.pattern!r} wants it.")


def _reads(layer: Layer) -> Any:
    """Equal for layers whose rows are the same; a layer that is called more than once is alone."""
    assert layer.form is not None
    rows = layer.form.input_key()
    if rows is None or len(layer.calls) != 1:
        return layer.path
    return layer.parent, id(layer.calls[0].x), *rows, layer.dtype, layer.param_dtype, layer.steps


class Learned(NamedTuple):
    """What stands in for a unit.

    Attributes:
      op: stacked over steps and groups where there are several.
      shared: it shares codes among taps.
      exact_kernel: what exact products need, where the rule wants any.
    """

    op: MaddnessOp
    shared: bool
    exact_kernel: ExactKernel | None = None

    def arrays(self) -> dict[str, jax.Array]:
        """By name, as modules hold them."""
        return {**to_arrays(self.op), **exact_kernel.to_arrays(self.exact_kernel)}


class Product(NamedTuple):
    """An int8 or low-rank product in place of look-ups."""

    kind: str
    held: dict[str, jax.Array]

    def arrays(self) -> dict[str, jax.Array]:
        """By name, as modules hold them."""
        return self.held


StandIn = Learned | Product


def independent(found: Captured, to_learn: Sequence[Unit], keep_weights: bool, progress: bool | None) -> list[StandIn]:
    """Each op from what its layer saw in the exact model."""
    with Progress(progress, "learn") as bar:
        return [learn_unit(unit, found.rows[unit.layers[0].path], keep_weights, bar) for unit in to_learn]


def on_prefix(
    model: Model,
    found: Captured,
    to_learn: Sequence[Unit],
    batches: Callable[[], Iterator[Any]],
    keep_weights: bool,
    limits: tuple[int, int],
    progress: bool | None,
) -> list[StandIn]:
    """Each op from what its layer sees where all before it are replaced, and for the exact model's values.

    `found` has the same rows of the exact model.
    """
    current, ops = model, list[StandIn]()
    with Progress(progress, "learn") as bar:
        for unit in to_learn:
            path = unit.layers[0].path
            drifted = record(current, unit.layers[:1], batches(), *limits, progress=False).rows[path]
            learned = learn_unit(unit, drifted, keep_weights, bar, exact=found.rows[path])
            ops.append(learned)
            current = current.replaced(specs_of(unit, learned), {unit.owner: learned.arrays()})
    return ops


def learn_unit(
    unit: Unit, rows: Sequence[np.ndarray], keep_weights: bool, bar: Progress, exact: Sequence[np.ndarray] | None = None
) -> StandIn:
    """The op for one unit, or the product.

    Args:
      unit: what is to be learned.
      rows: `[rows, groups, D]` for each step.
      keep_weights: keep the kernel in the op, for gradients.
      bar: shows progress.
      exact: the same rows in the exact model, whose products are what is wanted; None: `rows` are these.
    """
    form, config, w, bias = unit.layers[0].form, unit.rule.config, unit.w, unit.bias
    assert form is not None
    kind, size = unit.choice
    if kind != CODES:
        return Product(kind, learn_product(kind, size, rows, w, bias, unit.layers[0].steps))
    kernel = None
    if unit.rule.needs_kernel:
        kernel, usual = fit_exact_kernel(rows[0][:, 0], w[0, 0], bias[0, 0], form, unit.rule.exact_rows)
        rows, exact = [rows[0][usual]], None if exact is None else [exact[0][usual]]
    shared = form.taps > 1 and _shares(unit, form, rows, bar)
    ops = []
    for step, group in np.ndindex(*w.shape[:2]):
        x, one_w, one_bias = rows[step][:, group], w[step, group], bias[step, group]
        op = _learn_one(x, one_w, one_bias, unit.num_codebooks, form, shared, config, bar)
        if exact is not None:
            op = refit_tables(op, x, exact[step][:, group] @ one_w + one_bias)
        if config.method == "auto":  # ops that are stacked have trees of one kind
            config = dataclasses.replace(config, method="oblique" if isinstance(op.trees, ObliqueTrees) else "axis")
        op = first_tap(op, form.taps) if shared else op
        ops.append(dataclasses.replace(op, weights=jnp.asarray(one_w)) if keep_weights else op)
    return Learned(_stacked(ops, unit.layers[0].steps, form.groups), shared, kernel)


def with_kernel(unit: Unit, learned: StandIn) -> StandIn:
    """What was learned without `keep_weights`, as it is with it."""
    if isinstance(learned, Product):
        return learned
    form, steps = unit.layers[0].form, unit.layers[0].steps
    assert form is not None
    lead = (*[steps] * bool(steps), *[form.groups] * (form.groups > 1))
    weights = jnp.asarray(unit.w.reshape(*lead, *unit.w.shape[2:]))
    return learned._replace(op=dataclasses.replace(learned.op, weights=weights))


def _stacked(ops: list[MaddnessOp], steps: int, groups: int) -> MaddnessOp:
    def stack(*arrays: jax.Array) -> jax.Array:
        lead = (*[steps] * bool(steps), *[groups] * (groups > 1))
        return jnp.stack(arrays).reshape(*lead, *arrays[0].shape)

    return jax.tree.map(stack, *ops)


def _learn_one(
    x: Float[np.ndarray, "rows features"],
    w: Float[np.ndarray, "features outputs"],
    bias: Float[np.ndarray, " outputs"],
    num_codebooks: int,
    form: Form,
    shared: bool,
    config: FitConfig,
    bar: Progress,
) -> MaddnessOp:
    w, bias = validate.product(x.shape[1], w, bias)
    if not shared:
        return learn(Rows.of(np.ascontiguousarray(x)), w, bias, num_codebooks, config, bar)
    each = min(max(1, num_codebooks // form.taps), x.shape[1] // form.taps)
    return fit_taps(np.ascontiguousarray(x), w, bias, form.taps, each, config, bar)


def _shares(unit: Unit, form: Form, rows: Sequence[np.ndarray], bar: Progress) -> bool:
    """Whether codes of positions serve as well as those of patches, judged on the first op's held-out rows."""
    if unit.rule.conv != "auto":
        return unit.rule.conv == "shared"
    x, w, bias = rows[0][:, 0], unit.w[0, 0], unit.bias[0, 0]
    order = np.random.default_rng(0).permutation(len(x))
    held_out, train = np.split(order, [min(max(1, round(HELD_OUT_SHARE * len(x))), len(x) - 1)])
    errors = []
    for shared in (True, False):
        op = _learn_one(x[train], w, bias, unit.num_codebooks, form, shared, unit.rule.config, bar)
        errors.append(float(np.mean((np.asarray(amm(jnp.asarray(x[held_out]), op)) - x[held_out] @ w - bias) ** 2)))
    return errors[0] <= CLOSE * errors[1]


def specs_of(unit: Unit, learned: StandIn) -> dict[str, Spec]:
    """How each layer of the unit is replaced."""
    found, start = {}, 0
    for layer in unit.layers:
        assert layer.form is not None
        part = (start, start + layer.shape[1]) if len(unit.layers) > 1 else None
        start += layer.shape[1]
        kind, size, shared = (
            (learned.kind, None, False)
            if isinstance(learned, Product)
            else (type(learned.op.trees).__name__, learned.op.num_features, learned.shared)
        )
        spec = Spec(layer.form, layer.dtype, layer.param_dtype, unit.owner, kind, size, shared, layer.steps, part)
        rule = unit.rule
        found[layer.path] = dataclasses.replace(spec, exact_rows=rule.exact_rows, num_candidates=rule.num_candidates)
    return found
