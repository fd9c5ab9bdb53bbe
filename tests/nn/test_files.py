"""Replaced models in files: the same answers without the original's weights, and errors for the rest."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from flax import linen as nn
from flax import nnx
from helpers.ops import random_op

from jax_maddness import Rule, load_model, replace, save_model
from jax_maddness.nn import calibrate
from jax_maddness.nn.models import files

DATA = pathlib.Path(__file__).parents[1] / "data"


class Model(nnx.Module):
    """The model that is saved: shared ops, a list, a layer that stays, a random state, a batch norm."""

    def __init__(self, width=8, *, rngs):
        self.convs = nnx.List([nnx.Conv(3, width, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, deterministic=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.head = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(self.attention(self.norm(self.convs[0](x)))))


class LinenModel(nn.Module):
    """The same in linen."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3,), name="conv")(x))
        return nn.Dense(2, name="head")(nn.MultiHeadDotProductAttention(2, name="attention")(x))


RULES = [Rule("head", skip=True), Rule(".*", num_codebooks=3, conv="patches")]


@pytest.fixture
def x(rng, monkeypatch):
    monkeypatch.setattr(calibrate, "learn", lambda rows, w, bias, c, *_: random_op(rng, len(w), c, len(bias)))
    return jnp.asarray(rng.standard_normal((4, 5, 3)), jnp.float32)


def run(model, x):
    return jax.jit(lambda x: model(x) if isinstance(model, nnx.Module) else model[0].apply(model[1], x))(x)


@pytest.mark.slow
def test_an_nnx_model_comes_back(x, tmp_path):
    fast = replace(Model(rngs=nnx.Rngs(0)), RULES, [x])
    save_model(tmp_path / "m", fast)
    for other in (nnx.eval_shape(lambda: Model(rngs=nnx.Rngs(1))), Model(rngs=nnx.Rngs(2))):
        back = load_model(tmp_path / "m", other)
        np.testing.assert_array_equal(run(back, x), run(fast, x))
        assert back.attention.query.tables is back.attention.value.tables
    with pytest.raises(ValueError, match="another model"):
        load_model(tmp_path / "m", Model(6, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="no modules"):
        load_model(tmp_path / "m", nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0))))
    with pytest.raises(ValueError, match="nnx model"):
        load_model(tmp_path / "m", LinenModel())


@pytest.mark.slow
def test_a_linen_model_comes_back(x, tmp_path):
    variables = jax.jit(LinenModel().init)(jax.random.key(0), x)
    fast = replace((LinenModel(), variables), RULES, [x])
    save_model(tmp_path / "m", fast)
    back = load_model(tmp_path / "m", LinenModel())
    np.testing.assert_array_equal(run(back, x), run(fast, x))
    assert back[0] == fast[0]
    with pytest.raises(ValueError, match="linen model"):
        load_model(tmp_path / "m", Model(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="not initialised"):
        fast[0].init(jax.random.key(0), x)


def test_damage_and_models_without_replacements_are_errors(x, tmp_path):
    with pytest.raises(ValueError, match="No layer"):
        save_model(tmp_path / "m", Model(rngs=nnx.Rngs(0)))
    save_model(tmp_path / "m", replace(Model(rngs=nnx.Rngs(0)), RULES, [x]))
    data = bytearray((tmp_path / "m").read_bytes())
    middle = len(data) // 2  # some bytes, as a few between the arrays have no checksum
    data[middle : middle + 64] = bytes(byte ^ 1 for byte in data[middle : middle + 64])
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(ValueError, match="cannot be loaded as a model"):
        load_model(tmp_path / "m", Model(rngs=nnx.Rngs(0)))
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "nothing", Model(rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("trees_indices", -1, "split index"),
        ("trees_indices", 8, "split index"),
        ("tables_scale", np.nan, "tables_scale is not finite"),
        ("tables_offset", np.inf, "tables_offset is not finite"),
        ("weights", -np.inf, "weights is not finite"),
    ],
)
def test_values_that_no_op_can_have_are_neither_written_nor_read(rng, tmp_path, name, value, match, monkeypatch):
    op = random_op(rng, 8, 3, 2, weights=True)
    monkeypatch.setattr(calibrate, "learn", lambda *_: op)
    model = nnx.Linear(8, 2, rngs=nnx.Rngs(0))
    fast = replace(model, Rule(".*", num_codebooks=3), [jnp.ones((4, 8)).at[0].set(0)], keep_weights=True)
    save_model(tmp_path / "good", fast)
    array = fast.tables.arrays[name]
    array[...] = array[...].at[0].set(value)
    with pytest.raises(ValueError, match=match):
        save_model(tmp_path / "bad", fast)
    with monkeypatch.context() as unchecked:
        unchecked.setattr(files, "_validate_ops", lambda _: None)
        save_model(tmp_path / "bad", fast)
    with pytest.raises(ValueError, match=f"cannot be loaded as a model.*{match}"):
        load_model(tmp_path / "bad", model)
    assert load_model(tmp_path / "good", model).spec == fast.spec


def restored(folder, arrays):
    """Arrays after a round trip through orbax."""
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, arrays)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder, jax.tree.map(orbax.utils.to_shape_dtype_struct, arrays))


def test_orbax_keeps_the_arrays_of_an_nnx_model(x, tmp_path):
    fast = replace(Model(rngs=nnx.Rngs(0)), RULES, [x])
    graph, state = nnx.split(fast)
    back = nnx.merge(graph, restored(tmp_path / "m", state))
    np.testing.assert_array_equal(run(back, x), run(fast, x))
    assert back.head.kernel[...].dtype == jnp.float32
    assert back.attention.query.tables.arrays["tables_values"][...].dtype == jnp.uint8


def test_orbax_keeps_the_arrays_of_a_linen_model(x, tmp_path):
    module, variables = replace((LinenModel(), jax.jit(LinenModel().init)(jax.random.key(0), x)), RULES, [x])
    back = restored(tmp_path / "m", variables)
    np.testing.assert_array_equal(run((module, back), x), run((module, variables), x))
    assert jax.tree.structure(back) == jax.tree.structure(variables)


class Pooled(nnx.Module):
    """The model of `golden_v2.model`."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 6, (3,), padding="SAME", rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x).max(1)))


@pytest.mark.slow
def test_reads_a_file_of_version_2():
    """Written by the commit before version 3, which renamed a field and some arrays."""
    loaded = load_model(DATA / "golden_v2.model", nnx.eval_shape(lambda: Pooled(nnx.Rngs(0))))
    x = np.random.default_rng(0).standard_normal((20, 9, 4)).astype(np.float32)[:4]
    assert loaded.conv.spec.num_candidates == 2
    expected = np.load(DATA / "golden_v2_model_outputs.npy")
    np.testing.assert_allclose(loaded(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
