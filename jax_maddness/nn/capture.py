"""capture: batches -> samples of every layer's input, the rows that ops are learned from.

The model runs compiled, as it is, through scans and remat; a callback hands rows of each layer's input to the host.
The compiled run computes only what these rows need. At most `max_rows` rows of a call leave the device, always at the
same places, so that two models that run on the same batches show the same rows. Reservoir sampling then keeps as many
of all calls' rows, each row with the same probability.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_maddness.core import archive, arguments
from jax_maddness.core.restore import restored
from jax_maddness.learn.progress import Progress
from jax_maddness.nn.batches import Batches, peek, validate_limits, validate_rows
from jax_maddness.nn.layers.approximate import promoted
from jax_maddness.nn.layers.form import Form
from jax_maddness.nn.layers.promotion import with_standard_promotion
from jax_maddness.nn.models.layer import Call, Layer
from jax_maddness.nn.models.model import Model, adapt, layers_of
from jax_maddness.nn.models.watch import Watch
from jax_maddness.nn.rules import Rule, decide, validated_rules

MAX_ROWS = 2**14
"""The most rows of a layer that are kept, of each step where the layer is in a scan."""
MAX_BYTES = 2**28
"""The most bytes that the rows of a layer may take."""
FEW_ROWS = 64
"""The most rows that are kept of a layer from which nothing is learned, as of a depthwise convolution.

They are only compared. All patches of all groups may be many times as large as the input of the layer."""
_FORMAT, _VERSION = "jax_maddness.captured", 2


@dataclasses.dataclass
class Reservoir:
    """A uniform sample of the rows that were offered.

    Attributes:
      rows: the rows that are kept, in float32.
      seen: the number of rows that were offered.
    """

    rows: Float[np.ndarray, "kept groups features"]
    seen: int = 0

    def add(self, rows: Float[np.ndarray, "new groups features"], num_rows: int, room: int, seed: int) -> None:
        """Offers rows.

        Args:
          rows: a uniform sample of the rows that are offered.
          num_rows: how many rows that is a sample of.
          room: the most rows to keep.
          seed: of the random choice, which also depends on the number of rows seen.
        """
        rng = np.random.default_rng((seed, self.seen))
        kept = self.rows
        total = min(room, self.seen + num_rows)
        if len(kept) + len(rows) > total:
            # In a uniform sample of all rows, the number of new ones has the hypergeometric distribution.
            fresh = int(rng.hypergeometric(num_rows, self.seen, total)) if self.seen else total
            fresh = min(max(fresh, total - len(kept)), len(rows))
            rows = rows[rng.choice(len(rows), fresh, replace=False)]
            kept = kept[rng.choice(len(kept), total - fresh, replace=False)] if len(kept) > total - fresh else kept
        self.rows = np.concatenate([kept, rows]) if len(kept) else rows
        self.seen += num_rows


@dataclasses.dataclass
class Captured:
    """Samples of layers' inputs; with `save` and `load` a long capture can be continued later.

    Attributes:
      rows: by path of the layer, one sample for each step of a scan, `[kept, groups, features]` each, in float32.
      seen: the number of rows that each sample is drawn from.
      batches: the number of batches that were read.
    """

    rows: dict[str, list[np.ndarray]]
    seen: dict[str, list[int]]
    batches: int = 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file, whole or not at all; `core/archive.py` describes the format.

        Raises:
          TypeError: `path` is not a path.
          OSError: the file cannot be written; an existing file is unchanged.
        """
        arrays = (rows for name in self.seen for rows in self.rows[name])
        about = {"seen": self.seen, "batches": self.batches}
        archive.write(path, _FORMAT, _VERSION, about, {str(i): rows for i, rows in enumerate(arrays)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Captured:
        """Reads a file that `save` wrote.

        Raises:
          TypeError: `path` is not a path.
          OSError: there is no such file, or it cannot be opened.
          ValueError: the file is damaged, of another kind, or of another version; the message says which.
        """
        return archive.read(path, _FORMAT, _VERSION, "rows that `Captured.save` wrote", cls._assemble, ("float32",))

    @classmethod
    def _assemble(cls, header: dict[str, Any], read: archive.Reader) -> Captured:
        arrays = read()
        batches = restored(int, header.get("batches"), "batches")
        seen = restored(dict[str, tuple[int, ...]], header.get("seen"), "seen")
        count = sum(map(len, seen.values()))
        if sorted(arrays) != sorted(map(str, range(count))) or any(a.ndim != 3 for a in arrays.values()):
            raise ValueError(f"it has the arrays {list(arrays)!r:.200}; expected {count} with three dimensions.")
        in_order = iter(arrays[str(i)] for i in range(count))
        rows = {name: [next(in_order) for _ in steps] for name, steps in seen.items()}
        for name, samples in rows.items():
            if len({a.shape[1:] for a in samples}) > 1:
                raise ValueError(f"the rows of {name!r} have different shapes.")
            for sample, count in zip(samples, seen[name], strict=True):
                if count < len(sample):
                    raise ValueError(f"{name!r} has {len(sample)} rows of {count}.")
        if batches < 0:
            raise ValueError(f"it is of {batches} batches.")
        return cls(rows, {name: list(steps) for name, steps in seen.items()}, batches)


@with_standard_promotion
def capture(
    model: Any,
    batches: Batches,
    rules: Rule | Sequence[Rule],
    *,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    call: Callable[[Any, Any], Any] | None = None,
    resume: Captured | None = None,
    progress: bool | None = None,
) -> Captured:
    """Samples the inputs of every layer that `rules` would replace.

    Args:
      model: an `nnx.Module`, in the mode in which it is to be used (`model.eval()`); or `(module, variables)` of linen.
      batches: inputs of the model, or a function that returns an iterator over them.
      rules: decide which layers are captured.
      max_rows: the most rows to keep of each layer.
      max_bytes: the most bytes that these may take.
      call: `call(model, batch)` runs the model, if `model(batch)` does not.
      resume: an earlier result to continue from: the batches that it has read are skipped.
      progress: show a progress bar; None shows it if this takes longer than two seconds.

    Returns:
      The samples, which `replace` takes as `captured`.

    Raises:
      TypeError: `model` is none of Flax's.
      ValueError: There is no batch, the model does not take it, no layer matches, `resume` is of another model, a
        layer sees NaN or an infinity, or a limit leaves no rows.

    Example:
      >>> from flax import nnx
      >>> model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
      >>> captured = capture(model, [jnp.ones((10, 3)), jnp.zeros((10, 3))], Rule(".*"), max_rows=12)
      >>> captured.rows[""][0].shape, captured.seen[""]  # of the model itself, which is one layer
      ((12, 1, 3), [20])
    """
    if resume is not None:
        arguments.instance(resume, "resume", Captured, "`capture` returns one")
    adapted = adapt(model, call)
    first, stream = peek(batches)
    chosen = [layer for layer, _ in decide(layers_of(adapted, first), validated_rules(rules))]
    if not chosen:
        raise ValueError("No layer that can be replaced matches `rules`. `replace(..., dry_run=True)` lists them all.")
    validate_limits(max_rows, max_bytes, chosen)
    captured = record(adapted, chosen, stream, max_rows, max_bytes, resume, progress)
    for path, rows in captured.rows.items():
        validate_rows(path, rows, batches)
    return captured


def record(
    model: Model,
    layers: Sequence[Layer],
    batches: Iterable[Any],
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    resume: Captured | None = None,
    progress: bool | None = None,
    unlearned: Collection[str] = (),
) -> Captured:
    """Samples the inputs of layers.

    Args:
      model: the model.
      layers: those that are captured.
      batches: inputs of the model.
      max_rows, max_bytes, resume, progress: as for `capture`.
      unlearned: paths of layers from whose rows nothing is learned: at most `FEW_ROWS` of them are kept.
    """
    rooms = {layer.path: min(max_rows, FEW_ROWS) if layer.path in unlearned else max_rows for layer in layers}
    sinks = {layer.path: _Sink.of(layer, rooms[layer.path], max_bytes, resume) for layer in layers}
    watch = Watch()

    def tap(path: str, call: Call) -> None:
        sink = sinks[path]
        num_rows = sink.form.num_rows(call.x)
        if num_rows == 0:
            return
        rows = promoted(call.x, sink.dtype, sink.param_dtype)
        rows = sink.form.rows_at(rows, sink.places(num_rows)).astype(jnp.float32)
        watch.send(path, jnp.int32(0) if call.step is None else call.step, jnp.int32(num_rows), rows)

    function, arrays = model.tapped({layer.path: layer.steps for layer in layers}, tap)
    run = watch.compiled(function)
    num_read = resume.batches if resume else 0
    number = 0
    with Progress(progress, "capture") as bar:
        for number, batch in enumerate(batches, 1):
            if number <= num_read:
                continue
            bar.expect(1)
            run(arrays, batch)
            for path, calls in watch.received().items():
                for call in calls:
                    sinks[path].add(*call)
            bar.step()
    return Captured(
        {path: [r.rows for r in sink.reservoirs] for path, sink in sinks.items()},
        {path: [r.seen for r in sink.reservoirs] for path, sink in sinks.items()},
        max(number, num_read),
    )


@dataclasses.dataclass
class _Sink:
    """Receives the rows of one layer.

    Attributes:
      form, dtype, param_dtype: of the layer.
      room: the most rows that each reservoir keeps.
      seed: of the random choices, which are the same for every model with such a layer.
      reservoirs: one for each step of a scan, or member of a vmap.
    """

    form: Form
    dtype: str | None
    param_dtype: str
    room: int
    seed: int
    reservoirs: list[Reservoir]

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

    def places(self, num_rows: int) -> np.ndarray:
        """Returns the numbers of the rows of a call that leave the device: the same for every call of this size."""
        if num_rows <= self.room:
            return np.arange(num_rows)
        return np.sort(np.random.default_rng(self.seed).choice(num_rows, self.room, replace=False))

    def add(self, steps: np.ndarray, num_rows: np.ndarray, rows: np.ndarray) -> None:
        """Adds one call, or all members of one that is in a vmap.

        Args:
          steps: the number of the step that each member is.
          num_rows: the number of rows of each member, of which `rows` are a sample.
          rows: [members, rows, groups, features].
        """
        for step in np.unique(steps):
            members = steps == step
            self.reservoirs[int(step)].add(
                rows[members].reshape(-1, *rows.shape[2:]), int(num_rows[members].sum()), self.room, self.seed
            )
