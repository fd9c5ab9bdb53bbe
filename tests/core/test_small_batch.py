"""with_small_batch_tables: calls of few rows read the tables by code, and give the same bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import needs_kernels, random_oblique_trees, random_op, random_rows
from jax import export
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_maddness import amm, load, save, testing, with_small_batch_tables
from jax_maddness.core.types import SMALL_BATCH


def assert_same(one, other):
    np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [0, 1, 2, SMALL_BATCH, SMALL_BATCH + 1])
@pytest.mark.parametrize(("codebooks", "outputs"), [(1, 1), (5, 63), (16, 64), (33, 129), (257, 520), (600, 100)])
def test_the_same_bits(tier, rng, rows, codebooks, outputs):
    op, x = random_op(rng, 20, codebooks, outputs), random_rows(rng, rows, 20, special=0.1)
    assert_same(jax.jit(amm)(x, with_small_batch_tables(op)), jax.jit(amm)(x, op))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("rows", "codebooks", "width"), [(1, 5, 4), (3, 33, 70)])
def test_the_same_bits_with_projections(tier, rng, dtype, rows, codebooks, width):
    op = random_op(rng, 20, codebooks, 65)
    op = dataclasses.replace(op, trees=random_oblique_trees(rng, 20, codebooks, special=0.1, width=width))
    x = jnp.asarray(random_rows(rng, rows, 20, special=0.1)).astype(dtype)
    assert_same(jax.jit(amm)(x, with_small_batch_tables(op)), jax.jit(amm)(x, op))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_same_bits_for_16_bit_rows(tier, rng, dtype):
    op, x = random_op(rng, 20, 7, 70), jnp.asarray(random_rows(rng, 3, 20), dtype)
    y = amm(x, with_small_batch_tables(op))
    assert y.dtype == dtype
    assert_same(y, amm(x, op))


def test_many_outputs_on_several_threads(tier, rng):
    op, x = random_op(rng, 64, 128, 19001), random_rows(rng, 4, 64)
    assert_same(amm(x, with_small_batch_tables(op)), amm(x, op))


@needs_kernels
@pytest.mark.parametrize(("rows", "few"), [(1, True), (SMALL_BATCH, True), (SMALL_BATCH + 1, False)])
def test_only_few_rows_use_it(op, rows, few):
    module = jax.jit(amm).lower(jnp.zeros((rows, 8)), with_small_batch_tables(op)).as_text()
    assert testing.custom_calls(module) == ["jax_maddness_amm_by_code" if few else "jax_maddness_amm"]


def test_vmap_over_rows_and_ops_and_grad(op, x):
    fast = with_small_batch_tables(op)
    assert_same(jax.vmap(amm, (0, None))(x, fast), amm(x, op))
    ops = jax.tree.map(lambda a: jnp.stack([a, a]), op)
    stacked = with_small_batch_tables(ops)
    assert stacked.tables.by_code.shape == (2, 3, 16, 5)
    assert_same(jax.vmap(amm, (None, 0))(x[:2], stacked), jax.vmap(amm, (None, 0))(x[:2], ops))

    def loss(x, op):
        return (amm(x, op) ** 2).sum()

    assert_same(jax.grad(loss)(x[:2], fast), jax.grad(loss)(x[:2], op))


def test_sharded_outputs(op, x):
    mesh = jax.make_mesh((2,), ("m",), devices=jax.devices()[:2])
    wide = random_op(np.random.default_rng(0), 8, 3, 6)
    sharded = jax.jit(amm, out_shardings=NamedSharding(mesh, P(None, "m")))(x[:2], with_small_batch_tables(wide))
    assert_same(sharded, amm(x[:2], wide))


def test_portable_and_exported_for_any_number_of_rows(op, x):
    fast = with_small_batch_tables(op)
    testing.assert_portable(amm, x[:1], fast)
    (n,) = export.symbolic_shape("n")
    exported = export.export(jax.jit(amm), platforms=["tpu"])(jax.ShapeDtypeStruct((n, 8), jnp.float32), fast)
    assert exported.out_avals[0].shape == (n, 5)


def test_a_file_does_not_contain_it(op, tmp_path):
    save(tmp_path / "op", with_small_batch_tables(op))
    assert load(tmp_path / "op").tables.by_code is None


def test_tables_that_do_not_fit_are_refused(rng, op, x):
    other = with_small_batch_tables(random_op(rng, 8, 3, 6))
    mixed = with_small_batch_tables(op)
    object.__setattr__(mixed.tables, "by_code", other.tables.by_code)
    with pytest.raises(ValueError, match=r"tables.by_code"):
        amm(x, mixed)
