"""The state of a training in a folder, by orbax, so that it can go on later."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import numpy as np


class Checkpoints:
    """The last state of one run; without a folder it does nothing.

    Raises:
      ModuleNotFoundError: a folder is given, and orbax is not installed.
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
        """The last state that was written, of the structure of `state`; or `state`, if there is none.

        Raises:
          ValueError: it is of another run.
        """
        if self._manager is None or self._manager.latest_step() is None:
            return state
        found = self._manager.restore(self._manager.latest_step(), args=self._args.StandardRestore())
        leaves, structure = jax.tree.flatten(state)
        same = int(found.pop("fingerprint")) == self._fingerprint and len(found) == len(leaves)
        if not same or any(found[str(i)].shape != np.shape(leaf) for i, leaf in enumerate(leaves)):
            raise ValueError(
                f"The checkpoint in {os.fspath(self._folder)!r} is of another run: of another model or with other "
                "settings. Pass those, or another folder."
            )
        return jax.tree.unflatten(structure, [type_of(leaf)(found[str(i)]) for i, leaf in enumerate(leaves)])


def type_of(leaf: Any) -> Any:
    """What makes an array of the kind of `leaf`."""
    return np.array if isinstance(leaf, np.ndarray) else jax.numpy.asarray
