"""Readers of files with damaged files: whatever is in them, the result is a ValueError, or something that works.

Files are damaged in their bytes, and below their digests, which are made to match again (mutate.py). Every case is a
seed with a few changes; guided.py looks for what reaches new branches.
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx
from fuzz import campaign
from fuzz.mutate import flip, mutate

from jax_maddness import Rule, amm, load, load_index, save, save_index
from jax_maddness.nn import Captured, Plan, load_model, save_model
from jax_maddness.nn.planning.verdict import LayerPlan, Option, Trial

DATA = pathlib.Path(__file__).parents[1] / "data"
CORPUS = pathlib.Path(__file__).parent / "corpus"
"""For each reader a folder of files that had something to say once."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
      read: path -> contents.
      use: does with contents and a new path what must work with all contents that were read.
      seeds: makes the files that are changed.
    """

    read: Callable[[pathlib.Path], Any]
    use: Callable[[Any, pathlib.Path], None]
    seeds: Callable[[], list[bytes]]


def check(name, data, folder):
    """Reads `data`; fails unless it is refused with the words of a user's error, or works and can be written again."""
    reader, path = readers()[name], folder / "damaged"
    path.write_bytes(data)
    try:
        contents = reader.read(path)
    except ValueError as error:
        if str(path) not in str(error) and "of another model" not in str(error):
            raise
        return False
    reader.use(contents, folder / "again")
    return True


def golden(pattern):
    """Returns a function that reads the files of tests/data with such names."""
    return lambda: [path.read_bytes() for path in sorted(DATA.glob(pattern))]


@functools.cache
def readers():
    """All readers by name."""
    return {
        "op": Reader(load, _use_op, golden("*.maddness")),
        "index": Reader(load_index, _use_index, golden("*.index")),
        "model": Reader(lambda path: load_model(path, _pooled()), _use_model, golden("*.model")),
        "plan": Reader(Plan.from_json, _use_plan, _plans),
        "captured": Reader(Captured.load, _use_captured, _captured),
    }


def _use_op(op, path):
    save(path, op)
    again = load(path)
    shape = op.tables.values.shape
    assert again.tables.values.shape == shape
    if op.trees.row_features is not None and np.prod(shape) < 1e5:
        x = np.full((2, op.trees.row_features), np.nan, np.float32)
        assert amm(x, again).shape == (2, shape[0])


def _use_index(index, path):
    save_index(path, index)
    assert repr(load_index(path)) == repr(index)


def _use_model(model, path):
    save_model(path, model)
    load_model(path, _pooled())


def _use_plan(plan, path):
    plan.to_json(path)
    again = Plan.from_json(path)
    assert str(again) == str(plan)
    assert again.rules() == plan.rules()
    plan.html(path)


def _use_captured(captured, path):
    captured.save(path)
    assert type(captured).load(path).seen == captured.seen


@functools.cache
def _pooled():
    """The model of `golden_v2.model`, without values."""

    class Pooled(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(4, 6, (3,), padding="SAME", rngs=rngs)
            self.head = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.conv(x).max(1)))

    return nnx.eval_shape(lambda: Pooled(nnx.Rngs(0)))


def _written(write):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "seed"
        write(path)
        return [path.read_bytes()]


def _plans():
    options = tuple(Option(kind, size, 1.0, 0.01, 0.1, 0.0) for kind, size in (("exact", 0), ("codes", 4), ("int8", 0)))
    lines = (
        LayerPlan("a", ("a",), "Linear", (16, 8), 64, options, 4, "codes are faster"),
        LayerPlan("b", ("b", "c"), "Linear", (16, 8), 64, words="no rule matches"),
    )
    how = {"a": _rule_fields()}
    plan = Plan(
        lines, 0.01, "loss", "a machine", 2.0, 1.0, 0.5, 0.4, (Trial((("a", "codes", 4),), 2.0, 0.0),), True, how
    )
    return _written(plan.to_json)


def _rule_fields():
    fields = dataclasses.asdict(Rule("a"))
    del fields["pattern"]
    return fields


def _captured():
    rows = {"a": [np.ones((3, 1, 2), np.float32)], "b": [np.zeros((2, 1, 4), np.float32)] * 2}
    return _written(Captured(rows, {"a": [9], "b": [2, 5]}, 3).save)


@functools.cache
def seeds(name):
    """The files from which a campaign begins."""
    return [*readers()[name].seeds(), *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]


def case(rng):
    """A seed of some reader with one to four changes."""
    name = str(rng.choice(list(readers())))
    data = seeds(name)[rng.integers(len(seeds(name)))]
    for _ in range(int(rng.integers(1, 5))):
        data = mutate(data, rng, flip(rng))
    with tempfile.TemporaryDirectory() as folder:
        check(name, data, pathlib.Path(folder))


if __name__ == "__main__":
    campaign.main(case, "files", __doc__)
