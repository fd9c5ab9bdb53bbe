"""The products that are measured on a layer: XLA's, torch's where installed, and ours in several sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks.contenders import int8_columns, int8_dynamic, torch_linear
from benchmarks.packaged import Matrices
from jax_maddness.learn.tables.factors import principal

CHOSEN = "size chosen by `fit`"
"""The family of the op that `fit` learns where no size is given: one of the others."""
OURS = ("codes", "codes and factors", "factors", "our int8", CHOSEN)
"""The families of our products."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A product to measure.

    Attributes:
      name: its name in tables.
      family: the kind of product, which all its sizes share.
      prepare: takes rows, which all contenders share, and returns a call that multiplies them and waits for the result.
    """

    name: str
    family: str
    prepare: Callable[[jax.Array], Callable[[], Any]]


def jitted(name: str, family: str, f: Callable[..., Any], *operands: Any) -> Contender:
    """Returns the contender that calls the jitted `f` with rows and `operands`."""
    call = jax.jit(f)

    def prepare(x: jax.Array) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(call(x, *operands))

    return Contender(name, family, prepare)


def rivals(layer: Matrices, threads: int) -> Iterator[Contender]:
    """Yields XLA's product in f32, which all others are compared with, then the alternatives to ours."""
    w, b = jnp.asarray(layer.w), jnp.asarray(layer.b)
    yield jitted("XLA f32", "XLA f32", lambda x, w, b: x @ w + b, w, b)
    yield jitted("XLA int8", "XLA int8", lambda x, w8, step, b: int8_dynamic(x, w8, step) + b, *int8_columns(w), b)
    if (linear := torch_linear(layer.w, threads)) is not None:
        yield _torch(linear, layer.b)
    mean, centered = layer.x_train.mean(0), layer.x_train - layer.x_train.mean(0)
    for rank in ranks(*layer.w.shape):
        v = principal(centered, layer.w.astype(np.float64), rank).astype(np.float32)
        operands = (layer.w @ v, v.T, mean @ (layer.w - layer.w @ v @ v.T) + layer.b)
        name = f"XLA low rank {rank}"
        yield jitted(name, "XLA low rank", lambda x, down, up, b: (x @ down) @ up + b, *map(jnp.asarray, operands))


def _torch(linear: Callable[[Any], Any], bias: np.ndarray) -> Contender:
    import torch

    offset = torch.from_numpy(bias)

    def prepare(x: jax.Array) -> Callable[[], Any]:
        rows = torch.from_numpy(np.array(x))

        def call() -> Any:
            with torch.inference_mode():
                return linear(rows) + offset

        return call

    return Contender("torch int8", "torch int8", prepare)


def ours(layer: Matrices, method: str) -> Iterator[Contender]:
    """Yields our products: codes, factors, both, a whole product in int8, and what `fit` chooses among these."""
    features, outputs = layer.w.shape
    codes = max(1, features // 16)
    sizes: list[tuple[str, int | None, dict[str, Any]]] = [("codes", c, {}) for c in dict.fromkeys((codes, 2 * codes))]
    sizes += [("factors", 0, {"rank": rank}) for rank in ranks(features, outputs)]
    sizes += [("codes and factors", codes, {"rank": rank}) for rank in ranks(features, outputs)[:2]]
    sizes += [("our int8", 0, {"method": "int8"}), (CHOSEN, None, {})]
    for family, codebooks, options in sizes:
        config = dataclasses.replace(jax_maddness.FitConfig(method), **options)
        op = jax_maddness.fit(layer.x_train, layer.w, layer.b, num_codebooks=codebooks, config=config, progress=False)
        yield jitted(named(family, codebooks, options), family, jax_maddness.amm, op)


def ranks(features: int, outputs: int) -> list[int]:
    """Returns powers of two from 8 on that take fewer multiplications than the whole product.

    Example:
      >>> ranks(384, 1536), ranks(32, 16)
      ([8, 16, 32, 64, 128, 256], [8])
    """
    return [r for r in (2**i for i in range(3, 11)) if r * (features + outputs) < features * outputs]


def named(family: str, codebooks: int | None, options: dict[str, Any]) -> str:
    """Returns the name of one of our products.

    Example:
      >>> named("codes and factors", 16, {"rank": 4}), named("our int8", 0, {"method": "int8"})
      ('C = 16, rank 4', 'our int8')
    """
    parts = [f"C = {codebooks}"] if codebooks else []
    parts += [f"rank {options['rank']}"] if "rank" in options else []
    return ", ".join(parts) or family
