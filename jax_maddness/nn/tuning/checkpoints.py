"""Training states in a folder, by orbax, so that training can be resumed."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import numpy as np


class Checkpoints:
    """Keeps the last state of one run in a folder; without a folder it does nothing.

    `fingerprint` identifies the settings of the run.

    Raises:
      ModuleNotFoundError: A folder is given, and orbax is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, fingerprint: int):
        self._fingerprint, self._manager = fingerprint, None
        if folder is None:
            return
        try:
            import orbax.checkpoint as orbax  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "`checkpoint` needs orbax: pip install orbax-checkpoint", name=error.name
            ) from error
        self._folder, self._args = pathlib.Path(folder).resolve(), orbax.args
        options = orbax.CheckpointManagerOptions(max_to_keep=1)
        self._manager = orbax.CheckpointManager(self._folder, options=options)

    def save(self, number: int, state: Any) -> None:
        """Writes `state`, whole or not at all."""
        if self._manager is not None:
            leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
            leaves["fingerprint"] = np.asarray(self._fingerprint)
            self._manager.save(number, args=self._args.StandardSave(leaves))
            self._manager.wait_until_finished()

    def restored(self, state: Any) -> Any:
        """Returns the last state that was written, in the structure of `state`; or `state`, if there is none.

        Raises:
          ValueError: It is of another run.
        """
        if self._manager is None or self._manager.latest_step() is None:
            return state
        restored = self._manager.restore(self._manager.latest_step(), args=self._args.StandardRestore())
        leaves, structure = jax.tree.flatten(state)
        same = int(restored.pop("fingerprint")) == self._fingerprint and len(restored) == len(leaves)
        if not same or any(restored[str(i)].shape != np.shape(leaf) for i, leaf in enumerate(leaves)):
            raise ValueError(
                f"The checkpoint in {os.fspath(self._folder)!r} is of another run: of another model or with other "
                "settings. Pass those, or another folder."
            )
        return jax.tree.unflatten(structure, [_constructor(leaf)(restored[str(i)]) for i, leaf in enumerate(leaves)])


def _constructor(leaf: Any) -> Any:
    """Returns the function that makes arrays of the kind of `leaf`, NumPy's or JAX's."""
    return np.array if isinstance(leaf, np.ndarray) else jax.numpy.asarray
