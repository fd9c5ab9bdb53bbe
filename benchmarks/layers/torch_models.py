"""Models of which packages bring only torch's weights, as ONNX graphs: EfficientNet-Lite0 and the small CREPE."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.layers import torch_files

if TYPE_CHECKING:
    import onnx

_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
"""Strides of the blocks of EfficientNet-Lite0."""
_EPSILON = 1e-3
"""A small number that both models add to variances."""


class _Graph:
    """A graph that grows node by node; its nodes are named by the weights that they use."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights, self.nodes, self.used = weights, list[Any](), set[str]()

    def add(self, kind: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Adds a node with one output and returns the name of that."""
        import onnx.helper

        output = name or f"{kind}{len(self.nodes)}"
        self.used.update(set(inputs) & self.weights.keys())
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def conv(self, x: str, name: str, **attributes: Any) -> str:
        """Adds a convolution with the weights of that name."""
        parameters = [key for key in (f"{name}.weight", f"{name}.bias") if key in self.weights]
        return self.add("Conv", [x, *parameters], name, **attributes)

    def norm(self, x: str, name: str) -> str:
        """Adds a batch normalization."""
        parts = ("weight", "bias", "running_mean", "running_var")
        return self.add("BatchNormalization", [x, *(f"{name}.{part}" for part in parts)], epsilon=_EPSILON)

    def clipped(self, x: str) -> str:
        """Adds a ReLU that ends at 6."""
        self.weights |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
        return self.add("Clip", [x, "zero", "six"])

    def model(self, name: str, y: str, shape: Sequence[int | None]) -> onnx.ModelProto:
        """Returns the model with one input, "x"."""
        import onnx
        import onnx.helper
        import onnx.numpy_helper

        initial = [onnx.numpy_helper.from_array(self.weights[key], key) for key in sorted(self.used)]
        x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
        output = onnx.helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, None)
        graph = onnx.helper.make_graph(self.nodes, name, [x], [output], initial)
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)


def efficientnet(path: pathlib.Path) -> onnx.ModelProto:
    """Returns EfficientNet-Lite0, which tells a thousand kinds of things apart in pictures [batch, 3, 224, 224]."""
    graph = _Graph(torch_files.load(path))
    x = graph.clipped(graph.norm(graph.conv("x", "_conv_stem", strides=[2, 2], auto_pad="SAME_UPPER"), "_bn0"))
    for i, stride in enumerate(_STRIDES):
        x = _block(graph, x, f"_blocks.{i}.", stride)
    x = graph.clipped(graph.norm(graph.conv(x, "_conv_head"), "_bn1"))
    x = graph.add("Flatten", [graph.add("GlobalAveragePool", [x])])
    return graph.model(
        "efficientnet", graph.add("Gemm", [x, "_fc.weight", "_fc.bias"], "_fc", transB=1), [None, 3, None, None]
    )


def _block(graph: _Graph, x: str, name: str, stride: int) -> str:
    """Adds an inverted bottleneck: wider, a filter for each channel, narrower; then its input, if it has that size."""
    y = x
    if f"{name}_expand_conv.weight" in graph.weights:
        y = graph.clipped(graph.norm(graph.conv(y, f"{name}_expand_conv"), f"{name}_bn0"))
    channels = len(graph.weights[f"{name}_depthwise_conv.weight"])
    strides = [stride, stride]
    y = graph.conv(y, f"{name}_depthwise_conv", strides=strides, group=channels, auto_pad="SAME_UPPER")
    y = graph.clipped(graph.norm(y, f"{name}_bn1"))
    project = graph.weights[f"{name}_project_conv.weight"]
    expand = graph.weights.get(f"{name}_expand_conv.weight", project.T)
    y = graph.norm(graph.conv(y, f"{name}_project_conv"), f"{name}_bn2")
    return graph.add("Add", [x, y]) if stride == 1 and len(project) == expand.shape[1] else y


def crepe(path: pathlib.Path) -> onnx.ModelProto:
    """Returns CREPE, which hears the pitch of frames [batch, 1, 1024, 1] of sound at 16 kHz."""
    graph, x = _Graph(torch_files.load(path)), "x"
    for i in range(1, 7):
        pads, stride = ([254, 0, 254, 0], 4) if i == 1 else ([31, 0, 32, 0], 1)
        x = graph.add("Relu", [graph.conv(x, f"conv{i}", pads=pads, strides=[stride, 1])])
        x = graph.add("MaxPool", [graph.norm(x, f"conv{i}_BN")], kernel_shape=[2, 1], strides=[2, 1])
    x = graph.add("Flatten", [graph.add("Transpose", [x], perm=[0, 2, 1, 3])])
    x = graph.add("Gemm", [x, "classifier.weight", "classifier.bias"], "classifier", transB=1)
    return graph.model("crepe", graph.add("Sigmoid", [x]), [None, 1, 1024, 1])
