"""Ops in other libraries' files: `jax.export` stores their structure, `flax.serialization` their arrays."""

import dataclasses
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from helpers.ops import random_int8, random_oblique_trees, random_op
from jax import export

import jax_maddness
from jax_maddness import Int8Product, Int8ProductByRow, OutlierRows, VectorIndex, with_small_batch_tables
from jax_maddness.core.terms.kinds import TERMS
from jax_maddness.core.trees.kinds import KINDS
from jax_maddness.retrieval.quantizer import Quantizer
from jax_maddness.retrieval.room import Room


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("num_features", [8, None])
def test_an_exported_function_takes_and_returns_ops(any_op, num_features):
    op = dataclasses.replace(any_op, trees=dataclasses.replace(any_op.trees, num_features=num_features))
    exported = export.export(jax.jit(with_small_batch_tables))(op)
    again = export.deserialize(exported.serialize())
    assert_equal(again.call(op), with_small_batch_tables(op))
    assert again.in_tree == exported.in_tree
    other = dataclasses.replace(op, trees=dataclasses.replace(op.trees, num_features=9))
    with pytest.raises(ValueError, match="does not match"):  # the number of features is part of the structure
        again.call(other)


def test_flax_stores_ops(any_op):
    blank = jax.tree.map(jnp.zeros_like, any_op)
    assert_equal(serialization.from_bytes(blank, serialization.to_bytes(any_op)), any_op)
    variables = {"params": {"layer": any_op, "bias": jnp.ones(3)}}
    blanks = jax.tree.map(jnp.zeros_like, variables)
    assert_equal(serialization.from_bytes(blanks, serialization.to_bytes(variables)), variables)


def index_of(trees, **static):
    """An index of 3 vectors with 5 features, 3 codebooks and trees."""
    quantizer = Quantizer(jnp.ones((3, 16, 5)), jnp.zeros((3, 16)), jnp.ones((3, 16, 6)), jnp.zeros(6))
    codes, recall = jnp.zeros((1, 2, 64), jnp.uint8), ((2, 0.5, 0.5, 0.5),)
    return VectorIndex(codes, quantizer, jnp.arange(3), None, jnp.ones((3, 5)), trees, "ip", 3, recall, **static)


def test_whatever_else_is_public_can_be_exported_and_stored(rng):
    rule = OutlierRows(jnp.arange(2.0), jnp.ones(2), jnp.float32(3))
    trees = random_oblique_trees(rng, 6, 3)
    room = Room.of(3, np.array([1]), jnp.ones((48, 48)))
    indexes = index_of(None, origin=jnp.ones(5), exponent=-3), index_of(trees), index_of(None, room=room)
    for value in (rule, *indexes, index_of(None).quantizer):
        exported = export.export(jax.jit(lambda value: value))(value)
        assert_equal(export.deserialize(exported.serialize()).call(value), value)
        blank = jax.tree.map(jnp.zeros_like, value)
        assert_equal(serialization.from_bytes(blank, serialization.to_bytes(value)), value)


def test_a_sharded_index_is_not_exported():
    sharded = index_of(None, mesh=jax.make_mesh((1,), ("v",)), axis="v")
    with pytest.raises(ValueError, match="VectorIndex whose `mesh` is set"):
        export.export(jax.jit(lambda index: index.ids))(sharded).serialize()


def test_flax_does_not_put_one_kind_of_op_into_another(rng, op):
    other = {"trees": {}, "tables": {}, "weights": None}
    with pytest.raises(ValueError, match="The state of a MaddnessOp has trees, tables, weights at path"):
        serialization.from_state_dict(op, other)
    oblique = serialization.to_state_dict(random_op(rng, 8, 3, 5)) | {"trees": {"features": 0}}
    with pytest.raises(ValueError, match=r"The state of a SplitTrees has features at path \./trees; expected indices"):
        serialization.from_state_dict(op, oblique)


@pytest.mark.parametrize("first", ["flax.serialization", "jax_maddness"])
def test_the_order_of_imports_does_not_matter(first, tmp_path, op):
    jax_maddness.save(tmp_path / "op", op)
    second = {"flax.serialization": "jax_maddness", "jax_maddness": "flax.serialization"}[first]
    code = (
        f"import sys, {first}, {second}\n"
        "op = jax_maddness.load(sys.argv[1])\n"
        "state = flax.serialization.to_bytes(op)\n"
        "assert flax.serialization.from_bytes(op, state).num_features == 8"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "op")], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_kinds_are_told_apart(rng):
    """JAX compares registered dataclasses by their fields alone, and so might run the program of another kind."""
    for kinds in (TERMS, KINDS):
        structures = [jax.tree.structure(kind(*np.zeros(len(kind.array_names())))) for kind in kinds]
        assert all(a != b for a, b in itertools.combinations(structures, 2))
    fixed = random_int8(rng, Int8Product, 8, 6)
    by_row = dataclasses.replace(fixed, term=Int8ProductByRow(*fixed.term.arrays().values()))
    assert jax.tree.structure(fixed) != jax.tree.structure(by_row)
