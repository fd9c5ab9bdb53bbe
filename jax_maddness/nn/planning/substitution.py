"""`Substitution`: models with one unit replaced, all of them by one compiled program.

A replaced model is another program than the exact one, whose compilation takes longer than its run on a few batches.
Trials of single units are the most of a plan, so here the exact model is compiled once, with its layers cut open:

    outputs, inputs = program(batch, number, given)

All layers but those of unit `number` compute their outputs. Those of that unit return what is `given`, and its input is
returned, too. A trial runs the program for the input, the unit's replacement on it, and the program with its outputs.

Another program, in which the outputs of all units are given, takes the time of everything else in the model. The time
of single layers cannot be measured so: a program in which any one can be left out takes up to twice as long as the
model, as it hinders what XLA fuses, and differences of times of whole models are noisier than the layers themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jax_maddness.nn.models.layer import Hook
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.models.traces import current_trace
from jax_maddness.nn.planning import about, measure
from jax_maddness.nn.replacement import Replacement
from jax_maddness.nn.units import Unit

MAX_BYTES = 2**28
"""The most bytes that the inputs of one unit may take. Beyond it, two runs may take longer than a compilation."""


class Substitution:
    """Runs an exact model with the outputs of one unit's replacement in place of its own.

    Args:
      model: the exact model.
      units: units of the model; which of them can be replaced, `can_replace` tells.
      batches: those on which the model is run.
    """

    def __init__(self, model: Model, units: Sequence[Unit], batches: Sequence[Any]):
        self._model, self._batches = model, batches
        # A maximum over positions has another shape than the layer's own output.
        self._units = [unit for unit in units if unit.rule.num_candidates is None]
        self._all = len(self._units) == len(units)
        self._places = {
            layer.path: (number, index)
            for number, unit in enumerate(self._units)
            for index, layer in enumerate(unit.layers)
        }
        self._program = jax.jit(self._outputs_and_inputs, static_argnums=0)
        self._shapes: dict[str, dict[str, tuple[Any, Any]]] = {}
        self._zeros: dict[str, Array] = {}
        self._inputs: tuple[str | None, dict[int, Array]] = (None, {})

    def can_replace(self, unit: Unit) -> bool:
        """Whether this runs the model with a replacement of the unit.

        It does not where a layer is called several times, or inside of a scan, jit or remat of the model, or where the
        unit's inputs on all batches take more than `MAX_BYTES`.
        """
        if unit.owner not in [one.owner for one in self._units]:
            return False
        shapes = [self._accessible(batch) for batch in self._batches]
        if not all(layer.path in known for layer in unit.layers for known in shapes):
            return False
        return sum(_bytes(known[unit.first.path][0]) for known in shapes) <= MAX_BYTES

    def run(self, unit: Unit, replacement: Replacement) -> Callable[[Any], Any]:
        """Returns a function from one of the batches to the outputs of the model with the unit replaced."""
        return lambda batch: self._run(batch, unit, measure.outputs(unit, replacement, self._input(batch, unit)))[0]

    def rest(self, batch: Any) -> Callable[[], Any] | None:
        """Returns a function that runs the model without the products of the units; None if some cannot be left out."""
        shapes = self._accessible(batch)
        if shapes.keys() != self._places.keys() or not self._all:
            return None
        given = {name: self._zeros_of(name, y) for name, y in self._outputs(shapes).items()}
        program, arrays = jax.jit(self._outputs_without_units), self._model.arrays()
        return lambda: program(arrays, batch, given)

    def _outputs_without_units(self, arrays: Mapping[str, Any], batch: Any, given: Mapping[str, Array]) -> Any:
        def hook_of(path: str) -> Hook:
            index = self._places[path][1]

            def hook(layer: Callable[[Any], Any], x: Any) -> Any:
                y = given[_name(jax.eval_shape(layer, x), index)]
                # The barrier keeps the input as an array that is computed, and the sum keeps it needed.
                return y + 0 * jax.lax.optimization_barrier(x).reshape(-1)[:1].sum().astype(y.dtype)

            return hook

        return self._model.outputs(arrays, batch, {path: hook_of(path) for path in self._places}, of_layers=True)

    def _input(self, batch: Any, unit: Unit) -> Array:
        """Returns the input of the unit in the exact model. That of the last unit is kept for its next replacement."""
        if self._inputs[0] != unit.owner:
            self._inputs = (unit.owner, {})
        _, kept = self._inputs
        if id(batch) not in kept:  # ids stay those of the batches, which this holds
            shape, _ = self._accessible(batch)[unit.first.path]
            kept[id(batch)] = self._run(batch, unit)[1][_name(shape)]
        return kept[id(batch)]

    def _run(self, batch: Any, unit: Unit, outputs: Sequence[Array] = ()) -> tuple[Any, Mapping[str, Array]]:
        """Runs the program, with zeros for outputs that are not given."""
        shapes = self._accessible(batch)
        given = {name: self._zeros_of(name, y) for name, y in self._outputs(shapes).items()}
        for index, (layer, output) in enumerate(zip(unit.layers, outputs, strict=bool(outputs))):
            name = _name(shapes[layer.path][1], index)
            assert name == _name(output, index), (name, output.shape)
            given[name] = output
        number = jnp.int32(self._places[unit.first.path][0])
        return self._program(tuple(shapes), self._model.arrays(), batch, number, given)

    def _outputs_and_inputs(
        self,
        paths: tuple[str, ...],
        arrays: Mapping[str, Any],
        batch: Any,
        number: Int[Array, ""],
        given: Mapping[str, Array],
    ) -> tuple[Any, dict[str, Array]]:
        """Computes the program. Units with inputs of one shape share one array for what is returned of them."""
        inputs: dict[str, Array] = {}

        def hook_of(path: str) -> Hook:
            unit, index = self._places[path]

            def hook(layer: Callable[[Any], Any], x: Any) -> Any:
                chosen, name, y = number == unit, _name(x), layer(x)
                if index == 0:
                    inputs[name] = jnp.where(chosen, x, inputs.get(name, x))
                return jnp.where(chosen, given[_name(y, index)], y)

            return hook

        return self._model.outputs(arrays, batch, {path: hook_of(path) for path in paths}, of_layers=True), inputs

    def _accessible(self, batch: Any) -> dict[str, tuple[Any, Any]]:
        """Returns the shapes of input and output of the layers that are called once, and outside of inner traces."""
        key = str(jax.tree.map(about.abstract, batch))
        if key not in self._shapes:
            self._shapes[key] = self._traced(batch)
        return self._shapes[key]

    def _traced(self, batch: Any) -> dict[str, tuple[Any, Any]]:
        """Returns what `_accessible` does; nothing where the program cannot be traced, as with explicit shardings."""
        calls: dict[str, list[tuple[Any, Any] | None]] = {path: [] for path in self._places}

        def run(arrays: Mapping[str, Any], batch: Any) -> Any:
            outside = current_trace()

            def hook_of(path: str) -> Hook:
                def hook(layer: Callable[[Any], Any], x: Any) -> Any:
                    y = layer(x)
                    calls[path].append((about.abstract(x), about.abstract(y)) if current_trace() == outside else None)
                    return y

                return hook

            return self._model.outputs(arrays, batch, {path: hook_of(path) for path in self._places}, of_layers=True)

        arrays = self._model.arrays()
        try:
            jax.eval_shape(run, arrays, batch)
            shapes = {path: seen[0] for path, seen in calls.items() if len(seen) == 1 and seen[0] is not None}
            program = functools.partial(self._program, tuple(shapes))
            jax.eval_shape(program, arrays, batch, jax.ShapeDtypeStruct((), jnp.int32), self._outputs(shapes))
        except Exception:  # whatever the user's code raises
            return {}
        return shapes

    def _outputs(self, shapes: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        """Returns the shapes of the outputs that are given to the program, by name."""
        return {_name(y, self._places[path][1]): y for path, (_, y) in shapes.items()}

    def _zeros_of(self, name: str, y: Any) -> Array:
        """Returns zeros of the shape of an output, which are made once."""
        if name not in self._zeros:
            self._zeros[name] = jnp.zeros(y.shape, y.dtype)
        return self._zeros[name]


def _name(a: Any, index: int = 0) -> str:
    """Returns a name that arrays of one shape and dtype share; `index` is that of the layer in its unit."""
    return f"{a.dtype}{list(a.shape)} {index}"


def _bytes(a: Any) -> int:
    return a.size * a.dtype.itemsize
