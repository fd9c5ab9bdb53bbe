"""Compares each layer's own output with the product of its form, before anything is learned from its kernel.

A layer may compute something else than `x @ kernel + bias`: with a `dot_general` of its own, or because a module around
it, as `WeightNorm`, changes the kernel. In the latter case the kernel that the layer sees is the one to learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.nn.layers.approximate import promoted
from jax_maddness.nn.models.layer import Call, Layer
from jax_maddness.nn.models.view import Model
from jax_maddness.nn.models.watch import Watch

ROWS = 32
"""Number of rows of each call that are compared."""
_MIN_TOLERANCE = 5e-3
"""Tolerance where the dtype does not ask for a larger one: accelerators round float32 products to fewer bits."""


def validate_products(model: Model, layers: Iterable[Layer], batch: Any) -> None:
    """Runs the model once, and gives a reason to stay to each layer that is no product with its kernel.

    Layers whose kernel a module around them computes get that kernel, and `keeps_kernel`. Layers that this run does not
    reach, as in a branch of a cond, are not compared.

    Args:
      model: the model.
      layers: of the model; they are changed in place.
      batch: an input. If it has shapes alone, nothing is compared.
    """
    checked = {layer.path: layer for layer in layers if not layer.reason}
    if not checked or any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(batch)):
        return
    stacked = [layer for layer in checked.values() if layer.steps]
    try:
        rows = _sent(model, checked, batch, _rows_and_outputs)
    except Exception:
        if not stacked:
            raise
        for layer in stacked:  # their numbers do not pass through the transformations that their kernels pass
            layer.reason = "its kernel is stacked in a way that is not supported"
        validate_products(model, checked.values(), batch)
        return
    different = {path: checked[path] for path, calls in rows.items() if _error(checked[path], calls) > 1}
    if not different:
        return
    seen = _sent(model, different, batch, _weights)
    for path, layer in different.items():
        stored = layer.kernel, layer.bias
        if _take(layer, seen.get(path, [])) and _error(layer, rows[path]) <= 1:
            layer.keeps_kernel = True
            continue
        layer.kernel, layer.bias = stored
        layer.reason = (
            "its output is not x @ kernel + bias (it, or a module around it, computes something else, as with a "
            "`dot_general` of its own)"
        )


def _sent(
    model: Model, layers: dict[str, Layer], batch: Any, values: Callable[[Layer, Call], tuple[Any, ...]]
) -> dict[str, list[tuple[np.ndarray, ...]]]:
    """Runs the model, and returns `values` of each layer's calls, and before them the numbers of the steps."""
    watch = Watch()

    def tap(path: str, call: Call) -> None:
        layer = layers[path]
        assert layer.form is not None
        if layer.form.num_rows(call.x):
            watch.send(path, jnp.int32(0) if call.step is None else call.step, *values(layer, call))

    function, arrays = model.tapped({path: layer.steps for path, layer in layers.items()}, tap)
    watch.compiled(function)(arrays, batch)
    return watch.received()


def _rows_and_outputs(layer: Layer, call: Call) -> tuple[Any, ...]:
    assert layer.form is not None
    places = np.unique(np.linspace(0, layer.form.num_rows(call.x) - 1, ROWS).astype(int))
    rows = layer.form.rows_at(promoted(call.x, layer.dtype, layer.param_dtype), places)
    return rows.astype(jnp.float32), layer.form.output_rows(call.y, call.x)[places].astype(jnp.float32)


def _weights(layer: Layer, call: Call) -> tuple[Any, ...]:
    del layer
    return (call.kernel,) if call.bias is None else (call.kernel, call.bias)


def _error(layer: Layer, calls: list[tuple[np.ndarray, ...]]) -> float:
    """Returns the root mean square error of the form's product, in units of the tolerance."""
    w, bias = layer.weights(), layer.biases()
    error = size = 0.0
    for numbers, rows, outputs in calls:
        for number, x, y in zip(numbers.astype(int), rows, outputs, strict=True):
            exact = np.einsum("ngd,gdm->ngm", x, w[number]) + bias[number]
            spread = np.einsum("ngd,gdm->ngm", x**2, w[number] ** 2) + bias[number] ** 2
            difference = np.square(y.reshape(exact.shape) - exact)
            finite = np.isfinite(difference) & np.isfinite(spread)
            error, size = error + difference[finite].sum(dtype=float), size + spread[finite].sum(dtype=float)
    computed = {jnp.dtype(layer.dtype or layer.kernel.dtype), *(jnp.dtype(call.y.dtype) for call in layer.calls)}
    eps = max(float(jnp.finfo(dtype).eps) for dtype in computed if jnp.issubdtype(dtype, jnp.floating))
    tolerance = max(_MIN_TOLERANCE, 4 * eps)
    return float(np.sqrt(error / size) / tolerance) if size else float(error > 0)


def _take(layer: Layer, calls: list[tuple[np.ndarray, ...]]) -> bool:
    """Gives a layer the kernel and the bias that it sees; returns whether all calls of a step see the same."""
    by_step: dict[int, tuple[np.ndarray, ...]] = {}
    for numbers, *arrays in calls:
        for number, *members in zip(numbers.astype(int).tolist(), *arrays, strict=True):
            known = by_step.setdefault(number, tuple(members))
            if not all(np.allclose(a, b, rtol=1e-5, atol=0) for a, b in zip(known, members, strict=True)):
                return False
    if sorted(by_step) != list(range(max(layer.steps, 1))):
        return False
    parts = [np.stack([by_step[step][i] for step in sorted(by_step)]) for i in range(len(by_step[0]))]
    kernel, *bias = (jnp.asarray(part if layer.steps else part[0]) for part in parts)
    layer.kernel, layer.bias = kernel, bias[0] if bias else None
    return True
