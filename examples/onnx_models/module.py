"""`OnnxModel`: an ONNX graph as a Flax module, whose products with constant weights are `nnx.Conv` and `nnx.Linear`.

So `jax_maddness.plan` and `replace` find them, as "products/conv0", "products/linear7" and so on, in the order in which
they run. Everything else is computed by the functions of `ops.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.onnx_models import graph as graphs
from examples.onnx_models.graph import Graph, Node
from examples.onnx_models.ops import OPS, padding
from examples.onnx_models.tensor import Tensor, channels_last

if TYPE_CHECKING:
    import onnx


class OnnxModel(nnx.Module):
    """A graph as a module; it takes the inputs of the graph and returns its output, or a tuple of several.

    Raises:
      NotImplementedError: an operation, or a setting of one, is not supported.
    """

    def __init__(self, graph: Graph):
        unknown = sorted({node.op for node in graph.nodes if not graph.is_product(node)} - OPS.keys())
        if unknown:
            raise NotImplementedError(f"Operations that are not supported: {', '.join(unknown)}. See OPS in ops.py.")
        products = [node for node in graph.nodes if graph.is_product(node)]
        names = [f"{'conv' if node.op == 'Conv' else 'linear'}{number}" for number, node in enumerate(products)]
        made = [product(node, graph.constants) for node in products]
        self.products = nnx.Dict(dict(zip(names, made, strict=True)))
        # Weights of products are arrays of modules; the graph, which is no array, keeps the other constants.
        layers = dict(zip((node.output for node in products), names, strict=True))
        nodes = tuple(
            dataclasses.replace(node, inputs=node.inputs[:1], layer=layers[node.output])
            if node.output in layers
            else node
            for node in graph.nodes
        )
        self._graph = Graph(nodes, graph.constants, graph.inputs, graph.outputs).ending_at(*graph.outputs)

    def __call__(self, *inputs: jax.Array) -> Any:
        """Runs the graph."""
        graph = self._graph
        tensors = {name: Tensor.of(np.asarray(value)) for name, value in graph.constants.items()}
        tensors |= {name: Tensor.of(jnp.asarray(x)) for name, x in zip(graph.inputs, inputs, strict=True)}
        for node in graph.nodes:
            given = [tensors[name] if name else None for name in node.inputs]
            if node.layer:
                tensors[node.output] = multiplied(self.products[node.layer], given[0], node.op == "Conv")
            else:
                tensors[node.output] = computed(node, given)
        outputs = tuple(tensors[name].value for name in graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs


def load(model: str | os.PathLike[str] | onnx.ModelProto, *outputs: str) -> OnnxModel:
    """Returns a model, or the file of one, as a module; with `outputs`, the part that computes these tensors."""
    graph = graphs.read(model)
    return OnnxModel(graph.ending_at(*outputs) if outputs else graph)


def product(node: Node, constants: dict[str, np.ndarray]) -> nnx.Conv | nnx.Linear:
    """Returns the layer of a product with constant weights."""
    weights = constants[node.inputs[1]].astype(np.float32)
    bias = constants[node.inputs[2]].reshape(-1) if len(node.inputs) > 2 and node.inputs[2] else None
    settings: dict[str, Any] = {"use_bias": bias is not None, "rngs": nnx.Rngs(0)}
    if bias is not None:
        settings["bias_init"] = lambda *_: jnp.asarray(np.broadcast_to(bias, outputs), jnp.float32)
    if node.op != "Conv":
        kernel = graphs.matrix(node, weights)
        outputs = kernel.shape[1]
        return nnx.Linear(*kernel.shape, kernel_init=lambda *_: jnp.asarray(kernel), **settings)
    outputs, rank, groups = len(weights), weights.ndim - 2, node.attributes.get("group", 1)
    kernel = weights.transpose(*range(2, rank + 2), 1, 0)
    return nnx.Conv(
        groups * kernel.shape[-2],
        outputs,
        kernel.shape[:rank],
        tuple(node.attributes.get("strides", [1] * rank)),
        padding=padding(node.attributes, rank),
        kernel_dilation=tuple(node.attributes.get("dilations", [1] * rank)),
        feature_group_count=groups,
        kernel_init=lambda *_: jnp.asarray(kernel),
        **settings,
    )


def multiplied(layer: Any, x: Tensor, is_conv: bool) -> Tensor:
    """Runs the layer of a product, or what replaces it; the result of a convolution is stored with channels last."""
    rank = len(x.order)
    order = channels_last(rank) if is_conv else tuple(range(rank))
    return Tensor(layer(x.stored_as(order).stored), order)


def computed(node: Node, tensors: list[Tensor | None]) -> Tensor:
    """Computes a node; its result is an array of NumPy if all tensors are known while the model is traced."""
    known = all(tensor is None or tensor.known for tensor in tensors)
    with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
        y = OPS[node.op](dict(node.attributes), *tensors)
    return Tensor(np.asarray(y.stored), y.order) if known else y
