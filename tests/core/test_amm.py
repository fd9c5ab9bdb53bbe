"""amm: the three steps in one call, on every backend and tier, for every dtype of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import references
from helpers.ops import put, random_oblique_trees, random_op, random_rows

from jax_maddness import LookupTables, MaddnessOp, SplitTrees, aggregate, amm, encode
from jax_maddness.core.amm import amm_of_codes


def expected(x, op):
    """scale * sums + offset in float64, and the magnitude that its rounding errors are relative to."""
    arrays = [np.asarray(a) for a in op.trees.arrays()]
    codes = (references.encode if isinstance(op.trees, SplitTrees) else references.encode_oblique)(x, *arrays)
    sums = references.aggregate(codes, np.asarray(op.tables.values))
    scaled, offset = np.float64(op.tables.scale) * sums, np.float64(op.tables.offset)
    return scaled + offset, np.abs(scaled) + np.abs(offset)


def assert_rounded(y, x, op):
    """Two roundings in f32 (product, sum), one to the dtype of the rows: each at most half a unit in the last place."""
    truth, magnitude = expected(np.asarray(x, np.float32), op)
    unit = 2 * jnp.finfo(jnp.float32).eps + (jnp.finfo(y.dtype).eps if y.dtype != jnp.float32 else 0)
    np.testing.assert_array_less(np.abs(np.float64(y) - truth), magnitude * float(unit) + 1e-30)


@pytest.mark.parametrize("rows", [0, 1, 2, 15, 16, 17, 33, 64, 65, 300])
@pytest.mark.parametrize(("features", "codebooks", "outputs"), [(3, 1, 1), (9, 4, 16), (20, 5, 19), (16, 16, 33)])
def test_equals_the_three_steps(tier, rng, rows, features, codebooks, outputs):
    op, x = random_op(rng, features, codebooks, outputs), random_rows(rng, rows, features, special=0.1)
    assert_rounded(amm(put(x), op), x, op)


@pytest.mark.parametrize(("rows", "features", "codebooks", "outputs"), [(0, 3, 1, 1), (1, 9, 4, 16), (65, 20, 5, 33)])
def test_equals_the_three_steps_with_projections(tier, rng, rows, features, codebooks, outputs):
    op = random_op(rng, features, codebooks, outputs, make_trees=random_oblique_trees)
    x = random_rows(rng, rows, features, special=0.1)
    assert_rounded(amm(x, op), x, op)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_dtype_of_the_rows_is_the_dtype_of_the_result(tier, rng, make_trees, dtype):
    op, x = random_op(rng, 12, 4, 21, make_trees=make_trees), jnp.asarray(random_rows(rng, 67, 12), dtype)
    y = amm(x, op)
    assert y.dtype == dtype
    assert_rounded(y, x, op)


def test_results_beyond_float16_become_infinite(tier, rng):
    op = random_op(rng, 4, 2, 17)
    huge = MaddnessOp(op.trees, LookupTables(op.tables.values, op.tables.scale, jnp.full(17, 1e6)))
    assert np.all(np.isposinf(amm(jnp.zeros((18, 4), jnp.float16), huge)))


@pytest.mark.parametrize("lead", [(), (3,), (2, 5), (0,), (2, 0, 3), (1, 2, 3, 4)])
def test_any_leading_dimensions(tier, rng, lead):
    op, x = random_op(rng, 6, 2, 5), random_rows(rng, int(np.prod(lead, dtype=int)), 6)
    y = jax.jit(amm)(x.reshape(*lead, 6), op)
    assert y.shape == (*lead, 5)
    assert_rounded(np.asarray(y).reshape(-1, 5), x, op)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_known_codes_give_what_their_rows_give(tier, rng, dtype):
    op, x = random_op(rng, 12, 5, 70), jnp.asarray(random_rows(rng, 67, 12), dtype)
    codes = encode(x, op.trees)
    np.testing.assert_array_equal(amm_of_codes(codes | 0x30, op.tables, dtype), amm(x, op))
    two = jax.vmap(lambda codes: amm_of_codes(codes, op.tables, dtype))(codes.reshape(1, 67, 5))
    np.testing.assert_array_equal(two[0], amm(x, op))


def test_derivatives_of_known_codes_are_those_of_scale_and_offset(rng):
    op, codes = random_op(rng, 6, 2, 5), jnp.asarray(rng.integers(0, 16, (9, 2), np.uint8))

    def total(scale, offset):
        return amm_of_codes(codes, LookupTables(op.tables.values, scale, offset)).sum()

    of_scale, of_offset = jax.grad(total, (0, 1))(op.tables.scale, op.tables.offset)
    np.testing.assert_allclose(of_scale, aggregate(codes, op.tables).sum(0))
    np.testing.assert_allclose(of_offset, jnp.full(5, 9.0))


def test_large_enough_for_several_threads(tier, rng, make_trees):
    op, x = random_op(rng, 64, 8, 100, make_trees=make_trees), random_rows(rng, 3001, 64)
    y = np.asarray(amm(x, op))
    for rows in (slice(0, 40), slice(1480, 1520), slice(2970, 3001)):
        assert_rounded(y[rows], x[rows], op)


def test_one_row_and_many_outputs(tier, rng):
    op, x = random_op(rng, 64, 33, 4099), random_rows(rng, 1, 64)
    assert_rounded(np.asarray(amm(x, op)), x, op)


def test_an_index_out_of_range_is_an_error_not_a_crash(rng):
    op = random_op(rng, 6, 2, 5)
    wild = MaddnessOp(SplitTrees(jnp.full((2, 4), 10**6, jnp.int32), op.trees.thresholds, 6), op.tables)
    try:
        y = jax.block_until_ready(amm(np.zeros((3, 6), np.float32), wild))
    except Exception as error:
        assert "indices" in str(error)  # noqa: PT017 -- pure JAX clips instead of raising
    else:
        assert y.shape == (3, 5)


def test_arguments_in_the_wrong_order_are_noticed(rng):
    op = random_op(rng, 6, 2, 5)
    with pytest.raises(TypeError, match="The array comes first"):
        amm(op, np.zeros((3, 6), np.float32))
    with pytest.raises(TypeError, match="`x` is list; expected an array"):
        amm([[0.0] * 6], op)


def test_trees_and_tables_of_different_ops_are_refused(rng):
    one, other = random_op(rng, 6, 2, 5), random_op(rng, 6, 3, 5)
    with pytest.raises(ValueError, match=r"`op.trees` has 2 codebooks, `op.tables` has 3"):
        amm(np.zeros((3, 6), np.float32), MaddnessOp(one.trees, other.tables))


def test_a_stacked_op_wants_vmap(rng):
    op = jax.tree.map(lambda a: jnp.stack([a, a]), random_op(rng, 6, 2, 5))
    with pytest.raises(ValueError, match="vmap"):
        amm(np.zeros((3, 6), np.float32), op)
