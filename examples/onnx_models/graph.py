"""An ONNX graph as plain Python: nodes, constants, names. Constant arithmetic after a product is folded into it."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("Conv", "MatMul", "Gemm")
"""Operations that are products with a kernel, if their second input is constant."""


@dataclasses.dataclass(frozen=True)
class Node:
    """An operation.

    Attributes:
      op: its name in ONNX.
      inputs: the names of its tensors; "" for one that is left out.
      output: the name of its result.
      attributes: by name.
      layer: the name of the layer that computes it, if it is a product.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layer: str = ""


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity, as a part of a module that is no array
class Graph:
    """Nodes in an order in which they can run, and constants by name."""

    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def is_product(self, node: Node) -> bool:
        """Whether a node multiplies a tensor with constant weights."""
        if node.op not in PRODUCTS or node.inputs[0] in self.constants or node.inputs[1] not in self.constants:
            return False
        factors = {node.attributes.get(name, 1) for name in ("alpha", "beta")}
        is_plain = factors == {1} and not node.attributes.get("transA")
        return is_plain and (node.op == "Conv" or self.constants[node.inputs[1]].ndim == 2)

    def ending_at(self, *outputs: str) -> Graph:
        """Returns the part of the graph that computes these tensors."""
        needed, nodes = set(outputs), list[Node]()
        for node in reversed(self.nodes):
            if node.output in needed:
                needed.update(node.inputs)
                nodes.insert(0, node)
        constants = {name: array for name, array in self.constants.items() if name in needed}
        return Graph(tuple(nodes), constants, self.inputs, tuple(outputs))


def read(model: str | os.PathLike[str] | onnx.ModelProto) -> Graph:
    """Reads a model, or the file of one.

    Raises:
      NotImplementedError: an operation has several outputs that are used.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(model) if isinstance(model, str | os.PathLike) else model
    graph, version = model.graph, max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        values = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
        if node.op_type == "Softmax" and version < 13:
            values = {"axis": values.get("axis", 1), "to_last": 1}
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(values["value"])
            continue
        used = {name for other in graph.node for name in other.input}
        if any(name in used for name in node.output[1:]):
            raise NotImplementedError(f"{node.op_type} {node.name!r} has several outputs, which is not supported.")
        nodes.append(Node(node.op_type, tuple(node.input), node.output[0], values))
    inputs = tuple(value.name for value in graph.input if value.name not in constants)
    outputs = tuple(value.name for value in graph.output)
    return folded(Graph(tuple(nodes), constants, inputs, outputs).ending_at(*outputs))


def folded(graph: Graph) -> Graph:
    """Makes sums, factors and batch normalization with constants right after a product a part of that product."""
    graph = dataclasses.replace(graph, constants=dict(graph.constants))
    reads = collections.Counter(name for node in graph.nodes for name in node.inputs)
    nodes: list[Node] = []
    products: dict[str, int] = {}  # places in `nodes` of products whose result has one reader, by the result
    for node in graph.nodes:
        source = next((name for name in node.inputs if name in products), "")
        affine = _affine(node, source, graph.constants, nodes[products[source]]) if source else None
        place = len(nodes) if affine is None else products.pop(source)
        if affine is not None:
            nodes[place] = _absorbed(nodes[place], node.output, *affine, graph.constants)
        else:
            nodes.append(node)
        if graph.is_product(nodes[place]) and reads[node.output] == 1 and node.output not in graph.outputs:
            products[node.output] = place
    return dataclasses.replace(graph, nodes=tuple(nodes)).ending_at(*graph.outputs)


def _affine(
    node: Node, source: str, constants: Mapping[str, np.ndarray], product: Node
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the scale and the shift of each output by which a node changes the result of a product; or None."""
    others = [name for name in node.inputs if name != source]
    if node.op not in ("Add", "Sub", "Mul", "Div", "BatchNormalization") or not set(others) <= constants.keys():
        return None
    if node.op == "BatchNormalization":
        gain, bias, mean, variance = (constants[name].astype(np.float64) for name in others)
        scale = gain / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
        return scale, bias - mean * scale
    if node.op in ("Sub", "Div") and node.inputs[0] != source:
        return None
    weights = constants[product.inputs[1]]
    outputs = weights.shape[0] if product.op == "Conv" else matrix(product, weights).shape[1]
    value = constants[others[0]] if others else None
    axis = weights.ndim - 2 if product.op == "Conv" else 0  # axes after that of the outputs
    if value is None or value.ndim > weights.ndim or value.size not in (1, outputs):
        return None
    if value.size > 1 and (value.ndim <= axis or value.shape[value.ndim - 1 - axis] != outputs):
        return None
    value = np.broadcast_to(value.reshape(-1), outputs).astype(np.float64)
    one, zero = np.ones(outputs), np.zeros(outputs)
    return {"Add": (one, value), "Sub": (one, -value), "Mul": (value, zero), "Div": (1 / value, zero)}[node.op]


def _absorbed(
    product: Node, output: str, scale: np.ndarray, shift: np.ndarray, constants: dict[str, np.ndarray]
) -> Node:
    """Returns a product whose result is scaled and shifted; its weights and its bias join the constants."""
    x, w, *bias = product.inputs
    old = constants[bias[0]].reshape(-1) if bias and bias[0] else np.zeros(1)
    is_conv = product.op == "Conv"
    weights = constants[w] if is_conv else matrix(product, constants[w])
    along = scale.reshape(-1, *[1] * (weights.ndim - 1)) if is_conv else scale
    names = f"{output}.weights", f"{output}.bias"
    constants[names[0]] = (weights * along).astype(np.float32)
    constants[names[1]] = (old * scale + shift).astype(np.float32)
    attributes = {name: value for name, value in product.attributes.items() if name != "transB"}
    return Node("Conv" if is_conv else "Gemm", (x, *names), output, attributes)


def matrix(product: Node, weights: np.ndarray) -> np.ndarray:
    """Returns the weights of a matrix product as [features, outputs]."""
    return weights.T if product.attributes.get("transB") else weights
