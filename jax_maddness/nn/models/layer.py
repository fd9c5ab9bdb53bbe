"""`Layer`: a layer of a model as a matrix product, the same for nnx and linen: its form, its kernel, its calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_maddness.nn.layers.contraction import AxisContraction, Contraction
from jax_maddness.nn.layers.convolution import Convolution
from jax_maddness.nn.layers.form import Form

TABLE = "Embed"
"""The name of Flax's tables of embeddings. `attend`, a product with all rows, makes one an output layer, too."""


@dataclasses.dataclass
class Call:
    """One call of a layer while the model is traced.

    Attributes:
      x: the input, a tracer: its shape and dtype count, and its identity, which tells that layers share an input.
      y: the output.
      kernel, bias: those that the layer sees: of one step of a scan, or one member of a vmap; `bias` may be None.
      step: the number of that step or member, if the model was asked for it; else None.
      equation: the einsum equation that is passed to the layer, if any.
    """

    x: Any
    y: Any
    kernel: Any
    bias: Any = None
    step: Any = None
    equation: str | None = None

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape of the kernel that the layer sees."""
        return tuple(self.kernel.shape)


@dataclasses.dataclass
class Layer:
    """A layer with a kernel, as a matrix product.

    Attributes:
      path: the place of the layer in the model; a rule may also name it by one of `others`, if it is in several places.
      kind: the name of its class.
      module: the layer itself, for its settings.
      kernel, bias: as in the model, stacked over the steps of a scan or the members of a vmap if there are any; the
        bias may be None. Where a module around it computes them, as `WeightNorm` does, those that the layer sees.
      others: its other paths.
      calls: of one run of the model.
      form: the layer's form; None if the layer is not supported.
      steps: number of steps of the scan, or members of the vmap, that the layer is in; 0: it is in none.
      keeps_kernel: others read the kernel, as a `WeightNorm` around the layer or calls of a table of embeddings do, so
        that it stays in the model.
      reason: the reason why it cannot be replaced; "" if it can.
    """

    path: str
    kind: str
    module: Any
    kernel: Any
    bias: Any
    others: tuple[str, ...] = ()
    calls: list[Call] = dataclasses.field(default_factory=list)
    form: Form | None = None
    steps: int = 0
    keeps_kernel: bool = False
    reason: str = ""

    @property
    def parent(self) -> str:
        """The path of the module that the layer is in."""
        return self.path.rpartition("/")[0]

    @property
    def is_table(self) -> bool:
        """Whether its kernel is a table of embeddings [outputs, features]: `attend` multiplies, calls look rows up."""
        return self.kind == TABLE

    @property
    def dtype(self) -> str | None:
        """The dtype in which the layer computes; None: the promotion of its input and its kernel."""
        return None if self.module.dtype is None else jnp.dtype(self.module.dtype).name

    @property
    def param_dtype(self) -> str:
        """The dtype of the kernel."""
        return jnp.dtype(self.kernel.dtype).name

    @property
    def shape(self) -> tuple[int, int]:
        """[D, M] of the product of one group; zeros if the layer is not supported."""
        return (0, 0) if self.form is None else self.form.product_shape(self._step_shape)

    @property
    def _step_shape(self) -> tuple[int, ...]:
        return tuple(self.kernel.shape[1:] if self.steps else self.kernel.shape)

    def weights(self) -> np.ndarray:
        """Returns the weights, [steps or 1, groups, D, M], in float32."""
        assert self.form is not None
        kernel = np.asarray(self.kernel, np.float32)
        mask = getattr(self.module, "mask", None)
        if mask is not None:
            kernel = kernel * np.asarray(mask, np.float32)
        return np.stack([self.form.weights(k) for k in (kernel if self.steps else kernel[None])])

    def biases(self) -> np.ndarray:
        """Returns the biases, [steps or 1, groups, M], in float32; zeros where the layer has none."""
        assert self.form is not None
        steps, groups = max(self.steps, 1), self.form.groups
        if self.bias is None:
            return np.zeros((steps, groups, self.shape[1]), np.float32)
        return np.asarray(self.bias, np.float32).reshape(steps, groups, -1)

    def complete(self) -> None:
        """Derives form and steps from the settings and the calls, or the reason why there are none."""
        if not self.calls:
            self.reason = "the model does not call it on these batches"
            return
        if len({other.equation for other in self.calls}) > 1:
            self.reason = "it is called with several equations"
            return
        if self.kind not in _MAKERS:
            self.reason = f"layers of type {self.kind} are not supported"
            return
        try:
            forms = [_MAKERS[self.kind](self.module, call) for call in self.calls]
        except ValueError as error:
            self.reason = str(error)
            return
        shapes = {call.kernel_shape for call in self.calls}
        if len(shapes) > 1:
            self.reason = f"it is called with kernels of several shapes, {sorted(shapes)}"
            return
        if len(set(forms)) > 1:
            self.reason = "its calls are different products"
            return
        (shape,) = shapes
        extra = len(self.kernel.shape) - len(shape)
        if extra not in (0, 1) or tuple(self.kernel.shape[extra:]) != shape:
            self.reason = "its kernel is stacked, but not once along the first axis"
            return
        self.form, self.steps = forms[0], self.kernel.shape[0] if extra else 0


def _per_dimension(value: Any, rank: int) -> tuple[int, ...]:
    """Returns a setting of a convolution for each dimension: Flax takes a number for all, or None for 1."""
    return (int(value or 1),) * rank if value is None or isinstance(value, int) else tuple(value)


def _as_tuple(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _dense(module: Any, call: Call) -> Form:
    del module
    return Contraction("...a", "ab", "...b", call.kernel_shape)


def _general(module: Any, call: Call) -> Form:
    # The same setting is `batch_axis` in nnx, `batch_dims` in linen.
    if getattr(module, "batch_axis", None) or getattr(module, "batch_dims", None):
        raise ValueError("it has batch axes: a product of its own for each")
    axes = _as_tuple(module.axis)
    if any(axis >= 0 for axis in axes):
        return AxisContraction(axes, call.kernel_shape)
    return Contraction.of_axes(axes, call.x.ndim, call.kernel_shape)


def _einsum(module: Any, call: Call) -> Form:
    return Contraction.of_einsum(call.equation or module.einsum_str, call.kernel_shape)


def _attend(module: Any, call: Call) -> Form:
    del module
    return Contraction("...a", "ba", "...b", call.kernel_shape)


def _conv(module: Any, call: Call) -> Form:
    del call
    size = _as_tuple(module.kernel_size)
    if any(d != 1 for d in _per_dimension(module.input_dilation, len(size))):
        raise ValueError("it dilates its input (input_dilation), as a transposed convolution")
    padding = module.padding
    if not isinstance(padding, str):
        pads = [padding] * len(size) if isinstance(padding, int) else list(padding)
        padding = tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in pads)
    rank = len(size)
    strides, dilation = _per_dimension(module.strides, rank), _per_dimension(module.kernel_dilation, rank)
    return Convolution(size, strides, dilation, padding, module.feature_group_count)


_MAKERS: Mapping[str, Callable[[Any, Call], Form]] = {
    "Linear": _dense,
    "Dense": _dense,
    "LinearGeneral": _general,
    "DenseGeneral": _general,
    "Einsum": _einsum,
    "Conv": _conv,
    TABLE: _attend,
}
"""Functions that make the form of a layer, by the names of Flax's classes."""


def first_array(args: tuple, kwargs: Mapping[str, Any]) -> Array:
    """Returns the input among the arguments of a layer; None if there are none."""
    return args[0] if args else kwargs.get("inputs", next(iter(kwargs.values()), None))


def equation_of(args: tuple, kwargs: Mapping[str, Any]) -> str | None:
    """Returns the equation among the arguments of an einsum; None if there is none."""
    given = kwargs.get("einsum_str", args[1] if len(args) > 1 else None)
    return given if isinstance(given, str) else None  # the second argument of other layers is something else


Tap = Callable[[str, Call], None]
"""`tap(path, call)` is told of each call of a layer."""
Hook = Callable[[Callable[[Any], Any], Any], Any]
"""`hook(module, x)` is called in place of `module(x)`."""


def hooked(hook: Hook, module: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Calls a hook in place of a module with these arguments; `x` is the first of them, None if there are none."""
    if args:
        return hook(lambda x: module(x, *args[1:], **kwargs), args[0])
    name = next(iter(kwargs), None)
    if name is None:
        return hook(lambda x: module(), None)
    return hook(lambda x: module(**{**kwargs, name: x}), kwargs[name])
