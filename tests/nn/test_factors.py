"""Layers replaced by int8 factors, alone and beside codes: with projections shared among taps, tuned, in files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.ops import put, random_factors, random_rows

from jax_maddness import FitConfig, Rule, amm, finetune, load_model, replace, save_model
from jax_maddness.nn.layers.approximate import Spec, to_arrays, to_op
from jax_maddness.nn.layers.float_tables import amm_floating, to_bytes, to_floats
from jax_maddness.nn.nmse import nmse


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.standard_normal((6, 9, 8)) @ rng.standard_normal((8, 8)), jnp.float32)


def convolution(groups=1, outputs=6):
    return nnx.Conv(8, outputs, (3,), feature_group_count=groups, rngs=nnx.Rngs(0))


def error(fast, model, x):
    return nmse(jax.jit(lambda x: fast(x))(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("conv", ["shared", "patches"])
@pytest.mark.parametrize(("num_codebooks", "groups"), [(0, 1), (6, 1), (0, 2)])
def test_factors_of_full_rank_are_the_convolution(x, conv, num_codebooks, groups):
    """Whether patches or positions are projected, `rank` directions of a patch are all that it has."""
    model = convolution(groups)
    rank = {"shared": 24 // groups, "patches": 6 // groups}[conv]
    rule = Rule(".*", num_codebooks=num_codebooks, conv=conv, config=FitConfig("paper", rank=rank))
    fast = replace(model, rule, [x], progress=False)
    assert error(fast, model, x) < 2e-3
    assert fast.spec.shared == (conv == "shared")
    y = fast(x[:1])  # of one example as of all
    np.testing.assert_array_equal(y, fast(x)[:1])


@pytest.mark.parametrize(("rank", "groups", "worst"), [(2, 1, 0.9), (6, 1, 1e-3), (3, 2, 1e-2)])
def test_factors_are_a_product_of_rules(x, rank, groups, worst):
    """Factors of full rank are the whole product in int8, except where ops are stacked."""
    model = convolution(groups)
    fast = replace(model, Rule(".*", product="factors", rank=rank, conv="patches"), [x], progress=False)
    assert error(fast, model, x) < worst
    names = {name.split("_")[0] for name in fast.tables.arrays}
    assert ("factors" in names) == (rank < 6)


def test_few_directions_of_positions_are_better_with_codes(x):
    model = convolution()
    errors = []
    for num_codebooks in (0, 12):
        config = FitConfig("paper", rank=12)
        rule = Rule(".*", num_codebooks=num_codebooks, conv="shared", config=config)
        errors.append(error(replace(model, rule, [x], progress=False), model, x))
    assert errors[1] < errors[0] < 0.5


@pytest.mark.parametrize("num_candidates", [1, 3])
def test_factors_propose_and_exact_products_decide(x, num_candidates):
    model = convolution()
    config = FitConfig("paper", rank=12)
    rule = Rule(".*", num_codebooks=0, conv="shared", num_candidates=num_candidates, config=config)
    fast = replace(model, rule, [x], progress=False)
    y, exact = np.asarray(jax.jit(lambda x: fast(x))(x)), np.asarray(model(x)).max(1, keepdims=True)
    assert y.shape == exact.shape
    right = np.isclose(y, exact, rtol=1e-4, atol=1e-4).mean()
    assert right > (0.9 if num_candidates == 3 else 0.6)
    assert np.all(y < exact + 1e-3)


@pytest.mark.parametrize("config", [FitConfig("paper", rank=4), FitConfig("int8")])
def test_linen_scans_and_files(x, config, tmp_path):
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            carry, _ = nn.scan(
                lambda module, carry, _: (jnp.tanh(module(carry)), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=2,
            )(nn.Dense(8), x, None)
            return carry

    model = Stack()
    variables = model.init(jax.random.key(0), x)
    rule = Rule(".*", num_codebooks=0 if config.method == "int8" else 2, config=config)
    fast = replace((model, variables), rule, [x], progress=False)
    y = jax.jit(fast[0].apply)(fast[1], x)
    assert nmse(y, model.apply(variables, x)) < 0.2
    save_model(tmp_path / "model", fast)
    loaded = load_model(tmp_path / "model", model)
    np.testing.assert_array_equal(jax.jit(loaded[0].apply)(loaded[1], x), y)


@pytest.mark.parametrize("num_codebooks", [0, 4])
def test_tuning_keeps_factors(x, num_codebooks):
    """Tables move beside factors that stay; without tables the offset alone can move."""
    model = nnx.Sequential(nnx.Linear(8, 12, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(12, 4, rngs=nnx.Rngs(1)))
    fast = replace(
        model, Rule(".*", num_codebooks=num_codebooks, config=FitConfig("paper", rank=4)), [x], progress=False
    )
    before = error(fast, model, x)
    tuned = finetune(fast, teacher=model, batches=[x[:4], x[4:]], held_out=1, steps=50, progress=False)
    assert error(tuned, model, x) <= before * 1.02
    for a, b in zip(jax.tree.leaves(nnx.state(fast)), jax.tree.leaves(nnx.state(tuned)), strict=True):
        assert a.dtype == b.dtype
        if a.dtype == jnp.int8:
            np.testing.assert_array_equal(a, b)


def test_float_tables_beside_factors_and_back(rng):
    op = random_factors(rng, 8, 4, 6, 3)
    spec = Spec(None, None, "float32", "", "SplitTrees", 8)
    x, arrays = put(random_rows(rng, 20, 8)), to_arrays(op)
    floats = to_floats(arrays)
    y = np.asarray(amm(x, op))
    np.testing.assert_allclose(amm_floating(x, to_op(spec, floats)), y, rtol=1e-5, atol=1e-3 * np.abs(y).max())
    again = to_op(spec, {**floats, **to_bytes(floats)})
    np.testing.assert_allclose(amm(x, again), y, atol=0.02 * np.abs(y).max())
    np.testing.assert_array_equal(again.tables.scale, op.tables.scale)


def test_the_whole_product_in_int8_takes_patches(x):
    """By default; codes that taps share would be refused, as below."""
    model = convolution()
    fast = replace(model, Rule(".*", config=FitConfig("int8")), [x], progress=False)
    assert not fast.spec.shared
    assert error(fast, model, x) < 1e-3


def test_what_does_not_go_together_is_refused(x):
    with pytest.raises(ValueError, match="`num_codebooks` is 0, and `config` asks for nothing else"):
        Rule(".*", num_codebooks=0)
    rule = Rule(".*", num_codebooks=0, conv="shared", config=FitConfig("int8"))
    with pytest.raises(ValueError, match='do not go with method "int8"'):
        replace(convolution(), rule, [x], progress=False)
