"""Int8 factors: the same integers on every tier as in ten plain lines of NumPy, under every transformation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import TREES, put, random_factors, random_int8, random_op, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_maddness import amm, testing, with_small_batch_tables
from jax_maddness.core import int8
from jax_maddness.core.aggregate import aggregate
from jax_maddness.core.encode import encode
from jax_maddness.core.terms.factors import expand, product_of
from jax_maddness.core.terms.int8_product import Int8Product, Int8ProductByRow

jitted = jax.jit(amm)
KINDS = {
    "alone": lambda rng: random_factors(rng, 8, 8, 6),
    "axis": lambda rng: random_factors(rng, 8, 4, 6, 3),
    "oblique": lambda rng: random_factors(rng, 8, 12, 6, 3, make_trees=TREES["oblique"]),
    "int8": lambda rng: random_int8(rng, Int8Product, 8, 6),
    "by row": lambda rng: random_int8(rng, Int8ProductByRow, 8, 6),
}


@pytest.fixture(params=KINDS)
def factors_op(request, rng):
    """8 features, 6 outputs, with `w`."""
    w = put(rng.standard_normal((8, 6)).astype(np.float32))
    return dataclasses.replace(KINDS[request.param](rng), weights=w)


def clipped(steps):
    with np.errstate(invalid="ignore"):
        return np.where(steps > -127, np.minimum(np.rint(steps), 127), -127).astype(np.int64)


def sums_of(x, op):
    """The integer sums of each output by plain NumPy, and what else multiplies them."""
    term, x = op.term, np.float32(x)
    center, scale = np.float32(term.center), np.float32(term.scale)
    z = (np.where(np.abs(x) < np.finfo(np.float32).tiny, 0, x) - center) * scale
    factor = np.ones((len(x), 1), np.float32)
    if isinstance(term, Int8ProductByRow):
        factor = np.abs(z).max(-1, keepdims=True)
        with np.errstate(divide="ignore"):
            z = z * np.where(factor >= np.float32(2.0**-100), np.float32(127) / factor, 0).astype(np.float32)
    q = clipped(z)
    if isinstance(term, Int8Product):
        return q @ int8.ungrouped(term.up, 8).astype(np.int64), factor
    s = (q @ int8.ungrouped(term.down, 8).astype(np.int64)).astype(np.float32)
    sums = clipped(s * np.float32(term.steps)) @ int8.ungrouped(term.up, term.rank).astype(np.int64)
    if op.num_codebooks:
        sums += np.int64(aggregate(encode(x, op.trees), op.tables)) << np.asarray(op.term.shift)
    return sums, factor


def plain(x, op):
    """The answer: one fused multiply-add, here in float64, rounded once."""
    sums, factor = sums_of(x, op)
    scale = np.float64(np.float32(op.tables.scale) * factor)
    return (scale * np.float64(np.float32(sums)) + np.float64(np.float32(op.tables.offset))).astype(np.float32)


def assert_same(y, x, op):
    """One ulp apart at most: whether the last step is fused is the compiler's choice in pure JAX."""
    np.testing.assert_allclose(
        np.float32(y), plain(x, op), rtol=2e-6, atol=1e-5 * float(np.abs(plain(x, op)).max(initial=0))
    )


def test_the_plain_sums_on_every_tier(tier, factors_op, x):
    for rows in (x, x[:0], x.reshape(2, 3, 2, 8)):
        y = np.asarray(jitted(rows, factors_op))
        assert y.shape == (*rows.shape[:-1], 6)
        assert_same(y.reshape(rows.size // 8, 6), np.asarray(rows).reshape(rows.size // 8, 8), factors_op)
    few = with_small_batch_tables(factors_op)
    np.testing.assert_array_equal(amm(x[:5], few), jitted(x[:5], factors_op))
    np.testing.assert_array_equal(amm(x[0], few), jitted(x[:1], factors_op)[0])


@settings(deadline=None, max_examples=8)  # nearly each compiles anew
@given(
    rows=st.integers(1, 70),
    features=st.integers(1, 9),
    outputs=st.integers(1, 70),
    groups=st.integers(1, 5),
    codebooks=st.integers(0, 5),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_property_kernels_equal_the_definition(rows, features, outputs, groups, codebooks, dtype, seed):
    """Sizes that fill no register, awkward values, and every dtype: not a bit differs where nothing else may round."""
    rng = np.random.default_rng(seed)
    kind = list(TREES.values())[seed % 2]
    op = random_factors(rng, features, 4 * groups, outputs, codebooks, make_trees=kind)
    ops = [op, random_int8(rng, (Int8Product, Int8ProductByRow)[seed % 2], features, outputs)]
    x = put(random_rows(rng, rows, features, special=0.1)).astype(dtype)
    for op in ops:
        exact = dataclasses.replace(
            op, tables=dataclasses.replace(op.tables, scale=jnp.ones(outputs), offset=jnp.zeros(outputs))
        )
        with testing.force_backend("jax"):
            expected = jax.jit(amm)(x, exact)
        np.testing.assert_array_equal(np.float32(jax.jit(amm)(x, exact)), np.float32(expected))


def test_rows_that_are_not_finite(tier, rng):
    fixed, by_row = (random_int8(rng, kind, 8, 6) for kind in (Int8Product, Int8ProductByRow))
    x = random_rows(rng, 4, 8)
    x[1, 3], x[2] = np.nan, 0.0
    y = np.asarray(amm(put(x), by_row))
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2, 3]]).all()
    assert np.isfinite(amm(put(x), fixed)).all()  # as codes are: NaN is the least value
    same = dataclasses.replace(by_row.term, center=jnp.zeros(8))
    y = amm(jnp.zeros((1, 8)), dataclasses.replace(by_row, term=same))
    np.testing.assert_array_equal(y[0], by_row.tables.offset)


def test_vmap_over_rows_ops_and_both(factors_op, x):
    other = dataclasses.replace(factors_op.tables, scale=2 * factors_op.tables.scale)
    ops = [factors_op, dataclasses.replace(factors_op, tables=other)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *ops)
    each = np.stack([jitted(x, op) for op in ops])
    np.testing.assert_array_equal(jax.jit(jax.vmap(amm, (0, None)))(x, factors_op), each[0])
    np.testing.assert_array_equal(jax.jit(jax.vmap(amm, (None, 0)))(x, stacked), each)
    both = jax.jit(jax.vmap(amm))(x.reshape(2, 6, 8), stacked)
    np.testing.assert_array_equal(both, np.stack([each[0, :6], each[1, 6:]]))


def test_derivatives(backend, factors_op, x, rng):
    """Straight-through for the rows; true for the scale and the offset."""
    g = jnp.float32(rng.standard_normal((12, 6)))
    dx, dop = jax.jit(jax.grad(lambda x, op: (g * amm(x, op)).sum(), (0, 1), allow_int=True))(x, factors_op)
    np.testing.assert_allclose(dx, g @ factors_op.weights.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dop.tables.offset, np.asarray(g).sum(0), rtol=1e-5, atol=1e-5)
    sums, factor = sums_of(x, factors_op)
    expected = (np.float64(g) * sums * factor).sum(0)
    np.testing.assert_allclose(dop.tables.scale, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert np.all(np.isfinite(jax.jvp(lambda x: amm(x, factors_op), (x,), (x,))[1]))


def test_scan_over_stacked_layers_with_checkpoint_and_grad(rng):
    ops = [random_factors(rng, 6, 4, 6, 2, weights=True) for _ in range(3)]
    x = put(random_rows(rng, 9, 6))

    def forward(x, layers):
        return jax.lax.scan(jax.checkpoint(lambda h, op: (jnp.tanh(amm(h, op)), None)), x, layers)[0]

    layers = jax.tree.map(lambda *a: jnp.stack(a), *ops)
    expected = functools.reduce(lambda h, op: jnp.tanh(jitted(h, op)), ops, x)
    np.testing.assert_allclose(jax.jit(forward)(x, layers), expected, rtol=1e-5, atol=1e-5)
    assert np.all(np.isfinite(jax.grad(lambda x: forward(x, layers).sum())(x)))


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_sharded_rows_and_outputs_need_no_collective(factors_op, x, axes):
    mesh = jax.make_mesh((2, 2), ("r", "m"), axis_types=(axes,) * 2)
    by_output = {"tables": P("m"), "up": P(None, "m"), "weights": P(None, "m"), "shift": P("m")}

    def place(path, a):
        spec = by_output.get(path[0].name, by_output.get(path[-1].name, P()))
        return jax.device_put(a, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        rows, op = jax.device_put(x, NamedSharding(mesh, P("r"))), jax.tree_util.tree_map_with_path(place, factors_op)
        compiled = jax.jit(amm).lower(rows, op).compile()
        y = compiled(rows, op)
    np.testing.assert_array_equal(y, jitted(x, factors_op))
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P("r", "m")), 2)
    assert "all-" not in compiled.as_text()


def test_shard_map(factors_op, x):
    mesh = jax.make_mesh((2, 2), ("r", "m"))
    f = jax.shard_map(amm, mesh=mesh, in_specs=(P("r"), jax.tree.map(lambda _: P(), factors_op)), out_specs=P("r"))
    with jax.set_mesh(mesh):
        y = jax.jit(f)(jax.device_put(x, NamedSharding(mesh, P("r"))), factors_op)
    np.testing.assert_array_equal(y, jitted(x, factors_op))


def test_portable(factors_op, x):
    testing.assert_portable(amm, x, factors_op)


@pytest.mark.parametrize("codebooks", [0, 3])
def test_projections_serve_as_codes_do(tier, rng, codebooks):
    """Positions are projected once, and rows are computed from what their taps see."""
    op = random_factors(rng, 8, 8, 6, codebooks)
    x = put(random_rows(rng, 9, 8))
    u, codes = op.term.project(x), encode(x, op.trees) if codebooks else None
    np.testing.assert_array_equal(expand(codes, u, op.tables, op.term, jnp.float32), jitted(x, op))
    rows = jax.vmap(lambda u: product_of(u, op.tables, op.term))(u[:, None])[:, 0]
    np.testing.assert_array_equal(rows, product_of(u, op.tables, op.term))
    patch = op.term.repeated(2, jnp.concatenate([op.term.up, op.term.up]))
    np.testing.assert_array_equal(patch.project(jnp.concatenate([x, x[::-1]], 1)), jnp.concatenate([u, u[::-1]], 1))
    for a, b in zip(jax.tree.leaves(patch.first_position(2)), jax.tree.leaves(op.term), strict=True):
        assert a.shape == b.shape or a.shape[0] == 2 * b.shape[0]


BROKEN = {
    "rank": (
        lambda t: {"down": t.down[:, :6], "steps": t.steps[:6], "up": t.up[:1]},
        "has rank 6; expected a multiple of 4",
    ),
    "down": (lambda t: {"down": t.down[:1]}, r"`op.term.down` is int8\[1, 8, 4\]; expected int8\[2, 8, 4\]"),
    "up": (lambda t: {"up": t.up[:, :5]}, r"`op.term.up` is int8\[2, 5, 4\]; expected int8\[2, 6, 4\]"),
    "steps": (lambda t: {"steps": t.steps[:4]}, "`op.term.steps`"),
    "shift": (lambda t: {"shift": t.shift.astype(jnp.int32)}, "`op.term.shift` is int32"),
    "center": (lambda t: {"center": t.center[:7]}, "`op.term.center`"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_arrays_that_do_not_agree(name, rng, x):
    op = random_factors(rng, 8, 8, 6, 3)
    changes, words = BROKEN[name]
    with pytest.raises(ValueError, match=words):
        amm(x, dataclasses.replace(op, term=dataclasses.replace(op.term, **changes(op.term))))


def test_terms_and_codebooks_that_do_not_go_together(rng, x):
    op = random_op(rng, 8, 3, 6)
    with pytest.raises(ValueError, match="3 codebooks beside an Int8Product; expected none"):
        amm(x, dataclasses.replace(op, term=random_int8(rng, Int8Product, 8, 6).term))
    with pytest.raises(TypeError, match=r"`op.term` is ArrayImpl; expected a term such as Factors"):
        amm(x, dataclasses.replace(op, term=jnp.ones(3)))
    alone = random_factors(rng, 8, 4, 6)
    with pytest.raises(ValueError, match="no codebook"):
        amm(x, dataclasses.replace(alone, term=None))
    unknown = dataclasses.replace(alone, trees=dataclasses.replace(alone.trees, num_features=None))
    with pytest.raises(ValueError, match="`x` has 7 features"):
        amm(x[:, :7], unknown)


def test_repr_and_size(rng):
    assert "0 codebooks + rank 8, " in repr(random_factors(rng, 8, 8, 6))
    assert "3 codebooks + rank 4, " in repr(random_factors(rng, 8, 4, 6, 3))
    assert " + int8 by row, " in repr(random_int8(rng, Int8ProductByRow, 8, 6))
