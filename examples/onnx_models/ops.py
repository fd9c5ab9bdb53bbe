"""The operations of ONNX that graphs may contain beside products with constant weights: a table, name -> function.

A function takes the attributes, and its tensors in the order of the graph (`in_graph_order`), in any order
(`elementwise`), or as they are. To support another operation, add a line to `OPS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from examples.onnx_models.tensor import Array, Tensor, channels_last, elementwise, in_graph_order


def clip(x: Array, low: Array | None = None, high: Array | None = None, **bounds: float) -> Array:
    """Clips; the bounds were attributes in old versions, "min" and "max"."""
    return jnp.clip(x, bounds.get("min") if low is None else low, bounds.get("max") if high is None else high)


def cast(x: Array, to: int) -> Array:
    """Converts to the type with this number."""
    kinds = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}
    if to not in kinds:
        raise NotImplementedError(f"Cast to type {to} is not supported.")
    return (
        x.astype(kinds[to]) if isinstance(x, np.ndarray) else jnp.asarray(x, jax.dtypes.canonicalize_dtype(kinds[to]))
    )


def integers(x: Array) -> list[int]:
    """Returns the integers of a tensor that must be known while the model is traced."""
    if not isinstance(x, np.ndarray):
        raise NotImplementedError("A shape, an axis or an index depends on the values of the model's inputs.")
    return [int(value) for value in x.reshape(-1)]


def reshape(x: Array, shape: Array, allowzero: int = 0) -> Array:
    """Reshapes; 0 is the length of the same axis of `x`."""
    lengths = integers(shape)
    return x.reshape([x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(lengths)])


def flatten(x: Array, axis: int = 1) -> Array:
    """Returns a matrix: axes before `axis` are the rows."""
    return x.reshape(math.prod(x.shape[:axis]), -1)


def sliced(x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    """Returns a slice."""
    first, last = integers(starts), integers(ends)
    chosen = range(len(first)) if axes is None else integers(axes)
    strides = [1] * len(first) if steps is None else integers(steps)
    cut = [slice(None)] * x.ndim
    for axis, begin, end, step in zip(chosen, first, last, strides, strict=True):
        cut[axis] = slice(begin, None if step < 0 and end < -x.shape[axis] else end, step)
    return x[tuple(cut)]


def squeeze(x: Array, given: Array | None = None, axes: list[int] | None = None) -> Array:
    """Removes axes of length 1."""
    chosen = axes if given is None else integers(given)
    return x.squeeze(None if chosen is None else tuple(chosen))


def unsqueeze(x: Array, given: Array | None = None, axes: list[int] | None = None) -> Array:
    """Adds axes of length 1."""
    return jnp.expand_dims(x, tuple(axes or () if given is None else integers(given)))


def gather(x: Array, indices: Array, axis: int = 0) -> Array:
    """Takes the entries with some indices along an axis."""
    return jnp.take(x, indices, axis, mode="wrap")


def gemm(x: Array, w: Array, b: Array | None = None, alpha: float = 1, beta: float = 1, **of: int) -> Array:
    """Computes `alpha x @ w + beta b`, of which either may be transposed."""
    x, w = x.T if of.get("transA") else x, w.T if of.get("transB") else w
    y = alpha * jnp.matmul(x, w)
    return y if b is None else y + beta * b


def transposed(attributes: dict[str, Any], x: Tensor) -> Tensor:
    """Permutes the axes."""
    return x.permuted(tuple(attributes.get("perm", range(len(x.order))[::-1])))


def softmax(attributes: dict[str, Any], x: Tensor) -> Tensor:
    """Computes the softmax along an axis; with `to_last`, along it and all axes after it, as before version 13."""
    first = attributes.get("axis", -1) % len(x.order)
    last = len(x.order) if attributes.get("to_last") else first + 1
    return Tensor(jax.nn.softmax(x.stored, tuple(x.axis(axis) for axis in range(first, last))), x.order)


def concatenated(attributes: dict[str, Any], *tensors: Tensor) -> Tensor:
    """Joins tensors along an axis."""
    order = tensors[0].order
    parts = [tensor.stored_as(order).stored for tensor in tensors]
    return Tensor(jnp.concatenate(parts, tensors[0].axis(attributes["axis"])), order)


def reduced(function: Callable[..., Array]) -> Callable[..., Tensor]:
    """Returns an operation that reduces along axes, all by default."""

    def operation(attributes: dict[str, Any], x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = attributes.get("axes") if given is None else integers(given.value)
        axes = tuple(range(len(x.order))) if axes is None else tuple(axis % len(x.order) for axis in axes)
        if not attributes.get("keepdims", 1):
            return Tensor.of(function(x.value, axis=axes))
        return Tensor(function(x.stored, axis=tuple(x.axis(axis) for axis in axes), keepdims=True), x.order)

    return operation


def global_average(attributes: dict[str, Any], x: Tensor) -> Tensor:
    """Computes the mean over all positions."""
    del attributes
    axes = tuple(x.axis(axis) for axis in range(2, len(x.order)))
    return Tensor(x.stored.mean(axes, keepdims=True), x.order)


def batch_norm(attributes: dict[str, Any], x: Tensor, *parameters: Tensor) -> Tensor:
    """Normalizes each channel by constants."""
    gain, bias, mean, variance = (parameter.value for parameter in parameters)
    scale = gain * lax.rsqrt(variance + attributes.get("epsilon", 1e-5))
    along = [-1 if axis == 1 else 1 for axis in x.order]
    return Tensor(x.stored * scale.reshape(along) + (bias - mean * scale).reshape(along), x.order)


def pooled(start: float, combine: Callable[..., Array]) -> Callable[..., Tensor]:
    """Returns an operation that combines the values in a window, from `start` on."""

    def operation(attributes: dict[str, Any], x: Tensor) -> Tensor:
        rank = len(attributes["kernel_shape"])
        pads = padding(attributes, rank)
        if attributes.get("ceil_mode") or ("dilations" in attributes and set(attributes["dilations"]) != {1}):
            raise NotImplementedError("Pooling with ceil_mode or dilations is not supported.")
        x = x.stored_as(channels_last(rank + 2))
        window = (1, *attributes["kernel_shape"], 1)
        strides = (1, *attributes.get("strides", [1] * rank), 1)
        around = pads if isinstance(pads, str) else ((0, 0), *pads, (0, 0))

        def over(values: Array) -> Array:
            return lax.reduce_window(values, np.float32(start), combine, window, strides, around)

        if combine is lax.max:
            return Tensor(over(x.stored), x.order)
        ones = jnp.ones((1, *x.stored.shape[1:-1], 1), np.float32)
        whole = attributes.get("count_include_pad", 0) or pads == ((0, 0),) * rank
        return Tensor(over(x.stored) / (math.prod(window) if whole else over(ones)), x.order)

    return operation


def resized(attributes: dict[str, Any], x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    """Enlarges pictures: by whole numbers where the nearest position counts, or linearly."""
    del roi
    shape = x.shape
    if sizes is not None:
        lengths = tuple(integers(sizes.value))
    else:
        lengths = tuple(int(n * s) for n, s in zip(shape, scales.value, strict=True))
    kind = attributes.get("mode", "nearest"), attributes.get("coordinate_transformation_mode", "half_pixel")
    if kind == ("linear", "half_pixel"):
        stored = tuple(lengths[axis] for axis in x.order)
        return Tensor(jax.image.resize(x.stored, stored, "linear", antialias=False), x.order)
    floor = attributes.get("nearest_mode", "round_prefer_floor") == "floor" or kind[1] == "half_pixel"
    if kind[0] != "nearest" or not floor or any(m % n for n, m in zip(shape, lengths, strict=True)):
        raise NotImplementedError(f"Resize by {kind} from {shape} to {lengths} is not supported.")
    y = x.stored
    for axis, (n, m) in enumerate(zip(shape, lengths, strict=True)):
        y = jnp.repeat(y, m // n, x.axis(axis))
    return Tensor(y, x.order)


def conv_transposed(attributes: dict[str, Any], x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Computes a transposed convolution without groups."""
    kernel = w.value
    rank = kernel.ndim - 2
    pads = padding(attributes, rank)
    if attributes.get("group", 1) != 1 or isinstance(pads, str) or "output_padding" in attributes:
        raise NotImplementedError("ConvTranspose with groups, auto_pad or output_padding is not supported.")
    spatial = "DHW"[-rank:]
    x = x.stored_as(channels_last(rank + 2))
    y = lax.conv_general_dilated(
        x.stored,
        jnp.flip(kernel, range(2, rank + 2)),
        (1,) * rank,
        [(k - 1 - low, k - 1 - high) for k, (low, high) in zip(kernel.shape[2:], pads, strict=True)],
        lhs_dilation=tuple(attributes.get("strides", [1] * rank)),
        dimension_numbers=(f"N{spatial}C", f"IO{spatial}", f"N{spatial}C"),
    )
    return Tensor(y if b is None else y + b.value, x.order)


def padding(attributes: Mapping[str, Any], rank: int) -> str | tuple[tuple[int, int], ...]:
    """Returns the padding of a convolution or of pooling, as Flax has it."""
    automatic = attributes.get("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "VALID"):
        return automatic.removesuffix("_UPPER")
    if automatic != "NOTSET":
        raise NotImplementedError(f"auto_pad {automatic} is not supported.")
    pads = attributes.get("pads", [0] * 2 * rank)
    return tuple(zip(pads[:rank], pads[rank:], strict=True))


OPS: dict[str, Callable[..., Tensor]] = {
    "Add": elementwise(jnp.add),
    "AveragePool": pooled(0.0, lax.add),
    "BatchNormalization": batch_norm,
    "Cast": in_graph_order(cast),
    "Clip": elementwise(clip),
    "Concat": concatenated,
    "ConvTranspose": conv_transposed,
    "Div": elementwise(jnp.divide),
    "Exp": elementwise(jnp.exp),
    "Flatten": in_graph_order(flatten),
    "Gather": in_graph_order(gather),
    "Gemm": in_graph_order(gemm),
    "GlobalAveragePool": global_average,
    "HardSigmoid": elementwise(lambda x, alpha=0.2, beta=0.5: jnp.clip(alpha * x + beta, 0, 1)),
    "Identity": elementwise(lambda x: x),
    "LeakyRelu": elementwise(lambda x, alpha=0.01: jnp.where(x < 0, alpha * x, x)),
    "MatMul": in_graph_order(jnp.matmul),
    "MaxPool": pooled(-np.inf, lax.max),
    "Mul": elementwise(jnp.multiply),
    "Pow": elementwise(jnp.power),
    "ReduceMax": reduced(jnp.max),
    "ReduceMean": reduced(jnp.mean),
    "ReduceSum": reduced(jnp.sum),
    "Relu": elementwise(jax.nn.relu),
    "Reshape": in_graph_order(reshape),
    "Resize": resized,
    "Shape": lambda attributes, x: Tensor.of(np.array(x.shape, np.int64)),
    "Sigmoid": elementwise(jax.nn.sigmoid),
    "Slice": in_graph_order(sliced),
    "Softmax": softmax,
    "Sqrt": elementwise(jnp.sqrt),
    "Squeeze": in_graph_order(squeeze),
    "Sub": elementwise(jnp.subtract),
    "Tanh": elementwise(jnp.tanh),
    "Transpose": transposed,
    "Unsqueeze": in_graph_order(unsqueeze),
}
"""Functions by the names of the operations."""
