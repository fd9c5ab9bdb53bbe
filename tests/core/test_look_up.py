"""look_up: float tables and their gradient, on every backend and tier, under transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import references
from helpers.ops import needs_kernels
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_maddness import testing
from jax_maddness.core import ffi
from jax_maddness.core.look_up import definition, gradient_definition, look_up


def problem(rng, rows=40, codebooks=5, outputs=7, lead=()):
    """Codes, the upper four bits of which are noise; values; dy, which is zero in half of the rows."""
    codes = rng.integers(0, 256, (*lead, rows, codebooks), np.uint8)
    values = rng.standard_normal((*lead, outputs, codebooks, 16))
    dy = rng.standard_normal((*lead, rows, outputs)) * rng.integers(0, 2, (*lead, rows, 1))
    return jax.device_put((codes, np.float32(values), np.float32(dy)))


def both(codes, values, dy):
    """The result, and the gradient of the tables."""
    y, transpose = jax.vjp(lambda values: look_up(codes, values), values)
    return y, *transpose(dy)


@jax.jit
def expected(codes, values, dy):
    y = definition(codes[None], values[None])[0]
    return y, gradient_definition(codes[None], dy[None])[0]


def assert_close(actual, desired):
    """Sums of at most some hundred normal numbers, in float32."""
    for a, b in zip(actual, desired, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_the_definition_is_that_of_aggregate(rng):
    codes, values, dy = problem(rng)
    whole = jnp.round(10 * values)
    np.testing.assert_array_equal(definition(codes[None], whole[None])[0], references.aggregate(codes & 15, whole))
    by_jax = jax.vjp(lambda values: definition(codes[None], values[None])[0], values)[1](dy)[0]
    np.testing.assert_allclose(gradient_definition(codes[None], dy[None])[0], by_jax, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(0, 3, 5), (1, 1, 1), (64, 9, 65), (300, 130, 17), (4, 2, 0)])
def test_sums_and_gradients_equal_the_definition(tier, rng, sizes):
    args = problem(rng, *sizes)
    assert_close(jax.jit(both)(*args), expected(*args))


def test_small_integers_are_exact(tier, rng):
    codes, values, dy = problem(rng, 300, 20, 70)
    args = codes, jnp.round(9 * values), jnp.round(9 * dy)
    for a, b in zip(both(*args), expected(*args), strict=True):
        np.testing.assert_array_equal(a, b)


@needs_kernels
def test_all_tiers_give_the_same_floats(rng):
    args = problem(rng, 1000, 70, 130)  # enough to be split among threads
    found = []
    for tier in ffi.supported_tiers():
        with testing.force_tier(tier):
            found.append(both(*args))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, found[0])


def test_any_leading_dimensions(tier, rng):
    codes, values, dy = problem(rng)
    y, gradient = expected(codes, values, dy)
    folded = both(codes.reshape(4, 2, 5, 5), values, dy.reshape(4, 2, 5, 7))
    assert_close(folded, (y.reshape(4, 2, 5, 7), gradient))
    assert_close(both(codes[0], values, dy[0]), expected(codes[0], values, dy[0]))


def test_infinity_and_nan_reach_the_entries_of_their_codes(tier):
    codes = jnp.array([[1], [2], [3]], jnp.uint8)
    values, dy = jnp.ones((1, 1, 16)), jnp.array([[jnp.inf], [jnp.nan], [2.0]])
    if tier == "jax":
        pytest.skip("0 * NaN is NaN in products with one-hot codes")
    np.testing.assert_array_equal(both(codes, values, dy)[1][0, 0, :5], [0, jnp.inf, jnp.nan, 2, 0])


def test_vmap(backend, rng):
    codes, values, dy = problem(rng, lead=(3,))
    each = [expected(*args) for args in zip(codes, values, dy, strict=True)]
    assert_close(jax.jit(jax.vmap(both))(codes, values, dy), [np.stack(found) for found in zip(*each, strict=True)])
    shared = [expected(c, values[0], d) for c, d in zip(codes, dy, strict=True)]
    stacked = [np.stack(found) for found in zip(*shared, strict=True)]
    assert_close(jax.jit(jax.vmap(both, (0, None, 0)))(codes, values[0], dy), stacked)
    summed = jax.jit(jax.grad(lambda v: (jax.vmap(look_up, (0, None))(codes, v) * dy).sum()))(values[0])
    assert_close([summed], [stacked[1].sum(0)])
    only_dy = [expected(codes[0], values[0], d)[1] for d in dy]
    assert_close([jax.jit(jax.vmap(both, (None, None, 0)))(codes[0], values[0], dy)[1]], [np.stack(only_dy)])
    nested = jax.jit(jax.vmap(jax.vmap(both)))(codes[None], values[None], dy[None])
    assert_close([a[0] for a in nested], [np.stack(found) for found in zip(*each, strict=True)])


def test_second_derivatives(backend, rng):
    codes, values, _ = problem(rng)

    def loss(values):
        return (look_up(codes, values) ** 2).sum()

    product = jax.jit(jax.grad(lambda v: (jax.grad(loss)(v) * values).sum()))(values)
    np.testing.assert_allclose(product, jax.jit(jax.grad(loss))(values), rtol=1e-4, atol=1e-3)


def test_scan_with_checkpoint(backend, rng):
    codes, values, dy = problem(rng, lead=(2,))

    def total(values):
        step = jax.checkpoint(lambda sum, args: (sum + (look_up(*args[:2]) * args[2]).sum(), None))
        return jax.lax.scan(step, 0.0, (codes, values, dy))[0]

    gradient = jax.jit(jax.grad(total))(values)
    assert_close([gradient], [gradient_definition(codes, dy)])


def test_other_dtypes_are_pure_jax(backend, rng):
    codes, values, dy = problem(rng)
    y, gradient = both(codes, values.astype(jnp.bfloat16), dy.astype(jnp.bfloat16))
    assert (y.dtype, gradient.dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_allclose(np.float32(gradient), expected(codes, values, dy)[1], rtol=0.05, atol=0.1)


@needs_kernels
def test_forward_and_backward_are_one_call_each(rng):
    text = jax.jit(both).lower(*problem(rng)).as_text()
    assert sorted(testing.custom_calls(text)) == ["jax_maddness_look_up", "jax_maddness_look_up_gradient"]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("r"), P(("r", "m")), P("r", "m"), P(None, "m")])
def test_sharded_rows(backend, rng, axis_type, spec):
    codes, values, dy = problem(rng, 16, 5, 6)
    wanted = expected(codes, values, dy)
    mesh = jax.make_mesh((2, 2), ("r", "m"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        codes = jax.device_put(codes, NamedSharding(mesh, P(spec[0])))
        values = jax.device_put(values, NamedSharding(mesh, P(*spec[1:])))
        assert_close(jax.jit(both)(codes, values, jax.device_put(dy, NamedSharding(mesh, spec))), wanted)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shards_by_hand(backend, rng, check_vma):
    codes, values, dy = problem(rng, 16)
    mesh = jax.make_mesh((4,), ("r",), axis_types=(AxisType.Auto,))

    def loss(codes, values, dy):
        return jax.lax.psum((look_up(codes, values) * dy).sum(), "r")

    of_shards = jax.shard_map(loss, mesh=mesh, in_specs=(P("r"), P(), P("r")), out_specs=P(), check_vma=check_vma)
    gradient = jax.jit(jax.grad(of_shards, 1))(codes, values, dy)
    assert_close([gradient], [expected(codes, values, dy)[1]])


@needs_kernels
@pytest.mark.parametrize(
    ("target", "shapes", "result", "message"),
    [
        ("look_up", [(1, 4, 3), (1, 5, 2, 16)], (1, 4, 5), "values"),
        ("look_up", [(1, 4, 3), (1, 5, 3, 15)], (1, 4, 5), "values"),
        ("look_up", [(2, 4, 3), (1, 5, 3, 16)], (2, 4, 5), "values"),
        ("look_up", [(1, 4, 3), (1, 5, 3, 16)], (1, 3, 5), "y"),
        ("look_up", [(1, 4, 0), (1, 5, 0, 16)], (1, 4, 5), "codebook"),
        ("look_up_gradient", [(1, 4, 3), (1, 3, 5)], (1, 5, 3, 16), "dy"),
        ("look_up_gradient", [(1, 4, 3), (1, 4, 5)], (1, 6, 3, 16), "gradient"),
        ("look_up_gradient", [(3,)], (1, 5, 3, 16), "dimensions"),
    ],
)
def test_the_handlers_check_shapes_themselves(target, shapes, result, message):
    codes, *floats = shapes
    args = [jnp.zeros(codes, jnp.uint8), *(jnp.zeros(s) for s in floats or [codes])]
    out = jax.ShapeDtypeStruct(result, jnp.float32)
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(jax.jit(lambda *a: ffi.call(f"jax_maddness_{target}", out, *a))(*args))
