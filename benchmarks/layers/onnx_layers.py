"""Matrix products of an ONNX model: dense layers and convolutions with weights that don't depend on its inputs.

Packages for such models are imported where they are needed, so that this module can be imported without them.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.layers.patches import Window, matrix, outputs_at, patches
from benchmarks.layers.sampled import Layer, why_not

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Feed = Mapping[str, np.ndarray]
"""Inputs of a model by name; the first has the batch in its first dimension."""


@dataclasses.dataclass(frozen=True)
class Tap:
    """A node that multiplies: the tensors `x` and `y`, by name, and between them `w` and, if there is one, `b`."""

    name: str
    x: str
    y: str
    w: np.ndarray
    b: np.ndarray | None
    window: Window | None

    @classmethod
    def of(cls, node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> Tap:
        """Returns the tap of a node."""
        attributes = _attributes(node)
        w = constants[node.input[1]]
        window = _window(attributes, w.shape[2:]) if node.op_type == "Conv" else None
        if window or attributes.get("transB", 0):
            w = matrix(w)
        b = constants[node.input[2]].reshape(-1) if len(node.input) > 2 and node.input[2] else None
        # The names that converters make can be lists of all that was merged into the node.
        return cls((node.name or node.output[0]).split(";")[0], node.input[0], node.output[0], w, b, window)

    def layer(self) -> Layer:
        """Returns the layer without rows."""
        is_patches = self.window is not None and math.prod(self.window.taps) > 1
        b = None if self.b is None else self.b.astype(np.float32)
        return Layer(self.name, self.w.astype(np.float32), b, is_patches)

    def rows(self, x: np.ndarray, y: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows of the product and its outputs at some positions of the tensors."""
        if self.window is None:
            return x.reshape(-1, x.shape[-1])[positions], y.reshape(-1, y.shape[-1])[positions]
        return patches(x, self.window, positions), outputs_at(y, positions)


class Tapped:
    """A model whose products are read while it runs."""

    def __init__(self, name: str, model: onnx.ModelProto, example: Feed) -> None:
        """Takes a model, with layers that are ready to be sampled; says on stderr which are left out.

        Args:
          name: the name of the model, for what is said.
          model: the model.
          example: an input, with which the model runs once: weights can be computed, from constants.
        """
        nodes = list(_products(model.graph))
        constants = _constants(model, {name for node in nodes for name in node.input[1:] if name}, example)
        self.taps: list[tuple[Tap, Layer]] = []
        known: set[str] = set()
        for tap in (Tap.of(node, constants) for node in nodes):
            reason = why_not(tap.w, known)
            if reason:
                print(f"{name}: {tap.name} is left out: {reason}.", file=sys.stderr)
            else:
                self.taps.append((tap, tap.layer()))
        self._names = sorted({name for tap, _ in self.taps for name in (tap.x, tap.y)})
        self._session = _session(model, self._names)

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order in which they run."""
        return [layer for _, layer in self.taps]

    def run(self, feed: Feed, split: str, wanted: int) -> None:
        """Runs the model on a batch and samples `wanted` rows of every layer."""
        tensors = dict(zip(self._names, self._session.run(self._names, dict(feed)), strict=True))
        batch = len(next(iter(feed.values())))
        for tap, layer in self.taps:
            x, y = tensors[tap.x], tensors[tap.y]
            available = y.size // tap.w.shape[1]

            def read(
                positions: np.ndarray, tap: Tap = tap, x: np.ndarray = x, y: np.ndarray = y
            ) -> tuple[np.ndarray, np.ndarray]:
                return tap.rows(x, y, positions)

            layer.sample(split, available, batch, wanted, read)


def _products(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yields the nodes that multiply what depends on the inputs of the graph by what does not."""
    variable = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # they are in an order in which they can run
        if _is_product(node) and node.input[0] in variable and not variable & set(node.input[1:]):
            yield node
        if _reads(node, variable):
            variable.update(node.output)


def _is_product(node: onnx.NodeProto) -> bool:
    attributes = _attributes(node)
    if node.op_type == "Gemm":
        factors = (attributes.get("alpha", 1.0), attributes.get("beta", 1.0))
        return not attributes.get("transA", 0) and factors == (1.0, 1.0)
    return node.op_type == "MatMul" or (node.op_type == "Conv" and attributes.get("group", 1) == 1)


def _reads(node: onnx.NodeProto, names: set[str]) -> bool:
    """Returns whether a node, or a branch or a loop in it, reads one of these tensors."""
    graphs = [a.g for a in node.attribute if a.HasField("g")]
    return not names.isdisjoint(node.input) or any(_reads(inner, names) for graph in graphs for inner in graph.node)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx.helper

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _window(attributes: Mapping[str, Any], taps: tuple[int, ...]) -> Window:
    ones, zeros = [1] * len(taps), [0] * 2 * len(taps)
    pads = attributes.get("pads", zeros)
    return Window(
        taps,
        tuple(attributes.get("strides", ones)),
        tuple(attributes.get("dilations", ones)),
        tuple(zip(pads[: len(taps)], pads[len(taps) :], strict=True)),
        attributes.get("auto_pad", b"NOTSET").decode(),
    )


def _constants(model: onnx.ModelProto, names: set[str], example: Feed) -> dict[str, np.ndarray]:
    """Returns the values of tensors that don't depend on the inputs: of the file, or read while the model runs."""
    import onnx.numpy_helper

    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in names}
    computed = sorted(names - values.keys())
    if computed:
        values |= zip(computed, _session(model, computed).run(computed, dict(example)), strict=True)
    return values


def _session(model: onnx.ModelProto, names: Iterable[str]) -> onnxruntime.InferenceSession:
    """Returns a session, of one thread, in which more tensors can be read."""
    import onnx
    import onnxruntime

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
