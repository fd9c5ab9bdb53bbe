"""capture: reservoirs, memory bounds, resuming, a runtime with one thread."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jax_maddness import Captured, Rule, capture, replace
from jax_maddness.core import archive
from jax_maddness.nn.capture import Reservoir, record
from jax_maddness.nn.models.model import adapt, layers_of


def batches(count, rows=10):
    return [jnp.arange(rows * 3, dtype=jnp.float32).reshape(rows, 3) + 100 * i for i in range(count)]


@pytest.fixture
def model():
    return nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1)))


def test_all_rows_are_there_while_there_is_room(model):
    found = capture(model, batches(2), Rule("layers/0"))
    np.testing.assert_array_equal(found.rows["layers/0"][0][:, 0], np.concatenate(batches(2)))
    assert list(found.rows) == ["layers/0"]


def test_few_rows_are_kept_of_layers_from_which_nothing_is_learned(model):
    adapted = adapt(model)
    found = record(adapted, layers_of(adapted, batches(1)[0]), batches(9), unlearned={"layers/1"})
    assert {path: len(rows[0]) for path, rows in found.rows.items()} == {"layers/0": 90, "layers/1": 64}


def test_what_is_kept_is_bounded(model):
    by_rows = capture(model, batches(4), Rule(".*"), max_rows=7)
    by_bytes = capture(model, batches(4), Rule(".*"), max_bytes=5 * 3 * 4)
    assert [len(rows[0]) for rows in by_rows.rows.values()] == [7, 7]
    assert [len(rows[0]) for rows in by_bytes.rows.values()] == [5, 3]
    assert by_rows.seen == {"layers/0": [40], "layers/1": [40]}


def test_a_capture_goes_on_where_it_stopped(model, tmp_path):
    whole = capture(model, batches(4), Rule(".*"), max_rows=7)
    part = capture(model, batches(2), Rule(".*"), max_rows=7)
    part.save(tmp_path / "part.npz")
    resumed = capture(model, batches(4), Rule(".*"), max_rows=7, resume=Captured.load(tmp_path / "part.npz"))
    assert (resumed.seen, resumed.batches) == (whole.seen, 4)
    for path, rows in whole.rows.items():
        np.testing.assert_array_equal(resumed.rows[path][0], rows[0])
    other = nnx.Sequential(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 2, rngs=nnx.Rngs(1)))
    with pytest.raises(ValueError, match="another model"):
        capture(other, batches(4), Rule(".*"), resume=part)


def test_a_file_of_another_kind_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"Captured\.save"):
        Captured.load(tmp_path / "x.npz")


ABOUT = {"seen": {"a": [2]}, "batches": 1}
ROWS = np.ones((2, 1, 3), np.float32)


@pytest.mark.parametrize(
    ("version", "about", "rows", "match"),
    [
        (3, ABOUT, ROWS, "version 3"),
        (2, ABOUT | {"batches": -1}, ROWS, "batches"),
        (2, ABOUT | {"seen": {"a": [1]}}, ROWS, "2 rows of 1"),
        (2, ABOUT | {"seen": {"a": [2.5]}}, ROWS, "2.5, which is not int"),
        (2, ABOUT | {"seen": {"b": []}}, ROWS, "expected 0"),
        (2, ABOUT | {"seen": [1]}, ROWS, "seen is"),
        (2, ABOUT, ROWS[0], "three dimensions"),
        (2, ABOUT | {"seen": {"a": [2, 2]}}, (ROWS, ROWS[..., :2]), "different shapes"),
    ],
)
def test_a_file_with_other_contents_is_refused(tmp_path, version, about, rows, match):
    arrays = rows if isinstance(rows, tuple) else (rows,)
    archive.write(tmp_path / "x", "jax_maddness.captured", version, about, {str(i): a for i, a in enumerate(arrays)})
    with pytest.raises(ValueError, match=match):
        Captured.load(tmp_path / "x")


def test_a_damaged_file_and_what_is_no_file_are_errors(model, tmp_path):
    found = capture(model, batches(1), Rule("layers/0"))
    found.save(tmp_path / "x.npz")
    data = (tmp_path / "x.npz").read_bytes()
    for bad in (data[:-30], b"", data.replace(b"'<f4'", b"'<f8'"), b"{}"):
        (tmp_path / "y.npz").write_bytes(bad)
        with pytest.raises(ValueError, match="damaged"):
            Captured.load(tmp_path / "y.npz")
    for call in (found.save, Captured.load):
        with pytest.raises(TypeError, match="`path`"):
            call(None)
        with pytest.raises(ValueError, match="folder"):
            call(tmp_path)


class Compiled(linen.Module):
    """Layers under linen's own jit."""

    @linen.compact
    def __call__(self, x):
        return linen.jit(linen.Dense)(2, name="last")(linen.jit(linen.Dense)(4, name="first")(x))


@functools.partial(jax.jit, static_argnums=0)
def compiled(module, variables, x):
    return module.apply(variables, x)


@pytest.mark.parametrize("call", [None, lambda model, x: compiled(*model, x)])
def test_functions_that_were_compiled_before_are_traced_anew(call, rng):
    """A trace that JAX keeps from an earlier call has no hooks, and that of a run with hooks must not stay."""
    x = jnp.asarray(rng.standard_normal((10, 3)), jnp.float32)
    module, run = Compiled(), call or (lambda model, x: model[0].apply(model[1], x))
    model = module, module.init(jax.random.key(0), x)
    before = run(model, x)
    assert capture(model, [x, x], Rule(".*"), call=call).seen == {"first": [20], "last": [20]}
    fast = replace(model, Rule("first", product="low rank", rank=1), [x], call=call)
    assert not np.allclose(run(fast, x), before)
    np.testing.assert_array_equal(run(model, x), before)


@pytest.mark.parametrize("step", [capture, replace])
def test_rows_that_are_not_finite_are_refused_by_layer_and_batch(model, step):
    bad = [*batches(2), jnp.full((10, 3), jnp.nan)]
    order = (lambda given: (given, Rule("layers/0"))) if step is capture else (lambda given: (Rule("layers/0"), given))
    with pytest.raises(ValueError, match=r"the layer 'layers/0' 10 rows.*of 30; these batches.*: 2\."):
        step(model, *order(bad))
    with pytest.raises(ValueError, match=r"the layer 'layers/0' 10 rows.*of 30; the batches cannot be read again"):
        step(model, *order(iter(bad)))
    for limit, value in (("max_rows", 0), ("max_bytes", 1), ("max_rows", "9"), ("max_bytes", 1e9)):
        with pytest.raises((ValueError, TypeError), match=f"`{limit}` is"):
            step(model, *order(bad), **{limit: value})


def test_every_row_is_kept_equally_often(rng):
    """600 trials of 6 of 24 rows, in batches that show at most 6: each row 150 times, give or take five deviations."""
    counts = np.zeros(24)
    for trial in range(600):
        reservoir = Reservoir(np.zeros((0, 1, 1), np.float32))
        for start, size in ((0, 4), (4, 12), (16, 8)):
            shown = start + rng.choice(size, min(size, 6), replace=False)
            reservoir.add(shown[:, None, None].astype(np.float32), size, 6, trial)
        kept = reservoir.rows.ravel().astype(int)
        assert len(set(kept)) == 6
        counts[kept] += 1
    assert np.abs(counts - 150).max() < 5 * np.sqrt(600 * 0.25 * 0.75)


def test_layers_that_are_not_wanted_cost_nothing(model):
    """The compiled run ends with the last layer that is looked at."""
    wide = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), lambda x: jax.lax.while_loop(lambda _: True, jnp.sin, x))
    assert len(capture(wide, batches(1), Rule("layers/0")).rows["layers/0"][0]) == 10


@pytest.mark.slow
def test_a_runtime_with_one_thread_does_not_wait_for_itself():
    code = """
import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
from flax import nnx
from jax_maddness import Rule, capture
x = np.ones((8192, 256), np.float32)
print(len(capture(nnx.Linear(256, 2, rngs=nnx.Rngs(0)), [x], Rule(".*")).rows[""][0]))
"""
    env = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["8192"]


def test_no_batches_and_no_layers_are_errors(model):
    with pytest.raises(ValueError, match="`batches` is empty"):
        capture(model, [], Rule(".*"))
    with pytest.raises(ValueError, match="No layer"):
        capture(model, batches(1), Rule("nothing"))
    with pytest.raises(ValueError, match=r"does not take the first batch.*float32\[10, 7\]"):
        capture(model, [jnp.zeros((10, 7))], Rule(".*"))
