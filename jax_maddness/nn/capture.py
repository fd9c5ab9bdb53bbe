"""batches -> samples of every layer's input: the rows that ops are learned from.

The model runs compiled, as it is, through scans and remat; a callback hands rows of each layer's input to the host.
A compiled run computes only what these need. At most `max_rows` rows of a call leave the device: always those at the
same places, so that two models, run on the same batches, show the same rows. Reservoir sampling then keeps as many of
all calls' rows, each row with the same probability.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.learn.progress import Progress
from jax_maddness.nn.layers.approximate import promoted
from jax_maddness.nn.models.layer import Layer
from jax_maddness.nn.models.model import Model, adapt, layers_of
from jax_maddness.nn.rules import Rule, decide, validated_rules

if TYPE_CHECKING:
    from jaxtyping import Float

MAX_ROWS = 2**14
"""Rows of a layer that are kept, of each step where the layer is in a scan."""
MAX_BYTES = 2**28
"""Bytes that they may take."""


@dataclasses.dataclass
class Reservoir:
    """A uniform sample of the rows that were offered.

    Attributes:
      rows: those kept.
      seen: how many were offered.
    """

    rows: Float[np.ndarray, "kept groups features"]
    seen: int = 0

    def add(self, rows: Float[np.ndarray, "new groups features"], of: int, room: int, seed: int) -> None:
        """Offers a uniform sample of `of` more rows: how many of the old ones stay is hypergeometric."""
        rng = np.random.default_rng((seed, self.seen))
        kept = self.rows
        total = min(room, self.seen + of)
        if len(kept) + len(rows) > total:
            fresh = int(rng.hypergeometric(of, self.seen, total)) if self.seen else total
            fresh = min(max(fresh, total - len(kept)), len(rows))
            rows = rows[rng.choice(len(rows), fresh, replace=False)]
            kept = kept[rng.choice(len(kept), total - fresh, replace=False)] if len(kept) > total - fresh else kept
        self.rows = np.concatenate([kept, rows]) if len(kept) else rows
        self.seen += of


@dataclasses.dataclass
class Captured:
    """Samples of layers' inputs; `save` and `load` let a long capture go on later.

    Attributes:
      rows: of each layer by path, one sample for each step of a scan, `[kept, groups, features]` each.
      seen: how many rows these stand for, likewise.
      batches: how many batches were read.
    """

    rows: dict[str, list[np.ndarray]]
    seen: dict[str, list[int]]
    batches: int = 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an `.npz` file, whole or not at all."""
        path = pathlib.Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        about = {"format": "jax_maddness.captured", "version": 1, "seen": self.seen, "batches": self.batches}
        arrays = {f"{name}:{i}": rows for name, steps in self.rows.items() for i, rows in enumerate(steps)}
        with open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Captured:
        """Reads what `save` wrote.

        Raises:
          ValueError: the file is of another kind, or newer.
        """
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes()) if "about" in file else {}
            if about.get("format") != "jax_maddness.captured" or about.get("version") != 1:
                raise ValueError(f"{os.fspath(path)!r} was not written by this version's `Captured.save`.")
            rows = {name: [file[f"{name}:{i}"] for i in range(len(seen))] for name, seen in about["seen"].items()}
        return cls(rows, about["seen"], about["batches"])


def capture(
    model: Any,
    batches: Iterable[Any] | Callable[[], Iterator[Any]],
    rules: Rule | Sequence[Rule],
    *,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    call: Callable[[Any, Any], Any] | None = None,
    resume: Captured | None = None,
    progress: bool | None = None,
) -> Captured:
    """Samples of the inputs of every layer that `rules` would replace.

    Args:
      model: an `nnx.Module`, in the mode in which it is to be used (`model.eval()`); or `(module, variables)` of linen.
      batches: inputs of the model, or a function that returns an iterator over them.
      rules: which layers.
      max_rows: how many rows to keep of each layer.
      max_bytes: how many bytes these may take.
      call: `call(model, batch)` runs the model, if `model(batch)` does not.
      resume: an earlier result to go on from: as many batches as it has read are passed over.
      progress: show a progress bar; None shows it where this takes longer than two seconds.

    Raises:
      ValueError: there is no batch, the model does not take it, or no layer matches.
    """
    adapted = adapt(model, call)
    first, stream = peek(batches)
    chosen = [layer for layer, _ in decide(layers_of(adapted, first), validated_rules(rules))]
    if not chosen:
        raise ValueError("No layer that can be replaced matches `rules`. `replace(..., dry_run=True)` lists them all.")
    return record(adapted, chosen, stream, max_rows, max_bytes, resume, progress)


def peek(batches: Iterable[Any] | Callable[[], Iterator[Any]]) -> tuple[Any, Iterator[Any]]:
    """The first batch, and an iterator over all."""
    stream = iter(batches() if callable(batches) else batches)
    try:
        first = next(stream)
    except StopIteration:
        raise ValueError(
            "`batches` is empty. Pass inputs of the model: ops are learned from what its layers see."
        ) from None

    def all_of_them() -> Iterator[Any]:
        yield first
        yield from stream

    return first, all_of_them()


def record(
    model: Model,
    layers: Sequence[Layer],
    batches: Iterable[Any],
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    resume: Captured | None = None,
    progress: bool | None = None,
) -> Captured:
    """`capture` of these layers."""
    sinks = {layer.path: _Sink.of(layer, max_rows, max_bytes, resume) for layer in layers}

    def tap(path: str, x: jax.Array) -> None:
        sink = sinks[path]
        form, count = sink.form, sink.form.num_rows(x)
        if count == 0:
            return
        rows = form.rows_at(promoted(x, sink.dtype, sink.param_dtype), sink.places(count)).astype(jnp.float32)
        jax.debug.callback(lambda rows: sink.waiting.append((rows, count)), rows)

    run, read = model.tapped([layer.path for layer in layers], tap), resume.batches if resume else 0
    done = 0
    with Progress(progress, "capture") as bar:
        for batch in batches:
            done += 1
            if done <= read:
                continue
            bar.expect(1)
            run(batch)
            jax.effects_barrier()
            for sink in sinks.values():
                sink.end_of_batch()
            bar.step()
    return Captured(
        {path: [r.rows for r in sink.reservoirs] for path, sink in sinks.items()},
        {path: [r.seen for r in sink.reservoirs] for path, sink in sinks.items()},
        max(done, read),
    )


@dataclasses.dataclass
class _Sink:
    """What becomes of the rows of one layer.

    Callbacks only append to `waiting`, for a layer in a scan step by step. They must not look at the values: where
    the runtime has one thread, which is in the callback, reading the array there would wait for ever.
    """

    form: Any
    dtype: str | None
    param_dtype: str
    room: int
    seed: int
    reservoirs: list[Reservoir]
    waiting: list[tuple[Any, int]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, layer: Layer, max_rows: int, max_bytes: int, resume: Captured | None) -> _Sink:
        assert layer.form is not None
        size = layer.form.groups * layer.shape[0]
        room = max(1, min(max_rows, max_bytes // (4 * size * max(layer.steps, 1))))
        empty = np.zeros((0, layer.form.groups, layer.shape[0]), np.float32)
        reservoirs = [Reservoir(empty) for _ in range(max(layer.steps, 1))]
        if resume is not None and layer.path in resume.rows:
            if [r.shape[1:] for r in resume.rows[layer.path]] != [empty.shape[1:]] * len(reservoirs):
                raise ValueError(f"`resume` has other rows for {layer.path!r}: it was captured from another model.")
            reservoirs = list(map(Reservoir, resume.rows[layer.path], resume.seen[layer.path]))
        seed = zlib.crc32(layer.path.encode())
        return cls(layer.form, layer.dtype, layer.param_dtype, room, seed, reservoirs)

    def places(self, count: int) -> np.ndarray:
        """Which of `count` rows leave the device."""
        if count <= self.room:
            return np.arange(count)
        return np.sort(np.random.default_rng(self.seed).choice(count, self.room, replace=False))

    def end_of_batch(self) -> None:
        """Deals what came to the steps of the scan."""
        each = len(self.waiting) // len(self.reservoirs)  # calls per step
        for i, (rows, of) in enumerate(self.waiting):
            self.reservoirs[min(i // max(each, 1), len(self.reservoirs) - 1)].add(
                np.asarray(rows), of, self.room, self.seed
            )
        self.waiting.clear()
