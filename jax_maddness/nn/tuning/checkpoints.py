"""Training states in a folder, by orbax, so that training can be resumed."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jax_maddness.core.atomic import path_name
from jax_maddness.nn.fingerprint import differences


class Checkpoints:
    """Keeps the last state of one run in a folder; without a folder it does nothing.

    `fingerprint` is, by name, of everything that decides the run's result.

    Raises:
      TypeError: It is no path.
      ValueError: It is a file.
      ModuleNotFoundError: A folder is given, and orbax is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, fingerprint: Mapping[str, str]):
        self._fingerprint, self._manager = fingerprint, None
        if folder is None:
            return
        try:
            import orbax.checkpoint as orbax  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "`checkpoint` needs orbax: pip install orbax-checkpoint", name=error.name
            ) from error
        self._folder, self._args = pathlib.Path(path_name(folder, "checkpoint")).resolve(), orbax.args
        if self._folder.exists() and not self._folder.is_dir():
            raise ValueError(f"`checkpoint` is {os.fspath(folder)!r}, a file; expected a folder, which may be new.")
        # Without threads: one that a full disk has ended leaves the next save to wait minutes for its signal.
        options = orbax.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = orbax.CheckpointManager(self._folder, options=options)

    def save(self, number: int, state: Any) -> None:
        """Writes `state`, whole or not at all.

        Raises:
          OSError: It cannot be written, for example because the disk is full; the state before it is kept.
        """
        if self._manager is not None:
            leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
            leaves["fingerprint"] = np.frombuffer(json.dumps(dict(self._fingerprint)).encode(), np.uint8)
            try:
                self._manager.save(number, args=self._args.StandardSave(leaves))
                self._manager.wait_until_finished()
            except MemoryError:
                raise
            except Exception as error:  # orbax raises ValueError for a full disk, in words about its database
                raise OSError(
                    f"The state of the training could not be written to `checkpoint` {os.fspath(self._folder)!r}, "
                    f"where the one before it is unchanged: {error}"
                ) from error

    def restored(self, state: Any) -> Any:
        """Returns the last state that was written, in the structure of `state`; or `state`, if there is none.

        Raises:
          ValueError: It is of another run; the message says what differs. The folder stays as it is.
        """
        if self._manager is None or self._manager.latest_step() is None:
            return state
        restored = self._manager.restore(self._manager.latest_step(), args=self._args.StandardRestore())
        leaves, structure = jax.tree.flatten(state)
        self._validate(restored.pop("fingerprint", None))
        shapes = {str(i): np.shape(leaf) for i, leaf in enumerate(leaves)}
        if {name: np.shape(array) for name, array in restored.items()} != shapes:
            raise ValueError(f"The checkpoint in {os.fspath(self._folder)!r} is damaged. Pass another `checkpoint`.")
        return jax.tree.unflatten(structure, [_constructor(leaf)(restored[str(i)]) for i, leaf in enumerate(leaves)])

    def _validate(self, saved: np.ndarray | None) -> None:
        """Raises unless a fingerprint that was read is that of this run."""
        folder = f"The checkpoint in {os.fspath(self._folder)!r}"
        if saved is None or np.ndim(saved) != 1:
            raise ValueError(
                f"{folder} was written by an earlier version, which did not record what it was trained from: it cannot "
                "be told whether it is of another run. It was left as it is; pass another folder as `checkpoint`."
            )
        if different := differences(json.loads(np.asarray(saved, np.uint8).tobytes()), self._fingerprint):
            raise ValueError(
                f"{folder} is of another run, with other: {different}. It was left as it is. Pass what that run began "
                "with (a replaced model as `save_model` kept it), or another folder as `checkpoint` to begin anew."
            )


def _constructor(leaf: Any) -> Any:
    """Returns the function that makes arrays of the kind of `leaf`, NumPy's or JAX's."""
    return np.array if isinstance(leaf, np.ndarray) else jax.numpy.asarray
