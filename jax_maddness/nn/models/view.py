"""`Model`: one view of nnx and linen models. Outside of this folder, nothing asks which kind a model is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.models.layer import Hook, Layer, Tap


class Model(Protocol):
    """The view of a model that capture, calibration, replacement, tuning, pruning and files have.

    A *path* leads to a module, a *place* to an array; both are names joined by "/".

    Attributes:
      kind: the name of the kind of model in files.
      model: the user's model: an `nnx.Module`, or a linen module with its variables.
    """

    kind: ClassVar[str]
    model: Any

    def layers(self, batch: Any) -> list[Layer]:
        """Returns every layer with a kernel, in the order in which a run on `batch`, which is only traced, calls them.

        Layers that the run does not call come last. A table of embeddings is a layer if the run calls its `attend`.
        """

    def modules(self, batch: Any) -> list[str]:
        """Returns the paths of the modules inside of the model that a run on `batch` may call."""

    def run(self) -> Callable[[Any], Any]:
        """Returns the compiled model, a function from a batch to its outputs."""

    def tapped(self, steps: Mapping[str, int], tap: Tap) -> tuple[Callable[[Any, Any], None], Any]:
        """Returns a function of the model's arrays and a batch that computes what `tap` does, and these arrays.

        Nothing else is computed once it is compiled.

        Args:
          steps: by the paths of the layers to tap, the number of steps or members that their kernels are stacked over;
            if it is not 0, calls have the number of the step.
          tap: is told of each call while the function is traced.
        """

    def arrays(self) -> dict[str, Any]:
        """Returns all arrays of the model by place."""

    def weights(self) -> dict[str, Any]:
        """Returns `arrays` without random states, which change whenever numbers are drawn."""

    def with_arrays(self, arrays: Mapping[str, Any]) -> Model:
        """Returns the model with other arrays, for all of its places."""

    def outputs(
        self, arrays: Mapping[str, Any], batch: Any, hooks: Mapping[str, Hook] | None = None, of_layers: bool = False
    ) -> Any:
        """Returns the outputs of the model with other arrays.

        Args:
          arrays: for all places of the model.
          batch: an input.
          hooks: called in place of modules, replaced or not, by path.
          of_layers: hooks are called in place of products: for a table of embeddings, of `attend`, and not of calls.
        """

    def replaced(self, specs: Mapping[str, Spec], arrays: Mapping[str, Mapping[str, Any]]) -> Model:
        """Returns a new model with ops in place of layers.

        Args:
          specs: by the layers' paths.
          arrays: by the specs' owners, the arrays of their ops by name.
        """

    def narrowed(self, specs: Mapping[str, Spec], arrays: Mapping[str, Any]) -> Model:
        """Returns a new model with other specs of all replaced layers, and all arrays, some of which may be smaller."""

    def specs(self) -> dict[str, Spec]:
        """Returns the specs of the replaced layers, by path."""

    def op_places(self) -> dict[str, dict[str, str]]:
        """Returns, by the specs' owners, the places of their ops' arrays by name."""

    def parameter_places(self) -> list[str]:
        """Returns the places of all floating parameters."""

    def layer_places(self, path: str) -> list[str]:
        """Returns the places of the kernel and, if there is one, the bias of an exact layer."""

    def file_arrays(self) -> dict[tuple[Any, ...], Any]:
        """Returns all arrays as files contain them: the names of a place are apart, and may be numbers."""

    @classmethod
    def from_file(cls, model: Any, specs: Mapping[str, Spec], arrays: Mapping[tuple[Any, ...], Any], file: str) -> Any:
        """Assembles the user's model from the contents of a file.

        Args:
          model: a model of the same architecture without replacements; for linen the module alone.
          specs: as of `specs`.
          arrays: as of `file_arrays`.
          file: the name of the file, for messages.

        Raises:
          ValueError: `model` is of another kind or architecture.
        """
