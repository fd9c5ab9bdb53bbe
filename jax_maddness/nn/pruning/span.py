"""Spans: all values of a trace that have the same features, and the layers that make them and that read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jax.ad_checkpoint import checkpoint_name

from jax_maddness.nn.models.layer import Hook
from jax_maddness.nn.pruning.trace import MIXED, Step, Trace, Value

_MARK = "jax_maddness"
INTO, FROM = "into", "from"


class UsedError(Exception):
    """The reason why all features that reach a layer must be computed."""


def marked(path: str) -> Hook:
    """Returns a hook that marks a layer's input and output in a trace."""

    # `checkpoint_name` is the identity, and leaves a primitive with a name in the jaxpr.
    def hook(layer: Callable[[Any], Any], x: Any) -> Any:
        return checkpoint_name(layer(checkpoint_name(x, f"{_MARK} {INTO} {path}")), f"{_MARK} {FROM} {path}")

    return hook


def mark(step: Step) -> tuple[str, str] | None:
    """Returns `(INTO or FROM, path)` of a step that marks a layer; None for other steps."""
    name = str(step.params.get("name", "")) if step.name == "name" else ""
    if not name.startswith(f"{_MARK} "):
        return None
    _, where, path = name.split(" ", 2)
    return where, path


@dataclasses.dataclass
class Span:
    """Values that have the same features, up to the layers at both ends.

    Attributes:
      axes: the axis of the features of each value.
      readers, writers: by path of the layers at the ends, the steps that mark their calls.
    """

    axes: dict[Value, int]
    readers: dict[str, list[Step]] = dataclasses.field(default_factory=dict)
    writers: dict[str, list[Step]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, traced: Trace, start: Value) -> Span:
        """Finds all values that have the features of `start`, which are its last axis.

        Raises:
          UsedError: Something needs all of the features.
        """
        span = cls({start: len(start.shape) - 1})
        waiting = [start]
        while waiting:
            value = waiting.pop()
            if value in traced.results:
                raise UsedError("the model returns what it reads, or something made of it feature by feature")
            if value not in traced.made_by and value.place is None:
                raise UsedError("the model's input, or a constant in its code, has the same features")
            for step in traced.at(value):
                for other, axis in span._across(step, value):
                    if other not in span.axes:
                        waiting.append(other)
                    if span.axes.setdefault(other, axis) != axis:
                        raise UsedError(f"`{step.name}` brings features together")
        return span

    def _across(self, step: Step, value: Value) -> Iterator[tuple[Value, int]]:
        """Yields the values at the other sides of a step that have the features of `value`, with the axis of each.

        A span ends at the marks of layers, which are recorded.
        """
        axis = self.axes[value]
        end = mark(step)
        if end is not None:
            where, path = end
            if axis != len(value.shape) - 1 or value not in (step.inputs if where == INTO else step.outputs):
                raise UsedError(f"{path!r} has them on another axis")
            ends = self.readers if where == INTO else self.writers
            ends.setdefault(path, []).append(step)
            return
        if not step.known:
            raise UsedError(f"`{step.name}` is on the way, which is not known to keep features apart")
        out = axis if value in step.outputs else step.axis_out(value, axis)
        axes = [MIXED] if out == MIXED else [*step.axes_into(out), out]
        for other, at in zip((*step.inputs, *step.outputs), axes, strict=MIXED not in axes):
            if at == MIXED or (at is not None and other.shape[at] != value.shape[axis]):
                raise UsedError(f"`{step.name}` is on the way, which does not keep features apart")
            if at is not None:
                yield other, at
