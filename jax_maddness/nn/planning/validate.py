"""Validates arguments of `plan`, so that no mistake is found only after minutes of measurements."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from jax_maddness.core import arguments
from jax_maddness.nn.layers.kinds import PLANNED, TOP
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.rules import Rule


def arguments_of_plan(max_drop: float, max_seconds: Any, metric: Any, call: Any, path: Any) -> None:
    """Validates arguments, so that no mistake is found only after minutes of measurements."""
    if max_drop < 0:
        raise ValueError(f"`max_drop` is {max_drop!r}; expected a number >= 0.")
    if arguments.real(max_seconds, "max_seconds", "a number of seconds") < 0:
        raise ValueError(f"`max_seconds` is {max_seconds!r}; expected a number of seconds, 0 or more.")
    arguments.function(metric, "metric", "metric(outputs, batch)")
    arguments.function(call, "call", "call(model, batch)")
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` is {path!r:.100}; expected the name of a JSON file.")
    if path is not None and (pathlib.Path(path).is_dir() or not pathlib.Path(path).absolute().parent.is_dir()):
        raise ValueError(f"`path` is {os.fspath(path)!r}; expected the name of a JSON file in a folder that exists.")


def ratios_of(ratios: Any) -> tuple[int, ...]:
    """Returns `ratios` as a tuple; a single one is a list of one."""
    ratios = tuple(ratios) if isinstance(ratios, Iterable) and not isinstance(ratios, str) else (ratios,)
    if not ratios:
        raise ValueError("`ratios` is empty; expected features per codebook, such as (32, 16, 8).")
    return tuple(arguments.integer(ratio, "ratios", 1, ", or several, such as (32, 16, 8)") for ratio in ratios)


def products_of(products: Any) -> tuple[str, ...]:
    """Returns `products` as a tuple; a single one is a list of one."""
    given = (products,) if isinstance(products, str) or not isinstance(products, Iterable) else tuple(products)
    if not given or not all(isinstance(product, str) and product in PLANNED for product in given):
        raise ValueError(f"`products` is {products!r}; expected some of: {', '.join(map(repr, PLANNED))}.")
    return given


def plannable(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Returns `rules`, if a plan can choose products for all of their layers.

    Raises:
      ValueError: One of them asks for the greatest outputs of a layer.
    """
    for rule in rules:
        if rule.product == TOP and not rule.skip:
            raise ValueError(
                f"The rule for {rule.pattern!r} has `top`, but a plan does not know which outputs matter. Replace that "
                "layer first, `fast = replace(model, rule, batches)`, and plan the others of `fast`."
            )
    return rules


def layers_to_plan(layers: list[Layer]) -> list[Layer]:
    """Gives tables of embeddings a reason to stay: a plan does not know which of their products matter."""
    for layer in layers:
        if layer.is_table and not layer.reason:
            layer.reason = f"it is a table of embeddings; replace its `attend` first, by `Rule({layer.path!r}, top=5)`"
    return layers
