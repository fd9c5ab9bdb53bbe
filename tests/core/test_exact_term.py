"""The exact term of an op: the plain expression under every transformation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import put, random_op, random_rows, random_term
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_maddness import ExactTerm, amm, testing, with_small_batch_tables

jitted = jax.jit(amm)  # step by step it is as many programs, for each shape
PARTS = {"features": (2, 0), "directions": (0, 3), "both": (2, 3), "many": (5, 6)}


@pytest.fixture(params=PARTS)
def exact_op(request, rng):
    """8 features, 3 codebooks, 6 outputs."""
    op = random_op(rng, 8, 3, 6, weights=True)
    return dataclasses.replace(op, term=random_term(rng, 8, 6, *PARTS[request.param]))


def reduced(x, term):
    """The numbers that the term multiplies, in float64."""
    parts = [] if term.indices is None else [np.float64(x)[..., np.asarray(term.indices)]]
    parts += [] if term.down is None else [np.float64(x) @ np.float64(term.down)]
    return np.concatenate(parts, axis=-1)


def plain(x, op):
    """The answer in float64: look-ups and the term."""
    looked_up = jitted(x, dataclasses.replace(op, term=None))
    return np.float64(looked_up) + reduced(x, op.term) @ np.float64(op.term.up)


def assert_close(actual, desired):
    """Up to f32's rounding of sums of a dozen numbers below a hundred."""
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_it_is_added(tier, exact_op, x):
    for rows in (x, x[:0], x[0], x.reshape(2, 3, 2, 8)):
        for f in (amm, jax.jit(amm)):
            assert_close(f(rows, exact_op), plain(rows, exact_op))
    assert_close(amm(x[:2], with_small_batch_tables(exact_op)), plain(x[:2], exact_op))


@settings(deadline=None, max_examples=12)  # nearly each compiles anew
@given(
    rows=st.integers(0, 9),
    features=st.integers(1, 9),
    outputs=st.integers(1, 9),
    chosen=st.integers(0, 4),
    directions=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_property_equal_to_the_plain_expression(rows, features, outputs, chosen, directions, seed):
    rng = np.random.default_rng(seed)
    term = random_term(rng, features, outputs, chosen, directions + (chosen == directions == 0))
    op = dataclasses.replace(random_op(rng, features, 2, outputs), term=term)
    x = put(random_rows(rng, rows, features))
    assert_close(jitted(x, op), plain(x, op))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rows_of_16_bits(exact_op, x, dtype):
    """Look-ups are rounded to the rows' dtype, and so is the sum."""
    x = x.astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        y = amm(x, exact_op)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.float64(y), plain(x, exact_op), rtol=float(jnp.finfo(dtype).eps), atol=1e-4)


def test_a_feature_that_is_not_taken_may_be_nan(rng, x):
    op = dataclasses.replace(random_op(rng, 8, 3, 6), term=random_term(rng, 8, 6, 2, 0))
    other = int(np.setdiff1d(np.arange(8), op.term.indices)[0])
    assert np.all(np.isfinite(amm(x.at[:, other].set(jnp.nan), op)))


def test_vmap_over_rows_ops_and_both(exact_op, x):
    scaled = [jax.tree.map(lambda a, s=s: a if a.dtype == jnp.int32 else a * s, exact_op.term) for s in (1.0, 2.0)]
    ops = [dataclasses.replace(exact_op, term=term) for term in scaled]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *ops)
    each = np.stack([plain(x, op) for op in ops])
    assert_close(jax.jit(jax.vmap(amm, (0, None)))(x, exact_op), each[0])
    assert_close(jax.jit(jax.vmap(amm, (None, 0)))(x, stacked), each)
    both = jax.jit(jax.vmap(amm))(x.reshape(2, 6, 8), stacked)
    assert_close(both, np.stack([plain(r, op) for r, op in zip(x.reshape(2, 6, 8), ops, strict=True)]))


def test_derivatives(backend, exact_op, x, rng):
    """Derivatives are straight-through for the rows, and true for the arrays of the term, in both modes."""
    g = jnp.float32(rng.standard_normal((12, 6)))
    dx, dop = jax.jit(jax.grad(lambda x, op: (g * amm(x, op)).sum(), (0, 1), allow_int=True))(x, exact_op)
    np.testing.assert_allclose(dx, g @ exact_op.weights.T, rtol=1e-5, atol=1e-5)
    assert_close(dop.term.up, reduced(x, exact_op.term).T @ np.float64(g))
    if exact_op.term.down is not None:
        directions = exact_op.term.down.shape[1]
        assert_close(dop.term.down, np.float64(x).T @ np.float64(g) @ np.float64(exact_op.term.up)[-directions:].T)

    def of_term(floats):
        return amm(x, dataclasses.replace(exact_op, weights=None, term=dataclasses.replace(exact_op.term, **floats)))

    floats = {k: a for k in ("up", "down") if (a := getattr(exact_op.term, k)) is not None}
    step = jax.tree.map(lambda a: 1e-2 * jnp.float32(rng.standard_normal(a.shape)), floats)
    _, dy = jax.jvp(of_term, (floats,), (step,))
    difference = of_term(jax.tree.map(jnp.add, floats, step)) - of_term(jax.tree.map(jnp.subtract, floats, step))
    np.testing.assert_allclose(dy, difference / 2, rtol=1e-2, atol=1e-3)


def test_scan_over_stacked_layers_with_checkpoint_and_grad(rng):
    ops = [dataclasses.replace(random_op(rng, 6, 2, 6, True), term=random_term(rng, 6, 6, 1, 2)) for _ in range(3)]
    x = jnp.asarray(random_rows(rng, 9, 6))

    def forward(x, layers):
        return jax.lax.scan(jax.checkpoint(lambda h, op: (jnp.tanh(amm(h, op)), None)), x, layers)[0]

    layers = jax.tree.map(lambda *a: jnp.stack(a), *ops)
    assert_close(jax.jit(forward)(x, layers), functools.reduce(lambda h, op: jnp.tanh(amm(h, op)), ops, x))
    dx = jax.grad(lambda x: forward(x, layers).sum())(x)
    assert np.all(np.isfinite(dx))


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_sharded_rows_and_outputs_need_no_collective(exact_op, x, axes):
    mesh = jax.make_mesh((2, 2), ("r", "m"), axis_types=(axes,) * 2)
    expected = plain(x, exact_op)
    by_output = {"values": P("m"), "scale": P("m"), "offset": P("m"), "weights": P(None, "m"), "up": P(None, "m")}

    def put(path, a):
        return jax.device_put(a, NamedSharding(mesh, by_output.get(path[-1].name, P())))

    with jax.set_mesh(mesh):
        rows, op = jax.device_put(x, NamedSharding(mesh, P("r"))), jax.tree_util.tree_map_with_path(put, exact_op)
        compiled = jax.jit(amm).lower(rows, op).compile()
        y = compiled(rows, op)
        dx = jax.jit(jax.grad(lambda x: (amm(x, op) ** 2).sum()))(rows)
    assert_close(y, expected)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P("r", "m")), 2)
    assert "all-" not in compiled.as_text()
    np.testing.assert_allclose(dx, jax.grad(lambda x: (amm(x, exact_op) ** 2).sum())(x), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(exact_op, x, check_vma):
    mesh = jax.make_mesh((2, 2), ("r", "m"))
    specs = (P("r"), jax.tree.map(lambda _: P(), exact_op))
    f = jax.shard_map(amm, mesh=mesh, in_specs=specs, out_specs=P("r"), check_vma=check_vma)
    with jax.set_mesh(mesh):
        assert_close(jax.jit(f)(jax.device_put(x, NamedSharding(mesh, P("r"))), exact_op), plain(x, exact_op))


def test_portable_and_exported_for_any_number_of_rows(exact_op, x):
    testing.assert_portable(amm, x, exact_op)
    (n,) = export.symbolic_shape("n")
    exported = export.export(jax.jit(amm), platforms=["tpu"])(jax.ShapeDtypeStruct((n, 8), jnp.float32), exact_op)
    assert exported.out_avals[0].shape == (n, 6)


def test_repr_and_size(op, rng):
    for (chosen, directions), words in {
        (2, 0): "3 codebooks + 2 exact features, ",
        (0, 3): "3 codebooks + rank 3, ",
        (2, 3): "3 codebooks + 2 exact features + rank 3, ",
    }.items():
        term = random_term(rng, 8, 5, chosen, directions)
        more = dataclasses.replace(op, term=term)
        assert words in repr(more)
        assert more.nbytes == op.nbytes + 4 * ((chosen + directions) * 5 + chosen + 8 * directions)


BAD = {
    "not a term": (lambda t: t.up, TypeError, "`op.term` is .*; expected a term such as Factors, or None"),
    "nothing": (lambda t: ExactTerm(t.up), ValueError, "neither `indices` nor `down`"),
    "rank": (lambda t: ExactTerm(t.up, t.indices), ValueError, r"`op.term.up` is float32\[5, 5\]; .*\[2, 5\]"),
    "features": (lambda t: ExactTerm(t.up[2:], None, t.down[1:]), ValueError, r"`op.term.down` is float32\[7, 3\]"),
    "indices": (lambda t: ExactTerm(t.up, jnp.ones(5)), ValueError, r"`op.term.indices` is float32\[5\]"),
    "empty": (lambda t: ExactTerm(t.up[:0], t.indices[:0]), ValueError, "`op.term` has rank 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_terms_that_do_not_fit_are_refused(op, x, rng, name):
    change, error, message = BAD[name]
    with pytest.raises(error, match=message):
        amm(x, dataclasses.replace(op, term=change(random_term(rng, 8, 5, 2, 3))))
