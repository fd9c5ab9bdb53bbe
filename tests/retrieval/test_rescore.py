"""Exact scores of candidates: every tier against sums in double; transformations; what the handler checks itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import needs_kernels
from jax import export
from jax.sharding import PartitionSpec as P

from jax_maddness import testing
from jax_maddness.core import ffi
from jax_maddness.retrieval.rescore import rescore

NO = -np.inf


def problem(rng, queries=3, vectors=50, k=7, features=37, dtypes=(jnp.float32, jnp.float32)):
    q, v = rng.standard_normal((queries, features)), rng.standard_normal((vectors, features))
    positions = rng.integers(-1, vectors + 1, (queries, k), np.int32)
    return jnp.asarray(q, dtypes[0]), jnp.asarray(v, dtypes[1]), jnp.asarray(positions)


def expected(queries, vectors, positions):
    q, v, p = np.float64(queries), np.float64(vectors), np.asarray(positions)
    known = (p >= 0) & (p < len(v))
    rows = v[np.where(known, p, 0)] if len(v) else np.zeros((*p.shape, v.shape[1]))
    return np.where(known, np.einsum("qd,qkd->qk", q, rows), NO)


def assert_close(actual, desired):
    """37 products of normal numbers, in float32: far within 1e-5 of their sum's magnitude."""
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("of_queries", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("of_vectors", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_rescore_is_the_inner_product(tier, rng, of_queries, of_vectors):
    args = problem(rng, dtypes=(of_queries, of_vectors))
    assert_close(rescore(*args), expected(*args))


@pytest.mark.parametrize("sizes", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (1, 300, 2000), (80, 300, 40)])
def test_sizes(tier, rng, sizes):
    args = problem(rng, *sizes)
    assert_close(rescore(*args), expected(*args))


def test_positions_out_of_range_have_no_score(tier):
    positions = jnp.array([[-(2**31), -1, 0, 1, 2, 2**31 - 1]], jnp.int32)
    np.testing.assert_array_equal(rescore(jnp.ones((1, 1)), jnp.ones((2, 1)), positions), [[NO, NO, 1, 1, NO, NO]])


@pytest.mark.parametrize("vectors", [2, 3, 40])
def test_queries_as_long_as_several_vectors_see_so_many_in_a_row(tier, rng, vectors):
    q, v, p = problem(rng, 5, vectors, 9, 3 * 37)
    v = v[:, :37]
    windows = jnp.concatenate([v[i : len(v) - 2 + i] for i in range(3)], 1)
    assert_close(rescore(q, v, p), expected(q, windows, p))


def test_infinity_and_nan_stay(tier):
    vectors = jnp.array([[np.nan, 0], [np.inf, 1], [-np.inf, 0]], jnp.float32)
    np.testing.assert_array_equal(
        rescore(jnp.ones((1, 2)), vectors, jnp.array([[0, 1, 2]], jnp.int32)), [[np.nan, np.inf, NO]]
    )


def test_vmap(backend, rng):
    q, v, p = problem(rng, queries=6)
    folded = jax.vmap(rescore, (0, None, 0))(q.reshape(2, 3, -1), v, p.reshape(2, 3, -1))
    assert_close(folded.reshape(6, -1), expected(q, v, p))
    assert_close(jax.vmap(rescore, (None, None, 0))(q[:1], v, p[:, None])[:, 0], expected(q[:1].repeat(6, 0), v, p))
    halves = jax.vmap(rescore, (None, 0, None))(q, v.reshape(2, 25, -1), p)
    assert_close(halves, np.stack([expected(q, v[:25], p), expected(q, v[25:], p)]))


@needs_kernels
def test_a_batch_of_queries_is_one_call(rng):
    q, v, p = problem(rng)
    text = jax.jit(jax.vmap(rescore, (0, None, 0))).lower(q[:, None], v, p[:, None]).as_text()
    assert testing.custom_calls(text) == ["jax_maddness_rescore"]
    assert "stablehlo.while" not in text


def test_gradients(backend, rng):
    q, v, _ = problem(rng, vectors=5, dtypes=(jnp.bfloat16, jnp.float32))
    positions = jnp.array([[0, 4, 4], [1, 1, 1], [2, -1, 5]], jnp.int32)
    dq, dv = jax.grad(lambda q, v: jnp.where(positions == -1, 0, rescore(q, v, positions))[:, :2].sum(), (0, 1))(q, v)
    assert (dq.dtype, dv.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(np.float32(dq), [v[0] + v[4], 2 * v[1], v[2]], rtol=0.01, atol=0.01)
    assert_close(dv, np.float32([q[0], 2 * q[1], q[2], 0 * q[0], q[0]]))


@pytest.mark.parametrize("check_vma", [True, False])
def test_every_shard_scores_its_own(backend, rng, check_vma):
    q, v, p = problem(rng, vectors=52)
    mesh = jax.make_mesh((4,), ("v",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(
        lambda q, v, p: rescore(q, v, p)[None],
        mesh=mesh,
        in_specs=(P(), P("v"), P()),
        out_specs=P("v"),
        check_vma=check_vma,
    )
    assert_close(jax.jit(sharded)(q, v, p), np.stack([expected(q, part, p) for part in np.split(np.asarray(v), 4)]))


@needs_kernels
def test_portable_and_exported(rng):
    args = problem(rng)
    testing.assert_portable(rescore, *args, platforms=("tpu", "cuda"))
    check = export.DisabledSafetyCheck.custom_call("jax_maddness_rescore")
    exported = export.export(jax.jit(rescore), platforms=["cpu"], disabled_checks=[check])(*args)
    assert_close(jax.jit(exported.call)(*args), expected(*args))


def test_wrong_arguments_are_refused():
    q, v, p = jnp.ones((2, 3)), jnp.ones((4, 3)), jnp.zeros((2, 5), jnp.int32)
    for wrong in ((q[:, :2], v, p), (q, v[0], p), (q[:1], v, p), (q, v, p[0])):
        with pytest.raises(ValueError, match="expected"):
            rescore(*wrong)
    for wrong in ((q.astype(int), v, p), (q, v.astype(int), p), (q, v, p.astype(jnp.int16))):
        with pytest.raises(TypeError, match="float32"):
            rescore(*wrong)


SHAPES = {
    "queries": ((2, 3), jnp.float32),
    "vectors": ((4, 3), jnp.float32),
    "positions": ((2, 5), jnp.int32),
    "scores": ((2, 5), jnp.float32),
}


def call(**changes):
    *args, result = (SHAPES | changes).values()
    return ffi.call("jax_maddness_rescore", jax.ShapeDtypeStruct(*result), *(jnp.zeros(*a) for a in args))


@needs_kernels
@pytest.mark.parametrize(
    "changes",
    [
        {"queries": ((2, 4), jnp.float32)},
        {"queries": ((2, 0), jnp.float32)},
        {"queries": ((3, 3), jnp.float32)},
        {"queries": ((2, 3), jnp.int32)},
        {"vectors": ((4, 2), jnp.float32)},
        {"vectors": ((12,), jnp.float32)},
        {"vectors": ((4, 3), jnp.uint16)},
        {"positions": ((2, 4), jnp.int32)},
        {"positions": ((2, 5), jnp.uint32)},
        {"scores": ((2, 5), jnp.int32)},
        {"scores": ((5, 2), jnp.float32)},
        {"scores": ((10,), jnp.float32)},
    ],
)
def test_the_handler_checks_every_size_itself(changes):
    assert not np.any(call())
    with pytest.raises(Exception, match=r"(?i)invalid|wrong"):
        jax.block_until_ready(call(**changes))
