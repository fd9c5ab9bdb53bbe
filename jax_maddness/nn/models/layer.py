"""The layers of a model in one view, for nnx and linen: what kind, which product, what its kernel is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from jax_maddness.nn.layers.contraction import Contraction
from jax_maddness.nn.layers.convolution import Convolution
from jax_maddness.nn.layers.form import Form

if TYPE_CHECKING:
    from jaxtyping import Array


@dataclasses.dataclass
class Call:
    """One call of a layer while the model is traced.

    Attributes:
      x: its input: shape and dtype count, and which array it is.
      kernel_shape: what the layer sees as its kernel, without the steps of a scan.
      equation: the einsum that is passed to it, if any.
    """

    x: Any
    kernel_shape: tuple[int, ...]
    equation: str | None = None


@dataclasses.dataclass
class Layer:
    """A layer, as a matrix product.

    Attributes:
      path: where it is in the model; a rule may also name it by one of `others`, if it is in several places.
      kind: the name of its class.
      module: the layer itself, for its settings.
      kernel, bias: as in the model, stacked over the steps of a scan if there is one; bias may be None.
      calls: of one run of the model.
      form: how its input becomes rows; None if it is not supported.
      steps: of a scan over layers; 0: it is in none.
      reason: why it cannot be replaced; "" if it can.
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
    reason: str = ""

    @property
    def parent(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def dtype(self) -> str | None:
        """What the layer computes in, if it says so."""
        return None if self.module.dtype is None else jnp.dtype(self.module.dtype).name

    @property
    def param_dtype(self) -> str:
        return jnp.dtype(self.kernel.dtype).name

    @property
    def shape(self) -> tuple[int, int]:
        """[D, M] of the product, of one group."""
        return (0, 0) if self.form is None else self.form.product_shape(self._step_shape)

    @property
    def _step_shape(self) -> tuple[int, ...]:
        return tuple(self.kernel.shape[1:] if self.steps else self.kernel.shape)

    def weights(self) -> np.ndarray:
        """[steps or 1, groups, D, M] in float32."""
        assert self.form is not None
        kernel = np.asarray(self.kernel, np.float32)
        mask = getattr(self.module, "mask", None)
        if mask is not None:
            kernel = kernel * np.asarray(mask, np.float32)
        return np.stack([self.form.weights(k) for k in (kernel if self.steps else kernel[None])])

    def biases(self) -> np.ndarray:
        """[steps or 1, groups, M] in float32, zeros where the layer has none."""
        assert self.form is not None
        steps, groups = max(self.steps, 1), self.form.groups
        if self.bias is None:
            return np.zeros((steps, groups, self.shape[1]), np.float32)
        return np.asarray(self.bias, np.float32).reshape(steps, groups, -1)

    def complete(self) -> None:
        """Finds form and steps from the settings and the calls, or the reason why there are none."""
        if not self.calls:
            self.reason = "the model does not call it on these batches"
            return
        call = self.calls[0]
        if len({other.equation for other in self.calls}) > 1:
            self.reason = "it is called with several equations"
            return
        try:
            self.form = _FORMS[self.kind](self.module, call)
        except KeyError:
            self.reason = f"layers of type {self.kind} are not supported"
            return
        except ValueError as error:
            self.reason = str(error)
            return
        extra = len(self.kernel.shape) - len(call.kernel_shape)
        if extra > 1 or tuple(self.kernel.shape[extra:]) != tuple(call.kernel_shape):
            self.reason = "its kernel is stacked, but not once along the first axis"
        self.steps = self.kernel.shape[0] if extra else 0


def _ints(value: Any, rank: int) -> tuple[int, ...]:
    return (int(value or 1),) * rank if value is None or isinstance(value, int) else tuple(value)


def _tuple(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _dense(module: Any, call: Call) -> Form:
    del module
    return Contraction("...a", "ab", "...b", tuple(call.kernel_shape))


def _general(module: Any, call: Call) -> Form:
    if getattr(module, "batch_axis", None) or getattr(module, "batch_dims", None):
        raise ValueError("it has batch axes: a product of its own for each")
    return Contraction.of_axes(_tuple(module.axis), call.x.ndim, tuple(call.kernel_shape))


def _einsum(module: Any, call: Call) -> Form:
    return Contraction.of_einsum(call.equation or module.einsum_str, tuple(call.kernel_shape))


def _conv(module: Any, call: Call) -> Form:
    size = _tuple(module.kernel_size)
    if any(d != 1 for d in _ints(module.input_dilation, len(size))):
        raise ValueError("it dilates its input (input_dilation), as a transposed convolution")
    padding = module.padding
    if not isinstance(padding, str):
        pads = [padding] * len(size) if isinstance(padding, int) else list(padding)
        padding = tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in pads)
    rank = len(size)
    strides, dilation = _ints(module.strides, rank), _ints(module.kernel_dilation, rank)
    return Convolution(size, strides, dilation, padding, module.feature_group_count)


_FORMS: Mapping[str, Callable[[Any, Call], Form]] = {
    "Linear": _dense,
    "Dense": _dense,
    "LinearGeneral": _general,
    "DenseGeneral": _general,
    "Einsum": _einsum,
    "Conv": _conv,
}


def first_array(args: tuple, kwargs: Mapping[str, Any]) -> Array:
    """The input among the arguments of a layer."""
    return args[0] if args else kwargs["inputs"]


Hook = Callable[[Callable[[Any], Any], Any], Any]
"""`hook(module, x)` stands for `module(x)`."""


def hooked(hook: Hook, module: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """What a hook makes of the call of a module with such arguments; `x` is the first of them."""
    if args:
        return hook(lambda x: module(x, *args[1:], **kwargs), args[0])
    name = next(iter(kwargs), None)
    if name is None:
        return hook(lambda x: module(), None)
    return hook(lambda x: module(**{**kwargs, name: x}), kwargs[name])
