"""Fallbacks: what TPU and GPU would run, how a backend or a tier is forced, exports."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import needs_kernels, random_oblique_trees, random_op
from jax import export

import jax_maddness
from jax_maddness import aggregate, amm, encode, testing
from jax_maddness.core import ffi

FUNCTIONS = {
    "amm": lambda x, op: amm(x, op),
    "encode": lambda x, op: encode(x, op.trees),
    "aggregate": lambda x, op: aggregate(jnp.zeros((*x.shape[:-1], 3), jnp.uint8), op.tables),
    "gradient": lambda x, op: jax.grad(lambda x: amm(x, op).sum())(x),
}


@pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_lowers_without_a_custom_call_under_jit_and_vmap(name, platform, op, x):
    f = FUNCTIONS[name]
    for function, rows in ((f, x), (jax.jit(f), x), (jax.vmap(f, (0, None)), x.reshape(3, 4, 8))):
        testing.assert_portable(function, rows, op, platforms=[platform])
        module = export.export(jax.jit(function), platforms=[platform])(rows, op).mlir_module()
        assert not testing.custom_calls(module)
    ops = jax.tree.map(lambda a: jnp.stack([a, a]), op)
    testing.assert_portable(jax.vmap(f, (None, 0)), x, ops, platforms=[platform])


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_projections_lower_without_a_custom_call_as_an_integer_product(rng, platform, x):
    op = random_op(rng, 8, 3, 5, weights=True, make_trees=random_oblique_trees)
    ops = jax.tree.map(lambda a: jnp.stack([a, a]), op)
    testing.assert_portable(jax.vmap(amm, (None, 0)), x, ops, platforms=[platform])
    for f in (FUNCTIONS["encode"], FUNCTIONS["amm"]):
        module = export.export(jax.jit(f), platforms=[platform])(x, op).mlir_module()
        assert not testing.custom_calls(module)
        assert re.search(r"dot_general.*tensor<[0-9x]*i8>, tensor<[0-9x]*i8>\) -> tensor<[0-9x]*i32>", module)


@needs_kernels
def test_on_cpu_the_kernels_are_called(op, x):
    with pytest.raises(AssertionError, match="lowered for cpu, the function calls jax_maddness_amm"):
        testing.assert_portable(amm, x, op, platforms=["cpu"])
    with testing.force_backend("jax"):
        testing.assert_portable(amm, x, op, platforms=["cpu"])


@needs_kernels
def test_every_registered_kernel_has_the_prefix_by_which_custom_calls_are_recognised():
    assert len(ffi.targets()) == len(set(ffi.targets())) > 10
    assert all(name.startswith(ffi.TARGET_PREFIX) for name in ffi.targets())


@needs_kernels
def test_a_kernel_that_is_missing_among_the_targets_is_not_portable(op, x, monkeypatch):
    monkeypatch.setattr(ffi, "targets", lambda: ())
    with pytest.raises((AssertionError, ValueError), match="jax_maddness_amm"):
        testing.assert_portable(amm, x, op, platforms=["cpu"])


@needs_kernels
def test_an_export_for_several_platforms_is_serialised_and_runs(any_op, x):
    safe = jax_maddness.disabled_export_checks()
    exported = export.export(jax.jit(amm), platforms=["cpu", "tpu"], disabled_checks=safe)(x, any_op)
    again = export.deserialize(exported.serialize())
    np.testing.assert_allclose(jax.jit(again.call)(x, any_op), amm(x, any_op), rtol=1e-6)


@needs_kernels
def test_every_kernel_has_an_exemption():
    assert jax_maddness.disabled_export_checks() == [
        export.DisabledSafetyCheck.custom_call(name) for name in ffi.targets()
    ]


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_rows_sharded_over_auto_axes_are_not_portable_and_over_explicit_axes_are(kind, op, x):
    mesh = jax.make_mesh((4,), ("a",), axis_types=(kind,))
    x = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a")))
    with jax.set_mesh(mesh):
        if kind == jax.sharding.AxisType.Explicit or not ffi.supported_tiers():
            testing.assert_portable(amm, x, op)
        else:
            with pytest.raises(AssertionError, match="for tpu, the function calls CustomSPMDPartitioning"):
                testing.assert_portable(amm, x, op)


@needs_kernels
def test_an_export_of_rows_sharded_over_explicit_axes_is_serialised_and_runs(op, x):
    mesh = jax.make_mesh((4,), ("a",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a")))
    with jax.set_mesh(mesh):
        exported = export.export(jax.jit(amm), disabled_checks=jax_maddness.disabled_export_checks())(x, op)
        again = export.deserialize(exported.serialize())
        np.testing.assert_allclose(jax.jit(again.call)(x, op), amm(x, op), rtol=1e-6)


def test_a_symbolic_number_of_rows_exports(op, x):
    rows = export.symbolic_shape("n, 8")
    exported = export.export(jax.jit(lambda x: amm(x, op)), platforms=["tpu"])(jax.ShapeDtypeStruct(rows, jnp.float32))
    assert "?x5" in exported.mlir_module()


def test_force_tier_restores_what_was_forced(op, x):
    for tier in jax_maddness.supported_tiers():
        before = jax_maddness.active_tier()
        with testing.force_tier(tier):
            assert jax_maddness.active_tier() == tier
            for inner in jax_maddness.supported_tiers():
                with testing.force_tier(inner):
                    assert jax_maddness.active_tier() == inner
                assert jax_maddness.active_tier() == tier
        assert jax_maddness.active_tier() == before


@pytest.mark.parametrize("platforms", [(), "tpu"])
def test_no_platform_or_a_string_is_refused(op, x, platforms):
    with pytest.raises(ValueError, match="expected a sequence of names"):
        testing.assert_portable(amm, x, op, platforms=platforms)


@needs_kernels
def test_unknown_tier_and_backend_name_the_choices():
    with pytest.raises(ValueError, match="scalar"), testing.force_tier("mmx"):
        pass
    with pytest.raises(ValueError, match="expected one of auto, ffi, jax"), testing.force_backend("cuda"):
        pass


def test_force_backend_holds_for_one_thread_and_nests(op, x):
    with testing.force_backend("jax"):
        assert ffi.backend() == "jax"
        with testing.force_backend("auto"):
            assert ffi.backend() == "auto"
        assert ffi.backend() == "jax"
    assert ffi.backend() == "auto"
