"""All values of a trace that have the features of one of them, and the layers that make and that read them."""

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
    """Why all features that reach a layer must be computed."""


def marked(path: str) -> Hook:
    """A hook that leaves a name at what goes into a layer, and at what comes from it."""

    def hook(layer: Callable[[Any], Any], x: Any) -> Any:
        return checkpoint_name(layer(checkpoint_name(x, f"{_MARK} {INTO} {path}")), f"{_MARK} {FROM} {path}")

    return hook


def mark(step: Step) -> tuple[str, str] | None:
    """`(INTO or FROM, path)` where a step is such a name."""
    name = str(step.params.get("name", "")) if step.name == "name" else ""
    if not name.startswith(f"{_MARK} "):
        return None
    _, where, path = name.split(" ", 2)
    return where, path


@dataclasses.dataclass
class Span:
    """Values that have the same features, up to the layers at both ends.

    Attributes:
      axes: of features, for each value.
      readers, writers: the steps that mark each layer at the ends, by path.
    """

    axes: dict[Value, int]
    readers: dict[str, list[Step]] = dataclasses.field(default_factory=dict)
    writers: dict[str, list[Step]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, traced: Trace, start: Value) -> Span:
        """All that has the features of `start`, which are its last axis.

        Raises:
          UsedError: something needs them all.
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
        """What has the features of `value` on the other sides of a step, and on which axes."""
        axis = self.axes[value]
        found = mark(step)
        if found is not None:
            where, path = found
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
