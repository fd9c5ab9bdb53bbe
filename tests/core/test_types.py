"""The op as a pytree: what survives what."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jax_maddness import MaddnessOp, amm


def test_flatten_and_unflatten(op):
    leaves, structure = jax.tree.flatten(op)
    assert len(leaves) == 6
    again = jax.tree.unflatten(structure, leaves)
    assert again.num_features == 8
    assert all(a is b for a, b in zip(jax.tree.leaves(again), leaves, strict=True))


def test_tree_map_to_anything_keeps_a_repr(op):
    for f in (lambda _: None, lambda _: 0, str, lambda a: a.shape):
        assert "MaddnessOp" in repr(jax.tree.map(f, op))


def test_eval_shape(op):
    abstract = jax.eval_shape(lambda op: op, op)
    assert isinstance(abstract, MaddnessOp)
    assert abstract.nbytes == op.nbytes
    assert jax.eval_shape(amm, jax.ShapeDtypeStruct((4, 8), jnp.bfloat16), abstract).shape == (4, 5)


def test_device_put(op):
    moved = jax.device_put(op, jax.devices()[-1])
    assert all(a.devices() == {jax.devices()[-1]} for a in jax.tree.leaves(moved))


def test_equality_is_identity_and_ops_can_be_hashed(op):
    other = jax.tree.map(lambda a: a, op)
    assert op in [op]
    assert op != other
    assert len({op, other}) == 2


def test_frozen(op):
    with pytest.raises(AttributeError):
        op.weights = None


def test_short_repr_and_size_in_bytes(op):
    nbytes = 4 * 3 * 4 + 4 * 3 * 15 + 5 * 3 * 16 + 4 * 5 + 4 * 5 + 4 * 8 * 5
    assert op.nbytes == nbytes
    assert repr(op) == f"MaddnessOp(8 -> 5, 3 codebooks, {nbytes} bytes, weights kept)"
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), op)
    assert repr(stacked).startswith("MaddnessOp(2 x 8 -> 5, 3 codebooks")


def test_orbax_with_a_target(op, tmp_path):
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "op", op)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "op", jax.eval_shape(lambda op: op, op))
    assert isinstance(restored, MaddnessOp)
    assert restored.num_features == 8
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(op), strict=True):
        np.testing.assert_array_equal(a, b)
