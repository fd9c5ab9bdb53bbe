"""prune_unused_outputs: earlier layers stop computing outputs that no replaced layer reads.

An op whose trees are axis-aligned reads at most 4 features per codebook. The model is traced; from the input of such a
layer all values that share its axis of features are followed (`pruning/span.py`), up to the layers that make them. If
every step on the way keeps features apart, these layers lose their other outputs, norms and biases their entries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core import arguments
from jax_maddness.nn.layers.promotion import with_standard_promotion
from jax_maddness.nn.models.model import Model, adapt, layers_of
from jax_maddness.nn.pruning.narrow import (
    features_read,
    why_all_are_read,
    why_all_are_written,
    with_features,
    with_outputs,
)
from jax_maddness.nn.pruning.span import FROM, INTO, Span, UsedError, mark, marked
from jax_maddness.nn.pruning.trace import Step, trace

_EXACT = ("Linear", "Dense", "Conv")
"""The kinds of exact layers that can lose outputs."""


@dataclasses.dataclass(frozen=True)
class Narrowed:
    """A layer that computes less than before.

    Attributes:
      path: of the layer.
      readers: the replaced layers that read its outputs.
      outputs: their number, before and after.
      work: for a row, multiply-adds of an exact layer or look-ups of a replaced one; before and after.
      nbytes: of its arrays; before and after.
      exact: whether it is an exact layer.
    """

    path: str
    readers: tuple[str, ...]
    outputs: tuple[int, int]
    work: tuple[int, int]
    nbytes: tuple[int, int]
    exact: bool


@dataclasses.dataclass(frozen=True)
class PruneReport:
    """The changes that `prune_unused_outputs` made: `print` it.

    Attributes:
      narrowed: the layers that compute less.
      stays: by path, replaced layers whose inputs are computed as before, and the reasons.
    """

    narrowed: tuple[Narrowed, ...]
    stays: Mapping[str, str]

    def __str__(self) -> str:
        lines = ["| layer | read by | outputs | work for a row | bytes |", "|---|---|---|---|---|"]
        for layer in self.narrowed:
            outputs, work, nbytes = (f"{a:,} -> {b:,}" for a, b in (layer.outputs, layer.work, layer.nbytes))
            unit = "multiply-adds" if layer.exact else "look-ups"
            lines.append(f"| {layer.path} | {', '.join(layer.readers)} | {outputs} | {work} {unit} | {nbytes} |")
        return "\n".join([*lines, *(f"Before {path or 'the model'!r}: {why}." for path, why in self.stays.items())])


@with_standard_promotion
def prune_unused_outputs(
    model: Any, batch: Any, *, call: Callable[[Any, Any], Any] | None = None, return_report: bool = False
) -> Any:
    """Returns a copy of a replaced model whose earlier layers stop computing outputs that nothing reads.

    An op of `FitConfig("axis")` or `"paper"` compares at most 4 features per codebook. If every layer that reads an
    array is replaced by such ops, the layers that make it, exact or replaced, lose the other outputs. Between them
    there may be any steps that keep features apart: activations, sums, BatchNorm in the mode for use, pooling over
    positions. LayerNorm, softmax and reshapes of features do not: layers before them stay.

    The results are unchanged, except that a product may round differently with fewer columns: a feature that is within
    rounding of a threshold may get another code. Prune last: `finetune` takes no pruned model.

    Args:
      model: the result of `replace`, `finetune` or `load_model`; it stays as it is.
      batch: one input of the model; only its shapes count.
      call: `call(model, batch)` runs the model, if `model(batch)` does not.
      return_report: return `(model, report)`, with a `PruneReport`.

    Returns:
      A model of the same kind. `save_model` takes it.

    Raises:
      TypeError: `model` is none of Flax's.
      ValueError: No layer of it is replaced, it does not take the batch, or every output is used; the message gives the
        reason for every replaced layer.

    Example:
      Learning takes seconds::

          rules = [Rule("second", num_codebooks=4, config=FitConfig("axis"))]
          fast = jax_maddness.replace(model, rules, batches)
          small, report = jax_maddness.prune_unused_outputs(fast, batches[0], return_report=True)
          print(report)  # the first layer computes at most 16 outputs
    """
    return_report = arguments.flag(return_report, "return_report")
    pruning = _Pruning(adapt(model, call), batch)
    if not pruning.specs:
        raise ValueError("No layer of `model` is replaced: all of it is computed. Pass what `replace` returned.")
    report = pruning.run()
    if not report.narrowed:
        raise ValueError("Every output of every layer is used, as far as can be seen:\n" + str(report))
    return (pruning.model.model, report) if return_report else pruning.model.model


class _Pruning:
    """One call of `prune_unused_outputs`; `model` and `specs` are the latest ones."""

    def __init__(self, model: Model, batch: Any):
        self.model, self._batch = model, batch
        self.specs = model.specs()
        self._exact = {layer.path: layer for layer in layers_of(model, batch, "`batch`")}
        ops = model.op_places()
        self._ops = {path: ops[spec.owner] for path, spec in self.specs.items()}
        hooks = {path: marked(path) for path in (*self.specs, *self._exact)}
        self._traced = trace(lambda named, batch: model.outputs(named, batch, hooks, True), model.arrays(), batch)

    def run(self) -> PruneReport:
        """Prunes before one replaced layer after the other; those that read the same features are done together."""
        narrowed: list[Narrowed] = []
        stays: dict[str, str] = {}
        done: set[str] = set()
        for path in self.specs:
            if path in done:
                continue
            try:
                span, layers = self._before(path)
            except UsedError as error:
                stays[path] = str(error)
            else:
                done.update(span.readers)
                narrowed += layers
        return PruneReport(tuple(narrowed), stays)

    def _before(self, path: str) -> tuple[Span, list[Narrowed]]:
        """Narrows the layers that make the input of a replaced layer.

        Raises:
          UsedError: All features of the input must be computed.
        """
        self._check_reader(path)
        calls = self._marks(INTO, path)
        if not calls:
            raise UsedError("it is in a scan or a branch, which are not followed")
        read = calls[0].inputs[0]
        span = Span.of(self._traced, read)
        if not span.writers:
            raise UsedError("no layer makes what it reads")
        for reader in span.readers:
            self._check_reader(reader)
        for writer in span.writers:
            self._check_writer(writer)
        self._check_calls(span)
        before = {writer: self._size(writer) for writer in span.writers}
        self._narrow(span, read.shape[-1])
        return span, [self._narrowed(path, span, size) for path, size in before.items()]

    def _narrowed(self, path: str, span: Span, before: tuple[int, int, int]) -> Narrowed:
        outputs, work, nbytes = zip(before, self._size(path), strict=True)
        return Narrowed(path, tuple(span.readers), outputs, work, nbytes, path in self._exact)

    def _marks(self, where: str, path: str) -> list[Step]:
        """Returns the steps that mark the calls of a layer, before (INTO) or after it (FROM)."""
        return [step for step in self._traced.steps if mark(step) == (where, path)]

    def _check_reader(self, path: str) -> None:
        if path not in self.specs:
            raise UsedError(f"{path!r}, which is exact, reads the same features")
        if why := why_all_are_read(self.specs[path], self._op(path)):
            raise UsedError(f"{path!r} reads it, and {why}")

    def _check_writer(self, path: str) -> None:
        layer, spec = self._exact.get(path), self.specs.get(path)
        if spec is not None and not spec.has_tables:
            why = f"is a product, in {spec.trees}, which is left as it is"
        elif spec is not None:
            why = why_all_are_written(spec.form, spec.steps, spec.part)
        elif layer is None or layer.form is None or layer.kind not in _EXACT:
            why = f"is of type {layer.kind if layer else '?'}, which is left as it is"
        else:
            why = why_all_are_written(layer.form, layer.steps, None)
            why = why or ("has a mask" if getattr(layer.module, "mask", None) is not None else "")
        if why:
            raise UsedError(f"{path!r}, which makes what it reads, {why}")

    def _check_calls(self, span: Span) -> None:
        """Raises unless all calls of the layers are in the span, and nothing else uses their arrays."""
        for where, ends in ((INTO, span.readers), (FROM, span.writers)):
            for path, steps in ends.items():
                if len(steps) != len(self._marks(where, path)):
                    raise UsedError(f"{path!r} is called elsewhere, too, with other features")
        order = {step: i for i, step in enumerate(self._traced.steps)}
        for path in span.writers:
            # A step between the two marks of a call is a part of the layer.
            calls = [[order[step] for step in self._marks(where, path)] for where in (INTO, FROM)]
            for place in self._arrays_of(path):
                used = self._traced.used_by.get(self._traced.arguments[place], [])
                if not all(any(a < order[step] < b for a, b in zip(*calls, strict=True)) for step in used):
                    raise UsedError(f"{place!r} is used outside of its layer")

    def _arrays_of(self, path: str) -> list[str]:
        """Returns the places of a layer's arrays."""
        return list(self._ops[path].values()) if path in self.specs else self.model.layer_places(path)

    def _op(self, path: str, arrays: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns the arrays of a replaced layer by name, from `arrays` or from the latest model."""
        arrays = self.model.arrays() if arrays is None else arrays
        return {name: arrays[place] for name, place in self._ops[path].items()}

    def _size(self, path: str) -> tuple[int, int, int]:
        """Returns the outputs of a layer, its work for a row, and its bytes."""
        model_arrays = self.model.arrays()
        arrays = [model_arrays[place] for place in self._arrays_of(path)]
        nbytes = sum(a.size * a.dtype.itemsize for a in arrays)
        if path in self.specs:
            outputs, codebooks = self._op(path)["tables_values"].shape[-3:-1]
            return outputs, outputs * codebooks, nbytes
        return arrays[0].shape[-1], arrays[0].size, nbytes

    def _narrow(self, span: Span, features: int) -> None:
        """Leaves out the features that no reader compares.

        Raises:
          UsedError: There are none, or the model's code does not take fewer.
        """
        read = [features_read(self.specs[path], self._op(path), features) for path in span.readers]
        kept = np.array(list(dict.fromkeys(np.concatenate(read).tolist())), np.int32)
        if len(kept) == features:
            raise UsedError("it reads all features")
        arrays, specs = dict(self.model.arrays()), dict(self.specs)
        for value, axis in span.axes.items():
            if value.place is not None:  # an array of the model, such as the scale of a norm
                arrays[value.place] = jnp.take(arrays[value.place], kept, axis)
        for path in span.readers:
            specs[path], changed = with_features(specs[path], self._op(path), kept, features)
            arrays.update({self._ops[path][name]: array for name, array in changed.items()})
        for path in span.writers:
            if path in specs:  # perhaps one of the readers, too
                specs[path], changed = with_outputs(specs[path], self._op(path, arrays), kept)
                arrays.update({self._ops[path][name]: array for name, array in changed.items()})
            else:
                arrays.update({place: jnp.take(arrays[place], kept, -1) for place in self._arrays_of(path)})
        model = self.model.narrowed(specs, arrays)
        self._check_shapes(model)
        self.model, self.specs = model, specs

    def _check_shapes(self, model: Model) -> None:
        """Raises if the narrowed model's outputs have other shapes: its code may contain the number of features."""

        def shapes(model: Model) -> Any:
            outputs = jax.eval_shape(model.outputs, model.arrays(), self._batch)
            return jax.tree.map(lambda a: (a.shape, a.dtype), outputs)

        before = shapes(self.model)
        try:
            after = shapes(model)
        except Exception as error:
            raise UsedError(f"the model's code does not take fewer features: {error}") from error
        if before != after:
            raise UsedError("the model's code makes outputs of other shapes of fewer features")
